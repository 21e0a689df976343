"""Layers driven by events against PyTorch's dense ones."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import Tensor

from snnfl.neurons.events import MAX_DENSITY, EventLayer, density


def spikes(shape: tuple[int, ...], density: float, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Draw values of both signs of which a part isn't zero; pictures lie channels last."""
    draw = torch.Generator().manual_seed(seed)
    fired = torch.rand(shape, generator=draw, dtype=torch.float64) < density
    values = torch.randn(shape, generator=draw, dtype=torch.float64) * fired
    return (values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values).to(dtype)


@given(
    seed=st.integers(0, 2**20),
    batch=st.integers(1, 3),
    inputs=st.sampled_from([1, 3, 8, 11, 16]),
    channels=st.sampled_from([1, 5, 8, 16, 32, 40, 64, 70]),
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    density=st.floats(0, 0.2),
)
def test_equals_the_dense_convolution(seed, batch, inputs, channels, size, kernel, stride, padding, density):
    value = spikes((batch, inputs, *size), density, seed)
    weight, bias = spikes((channels, inputs, *kernel), 1, seed + 1), spikes((channels,), 1, seed + 2)
    layer = EventLayer.of(weight, stride, padding)
    expected = F.conv2d(value, weight, bias, stride, padding)
    found = layer.apply(value, bias)
    if found is None:
        assert expected.shape[3] < layer.together or value.count_nonzero() > MAX_DENSITY * value.numel() - 1
    else:
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [4, 64, 100])
@pytest.mark.parametrize("density", [0, 0.1])
def test_equals_the_dense_linear_layer(dtype, channels, density):
    value = spikes((7, 50), density, 0, dtype)
    weight, bias = spikes((channels, 50), 1, 1, dtype), spikes((channels,), 1, 2, dtype)
    torch.testing.assert_close(EventLayer.of(weight).apply(value, bias), F.linear(value, weight, bias))


def test_any_layout_is_read_and_nothing_is_changed():
    value = spikes((2, 8, 6, 6), 0.1, 0).contiguous()
    weight, bias = spikes((16, 8, 3, 3), 1, 1), spikes((16,), 1, 2)
    copies = value.clone(), weight.clone(), bias.clone()
    found = EventLayer.of(weight).apply(value, bias)
    torch.testing.assert_close(found, F.conv2d(value, weight, bias))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(a, b) for a, b in zip((value, weight, bias), copies, strict=True))


def test_dense_values_and_narrow_outputs_are_left_to_dense_arithmetic():
    weight, bias = spikes((16, 8, 3, 3), 1, 1), torch.zeros(16, dtype=torch.float64)
    layer = EventLayer.of(weight, padding=(1, 1))
    assert layer.apply(spikes((2, 8, 6, 6), 0.5, 0), bias) is None
    assert layer.apply(spikes((2, 8, 6, 3), 0.1, 0), bias) is None
    assert layer.apply(spikes((2, 8, 6, 4), 0.1, 0), bias) is not None


def test_density_is_the_part_that_is_not_zero():
    value = torch.tensor([[0.0, -1.0, 0.25], [2.0, 0.0, 0.0]])
    assert density(value) == density(value.T) == 0.5
    assert density(torch.empty(0, 3)) == 0
