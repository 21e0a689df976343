"""Layers with a time axis against the same layers step by step; oneDNN's products and bfloat16 against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from snnfl.models.over_time import LARGE, fold_time, multiply_in_bfloat16, product
from snnfl.rng import generator


def draw(*shape: int, purpose: str = "values") -> Tensor:
    return torch.randn(shape, generator=generator(0, purpose))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 4, 3), (3, 6, 6)),
        (nn.Conv1d(3, 4, 3), (3, 6)),
        (nn.Linear(5, 4), (5,)),
        (nn.MaxPool2d(2), (3, 6, 6)),
        (nn.AvgPool2d(2), (3, 6, 6)),
        (nn.Flatten(), (3, 6, 6)),
        (nn.BatchNorm2d(3).eval(), (3, 6, 6)),
        (nn.BatchNorm1d(5).eval(), (5,)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_folded_layer_is_the_layer_at_each_step(layer, shape):
    values = draw(4, 2, *shape)
    expected = torch.stack([layer(step) for step in values])
    before = repr(layer)
    fold_time(layer)
    torch.testing.assert_close(layer(values), expected)
    assert repr(layer) == before


def test_batch_normalisation_is_over_time_and_batch():
    values = draw(4, 2, 3, 5, 5)
    ordinary, folded = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    fold_time(folded)
    torch.testing.assert_close(folded(values).flatten(0, 1), ordinary(values.flatten(0, 1)))
    torch.testing.assert_close(folded.running_var, ordinary.running_var)


def test_large_products_are_as_exact_as_pytorchs():
    left, right = draw(200, 512, purpose="left").requires_grad_(), draw(256, 512, purpose="right").requires_grad_()
    assert len(left) * right.numel() >= LARGE
    layer = nn.Linear(512, 256)
    layer.weight.data.copy_(right.detach())
    fold_time(layer)
    found = layer(left.view(20, 10, 512)).flatten(0, 1)
    assert "Product" in str(found.grad_fn.next_functions[0][0].next_functions[0][0].next_functions)
    weights = draw(200, 256, purpose="weights")
    (found * weights).sum().backward()
    exact = left.detach().double() @ right.detach().double().T + layer.bias.detach().double()
    assert (found - exact).abs().max() < 1e-5 * exact.abs().max()
    for gradient, expected in (
        (left.grad, weights.double() @ right.detach().double()),
        (layer.weight.grad, weights.double().T @ left.detach().double()),
    ):
        assert (gradient - expected).abs().max() < 1e-5 * expected.abs().max()


def test_products_differentiate_twice_and_under_vmap():
    left, right = draw(3, 4).double().requires_grad_(), draw(5, 4, purpose="right").double()
    # the layer takes float32 alone; the formula of the gradients doesn't
    found = product(left.float(), right.float())
    (first,) = torch.autograd.grad(found.square().sum(), left, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), left)
    gram = right.T @ right
    torch.testing.assert_close(second, 8 * left.detach() @ gram @ gram, rtol=1e-5, atol=1e-5)
    several = draw(2, 3, 4)
    together = torch.vmap(product, in_dims=(0, None))(several, right.float())
    torch.testing.assert_close(together, several @ right.float().T)


def test_bfloat16_loses_nothing_of_spikes_and_little_of_weights():
    layers = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(64, 8))
    fold_time(layers)
    spikes = (draw(3, 2, 2, 6, 6) > 0).float() / 4  # means over a pool of 2x2
    exact = layers(spikes)
    multiply_in_bfloat16(layers, True)
    rounded = layers(spikes)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.02 * exact.abs().max()
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.copy_(parameter.bfloat16().float())
    multiply_in_bfloat16(layers, False)
    first = layers[0](spikes)
    multiply_in_bfloat16(layers, True)
    torch.testing.assert_close(layers[0](spikes), first.bfloat16().float())


def test_large_products_under_autocast_are_pytorchs():
    layers = nn.Sequential(nn.Linear(512, 512))
    inputs = draw(1, 64, 512)
    assert 64 * layers[0].weight.numel() >= LARGE
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = layers(inputs)
        fold_time(layers)
        assert torch.equal(layers(inputs), expected)
