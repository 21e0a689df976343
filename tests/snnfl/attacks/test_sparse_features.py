"""Errors of a batch out of a gradient whose make is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from snnfl.attacks.sparse_features import Head, solve

CLASSES, FEATURES = 10, 60


def head_of(labels, *, seed=0, sparse=True):
    """Return a last layer's gradient of a batch, and the batch's errors."""
    draw = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(CLASSES, FEATURES, generator=draw) / 4, torch.randn(CLASSES, generator=draw) / 4
    features = torch.randn(len(labels), FEATURES, generator=draw)
    features = features.relu() if sparse else features.abs() + 0.1
    errors = (features @ weight.T + bias).softmax(1) - functional.one_hot(torch.tensor(labels), CLASSES)
    gradient = errors.T @ features / len(labels)
    return Head(weight=weight, gradient=gradient, bias=bias, bias_gradient=errors.mean(0)), errors, features


def found_in(head, count):
    return solve(head, count, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("labels", [[3, 3], [1, 2, 9, 0], [5, 5, 5, 5], [0, 1, 2, 3, 4, 4, 4]])
def test_the_errors_of_sparse_features_are_exact(labels):
    head, errors, features = head_of(labels)
    found = found_in(head, len(labels))
    assert found.checked
    assert sorted(found.labels.tolist()) == sorted(labels)
    nearest = torch.cdist(found.errors.float(), errors).min(0)
    assert float(nearest.values.max()) < 1e-3
    torch.testing.assert_close(found.features[nearest.indices].float(), features, rtol=0, atol=1e-3)


@pytest.mark.parametrize("labels", [[3, 3], [1, 2, 9, 0], [8, 1, 2, 3, 4, 4, 4]])
def test_without_the_bias_labels_are_exact_all_the_same(labels):
    head, *_ = head_of(labels)
    found = found_in(replace(head, bias=None, bias_gradient=None), len(labels))
    assert not found.checked
    assert sorted(found.labels.tolist()) == sorted(labels)


@pytest.mark.parametrize("head", [
    head_of([1, 2, 9, 0], sparse=False)[0],
    replace(head_of([1, 2, 9, 0])[0], bias=torch.ones(CLASSES) * torch.arange(CLASSES)),  # not what was trained
    replace(head_of([1, 2, 9, 0])[0], gradient=torch.linspace(-1, 1, CLASSES * FEATURES).sin().view(CLASSES, -1)),
    replace(head_of([1, 2, 9, 0])[0], gradient=torch.full((CLASSES, FEATURES), torch.nan)),
    replace(head_of([1, 2, 9, 0])[0], gradient=torch.zeros(CLASSES, FEATURES)),
])  # fmt: skip
def test_nothing_is_told_where_nothing_is_known(head):
    assert found_in(head, 4) is None


def test_as_many_images_as_classes_are_too_many():
    assert found_in(head_of([0] * CLASSES)[0], CLASSES) is None


def test_a_large_batch_fills_no_memory():
    draw = torch.Generator().manual_seed(0)
    head = Head(weight=torch.randn(600, 700, generator=draw), gradient=torch.randn(600, 700, generator=draw))
    assert solve(head, 500, draw) is None
