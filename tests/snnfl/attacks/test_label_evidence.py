"""Shares of classes from gradients whose make is known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snnfl.attacks.label_evidence import Evidence, gradients_in, scale_of
from snnfl.attacks.labels import batch_labels
from snnfl.attacks.local import LocalTraining


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.floats(1e-3, 1e3))
def test_a_class_that_no_image_has_tells_the_scale(labels, factor):
    probabilities = torch.tensor([0.05, 0.15] * 5)
    counts = torch.bincount(torch.tensor(labels), minlength=10) / len(labels)
    gradient = factor * (probabilities - counts)
    scale = scale_of(gradient, probabilities)
    assert scale == pytest.approx(factor, rel=1e-4)
    evidence = Evidence(gradient=gradient / scale, expected=probabilities.repeat(10, 1))
    assert batch_labels(evidence, len(labels)).tolist() == sorted(labels)


def test_probabilities_by_class_find_few_classes_where_their_mean_does_not():
    """Of a network that is sure of a class, a gradient is small however many images have that class."""
    sure = torch.eye(4) * 0.4 + 0.15
    true = torch.tensor([0.75, 0.25, 0.0, 0.0])
    gradient = true @ sure - true
    by_class = Evidence(gradient=gradient, expected=sure).shares()
    by_mean = Evidence(gradient=gradient, expected=sure.mean(0).repeat(4, 1)).shares()
    assert (by_class - true).abs().sum() < 0.6 * (by_mean - true).abs().sum()


def test_known_errors_leave_the_others():
    probabilities = torch.tensor([0.4, 0.3, 0.2, 0.1])
    errors = probabilities - torch.eye(4)[[0, 0, 2]]
    evidence = Evidence(gradient=errors.mean(0), expected=probabilities.repeat(4, 1))
    assert batch_labels(evidence.without(errors[:2], 3), 1).tolist() == [2]


def test_a_momentum_counts_gradients_again():
    training = LocalTraining(batch_size=1, momentum=0.5)
    assert gradients_in(training, 3) == 1 + 1.5 + 1.75
    assert gradients_in(LocalTraining(batch_size=1), 3) == 3
