"""A last layer's gradient is made of features of either sign, and taken apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from snnfl.attacks.dense_features import solve_dense
from snnfl.attacks.sparse_features import Head, solve

CLASSES, FEATURES = 10, 24


def head_of(labels: list[int], *, seed: int = 0, biased: bool = True) -> tuple[Head, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    weight, bias = 0.3 * torch.randn(CLASSES, FEATURES, generator=draw), 0.1 * torch.randn(CLASSES, generator=draw)
    features = torch.randn(len(labels), FEATURES, generator=draw).tanh()
    errors = (features @ weight.T + biased * bias).softmax(1)
    errors = errors - functional.one_hot(torch.tensor(labels), CLASSES)
    head = Head(weight=weight, gradient=errors.T @ features / len(labels))
    return (replace(head, bias=bias, bias_gradient=errors.mean(0)) if biased else head), errors, features


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("labels", [[3, 3], [1, 9], [1, 2, 9], [7, 7, 7], [5, 0, 5, 2]])
def test_errors_and_features_of_either_sign_are_exact(labels: list[int], biased: bool) -> None:
    head, errors, features = head_of(labels, biased=biased)
    found = solve_dense(head, len(labels), torch.Generator().manual_seed(0))
    assert found is not None
    assert sorted(found.labels.tolist()) == sorted(labels)
    nearest = torch.cdist(found.errors.float(), errors).min(0)
    assert float(nearest.values.max()) < 1e-3
    torch.testing.assert_close(found.features[nearest.indices].float(), features, rtol=0, atol=1e-2)
    sparse = solve(head, len(labels), torch.Generator().manual_seed(0))
    assert sparse is None or len(sparse.labels) < len(labels) or not sparse.checked


HEAD = head_of([1, 2, 9])[0]


@pytest.mark.parametrize("head", [
    replace(HEAD, weight=HEAD.weight.flip(0)),  # not what was trained
    replace(HEAD, gradient=0.1 * torch.linspace(-1, 1, CLASSES * FEATURES).sin().view(CLASSES, -1)),
    replace(HEAD, gradient=torch.full((CLASSES, FEATURES), torch.nan)),
    replace(HEAD, gradient=torch.zeros(CLASSES, FEATURES)),
])  # fmt: skip
def test_nothing_is_told_where_nothing_is_known(head: Head) -> None:
    assert solve_dense(head, 3, torch.Generator().manual_seed(0)) is None


def test_more_images_than_half_of_the_classes_are_too_many() -> None:
    assert solve_dense(head_of([0, 1, 2, 3, 4, 5])[0], 6, torch.Generator()) is None
