from __future__ import annotations

import hypothesis.strategies as st
import networks
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import Tensor

from snnfl.conversion import ConversionConfig, convert
from snnfl.spiking import SpikingNetwork, events, trace
from snnfl.spiking import network as network_module
from snnfl.spiking.events import EventLayer, event_layers


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
        assert expected.shape[3] < layer.together or value.count_nonzero() > events.MAX_DENSITY * value.numel() - 1
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


class Grouped(torch.nn.Module):
    """Convolutions that spikes drive: plain, grouped, dilated, and with padding given as a word."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(2, 4, 3)
        self.plain = torch.nn.Conv2d(4, 4, 3, padding=1)
        self.grouped = torch.nn.Conv2d(4, 4, 3, groups=2, padding=1)
        self.dilated = torch.nn.Conv2d(4, 4, 3, dilation=2, padding=2)
        self.same = torch.nn.Conv2d(4, 4, 3, padding="same")
        self.relu = torch.nn.ReLU()
        self.hidden = torch.nn.Linear(64, 8)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        x = torch.relu(self.plain(x) + self.grouped(x) + self.dilated(x) + self.same(x))
        return self.head(torch.relu(self.hidden(torch.flatten(x, 1))))


def test_layers_that_spikes_drive_are_laid_out_where_events_can():
    graph = trace(Grouped())
    parameters = {f"{node.name}.weight": torch.zeros(4, 4, 3, 3) for node in graph.affines}
    parameters["hidden.weight"] = torch.zeros(8, 64)
    assert sorted(event_layers(graph, parameters)) == ["hidden", "plain"]
    assert event_layers(graph, {name: weight.bfloat16() for name, weight in parameters.items()}) == {}


@pytest.mark.parametrize("model", [networks.Residual, Grouped])
def test_a_simulation_by_events_equals_the_dense_one(model, monkeypatch):
    images = networks.images(16, seed=9)
    network = convert(networks.trained(model), images, ConversionConfig(steps=32))
    sparse = {  # thresholds three times as high make spikes rare
        name: value * 3 if name.endswith("threshold") else value for name, value in network.parameters.items()
    }
    network, used = SpikingNetwork(network.graph, sparse), []
    apply = EventLayer.apply
    monkeypatch.setattr(EventLayer, "apply", lambda *args: used.append(apply(*args)) or used[-1])
    by_events = network.simulate(images, steps=32)[32]
    assert any(found is not None for found in used)
    monkeypatch.setattr(network_module, "event_layers", lambda graph, parameters: {})
    torch.testing.assert_close(by_events, network.simulate(images, steps=32)[32], rtol=1e-12, atol=1e-12)
