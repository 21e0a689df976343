from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from membership_trials import CANDIDATES, trials

from snnfl.auditing.membership_checks import at_gap, blind_classifier, shared_gap


def test_members_drawn_by_lot_differ_in_nothing() -> None:
    assert 0.5 in blind_classifier(trials())


def test_members_who_differ_are_noticed() -> None:
    """By their label, or by how bright they are: a score of membership would measure that."""
    given = trials()
    bright = given.inputs.flatten(1).mean(1)
    for differ in (given.labels < 5, bright > bright.median()):
        noisy = differ ^ (torch.arange(CANDIDATES) % 4 == 0)
        networks = [replace(network, members=noisy) for network in given.networks]
        assert blind_classifier(replace(given, networks=networks)).low > 0.6


def test_a_value_at_a_gap_is_interpolated_for_each_target() -> None:
    gaps, values = [[0.0, 0.1, 0.3], [0.0, 0.2, 0.4]], [[0.5, 0.6, 0.8], [0.5, 0.7, 0.9]]
    found = at_gap(0.25, gaps, values)  # half way between the mean gaps 0.15 and 0.35
    assert found is not None
    assert found.value == pytest.approx(np.mean([0.7, 0.8]))
    assert at_gap(0.36, gaps, values) is None
    assert at_gap(0.1, [[0.1]], [[0.5]]) is None


def test_the_shared_gap_is_one_that_all_pass_through() -> None:
    assert shared_gap([[[0.0, 0.2]], [[0.1, 0.5]]]) == pytest.approx(0.15)
    assert shared_gap([[[0.0, 0.2]], [[0.3, 0.5]]]) is None
