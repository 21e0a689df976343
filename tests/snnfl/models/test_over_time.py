"""Layers with a time axis against the same layers step by step; bfloat16 against float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from snnfl.models.over_time import fold_time, multiply_in_bfloat16
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
