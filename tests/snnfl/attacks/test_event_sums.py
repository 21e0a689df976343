"""Counts are read off one weighted sum of them, as far as its error allows."""

from __future__ import annotations

import torch
from frames import drawn

from snnfl.attacks.event_sums import counts_of

WEIGHTS = torch.tensor([(10 - t) * 0.95 ** (9 - t) for t in range(10)], dtype=torch.float64)


def test_sums_tell_their_counts():
    counts = drawn(10)
    assert torch.equal(counts_of(WEIGHTS @ counts, WEIGHTS, 1e-7), counts)


def test_without_a_leak_only_weighted_totals_are_told():
    counts = drawn(10)
    weights = torch.arange(10, 0, -1).double()
    found = counts_of(weights @ counts, weights, 1e-7)
    assert torch.equal(weights @ found, weights @ counts)
    assert not torch.equal(found, counts)


def test_what_no_few_events_explain_is_left_empty():
    assert not counts_of(torch.tensor([1e6, -1.0], dtype=torch.float64), WEIGHTS, 1e-7).any()
