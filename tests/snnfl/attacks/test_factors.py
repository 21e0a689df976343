"""Gradients as factors against the same gradients as matrices."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import grad, vmap
from torch.nn import functional

from snnfl.attacks import factors
from snnfl.attacks.factors import Factors, factored_gradient
from snnfl.attacks.local import LocalTraining, cosine_distance, simulate


def network(arrays, inputs):
    """Take a small layer, a layer that is used twice, and the logits."""
    hidden = functional.linear(inputs, arrays["first"], arrays["bias"]).tanh()
    for _ in range(2):
        hidden = functional.linear(hidden, arrays["twice"]).tanh()
    return functional.linear(hidden, arrays["last"])


def problem():
    draw = torch.Generator().manual_seed(0)
    shapes = {"first": (30, 20), "bias": (30,), "twice": (30, 30), "last": (10, 30)}
    arrays = {name: torch.randn(shape, generator=draw, dtype=torch.float64) / 5 for name, shape in shapes.items()}
    images = torch.randn(4, 3, 20, generator=draw, dtype=torch.float64)
    labels = functional.one_hot(torch.tensor([1, 2, 7]), 10).double()
    wanted = {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}
    return arrays, images, labels, wanted


def test_only_large_weights_are_factored(monkeypatch):
    arrays, images, labels, _ = problem()
    assert not any(isinstance(value, Factors) for value in gradient(arrays, images, labels).values())
    monkeypatch.setattr(factors, "LARGE", 400)
    found = gradient(arrays, images, labels)
    assert [name for name, value in found.items() if isinstance(value, Factors)] == ["first", "twice"]


def gradient(arrays, images, labels):
    return factored_gradient(network, arrays, tuple(arrays), images[0], labels)


def test_factors_make_the_gradient_and_its_products(monkeypatch):
    monkeypatch.setattr(factors, "LARGE", 0)
    arrays, images, labels, wanted = problem()
    plain = simulate(network, arrays, tuple(arrays), images[0], labels, LocalTraining(batch_size=3))
    for name, found in gradient(arrays, images, labels).items():
        if isinstance(found, Factors):
            torch.testing.assert_close(found.slopes.T @ found.inputs, plain[name])
            torch.testing.assert_close(found.inner(wanted[name]), (plain[name] * wanted[name]).sum())
            torch.testing.assert_close(found.square(), plain[name].square().sum())
        else:
            torch.testing.assert_close(found, plain[name])


@pytest.mark.parametrize("large", [0, 2**17])
def test_images_have_the_same_slope_for_all_lanes(monkeypatch, large):
    monkeypatch.setattr(factors, "LARGE", large)
    arrays, images, labels, wanted = problem()
    local = LocalTraining(batch_size=3)

    def factored(images):
        return cosine_distance(factored_gradient(network, arrays, tuple(wanted), images, labels), wanted)

    def dense(images):
        return cosine_distance(simulate(network, arrays, tuple(wanted), images, labels, local), wanted)

    torch.testing.assert_close(vmap(grad(factored))(images), vmap(grad(dense))(images))


def test_layers_of_a_module_are_seen(monkeypatch):
    monkeypatch.setattr(factors, "LARGE", 0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))
    arrays = {name: parameter.detach() for name, parameter in model.named_parameters()}
    _, images, labels, _ = problem()

    def function(arrays, inputs):
        return torch.func.functional_call(model, dict(arrays), (inputs,))

    found = factored_gradient(function, arrays, tuple(arrays), images[0].float(), labels.float())
    assert {name for name, value in found.items() if isinstance(value, Factors)} == {"0.weight", "2.weight"}
