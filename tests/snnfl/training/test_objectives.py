"""The objectives against their equations, on models small enough to write them out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from snnfl.training import cross_entropy, exchangeable, model_contrastive, proximal


def build(seed: int = 0) -> nn.Sequential:
    draw = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        for array in model.parameters():
            array.copy_(torch.randn(array.shape, generator=draw))
    return model


def batch(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(6, 4, generator=draw), torch.randint(3, (6,), generator=draw)


def test_the_proximal_term_is_half_mu_times_the_squared_distance() -> None:
    model, (inputs, labels) = build(), batch()
    model[3].bias.requires_grad_(False)  # a frozen parameter doesn't move, so it has no part in it
    objective = proximal(model, 0.3)
    assert objective(model, inputs, labels) == cross_entropy(model, inputs, labels)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1
    distance = sum(0.1**2 * p.numel() for p in model.parameters() if p.requires_grad)
    expected = cross_entropy(model, inputs, labels) + 0.15 * distance
    loss = objective(model, inputs, labels)
    torch.testing.assert_close(loss, expected)
    plain, term = (torch.autograd.grad(value, model[0].weight)[0] for value in (expected, loss))
    torch.testing.assert_close(term - plain, torch.full((5, 4), 0.3 * 0.1))


def test_the_contrastive_term_is_that_of_the_paper() -> None:
    model, previous, (inputs, labels) = build(), build(7), batch()
    objective = model_contrastive(model, exchangeable(previous), mu=2.0, temperature=0.5)
    received = build()
    with torch.no_grad():
        for parameter in model.parameters():  # the model that is trained has moved on, the received one hasn't
            parameter += 0.1
    with torch.no_grad():
        z, z_glob, z_prev = model[:-1](inputs), received.eval()[:-1](inputs), previous.eval()[:-1](inputs)
    total = 0.0
    for row, to_global, to_previous in zip(z, z_glob, z_prev, strict=True):
        similar = [math.exp(float(row @ o / (row.norm() * o.norm())) / 0.5) for o in (to_global, to_previous)]
        total -= math.log(similar[0] / sum(similar))
    expected = functional.cross_entropy(model(inputs), labels).item() + 2.0 * total / 6
    model.train()
    assert objective(model, inputs, labels).item() == pytest.approx(expected, rel=1e-5)


def test_without_a_previous_model_of_its_own_the_contrastive_term_says_nothing() -> None:
    model, (inputs, labels) = build(), batch()
    objective = model_contrastive(model, exchangeable(model), mu=3.0, temperature=0.5)
    loss = objective(model, inputs, labels)
    assert loss.item() == pytest.approx(cross_entropy(model, inputs, labels).item() + 3 * math.log(2), rel=1e-5)
    for with_term, without in zip(
        torch.autograd.grad(loss, list(model.parameters())),
        torch.autograd.grad(cross_entropy(model, inputs, labels), list(model.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(with_term, without, atol=1e-5, rtol=1e-4)


def test_the_other_models_are_left_alone() -> None:
    model, previous, (inputs, labels) = build(), build(7), batch()
    kept = {name: array.clone() for name, array in exchangeable(previous).items()}
    objective = model_contrastive(model, exchangeable(previous), mu=1.0, temperature=0.5)
    before = objective(model, inputs, labels)
    before.backward()
    assert all(torch.equal(array, kept[name]) for name, array in exchangeable(previous).items())
    assert all(parameter.grad is None for parameter in previous.parameters())
    with torch.no_grad():
        previous[0].weight.zero_()  # the objective has copies of its own
    torch.testing.assert_close(objective(model, inputs, labels), before)


def test_a_model_without_an_output_layer_of_its_own_is_refused() -> None:
    class Opaque(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

    with pytest.raises(TypeError, match=r"Opaque: MOON compares .* nn.Sequential"):
        model_contrastive(Opaque(), exchangeable(Opaque()), mu=1.0, temperature=0.5)
    with pytest.raises(ValueError, match=r"'0.weight' is missing"):
        model_contrastive(build(), {}, mu=1.0, temperature=0.5)
