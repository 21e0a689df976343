"""Layers of a simulation that spikes drive, against the dense ones."""

from __future__ import annotations

import networks
import pytest
import torch
from torch import Tensor

from snnfl.conversion import ConversionConfig, convert
from snnfl.neurons.events import EventLayer
from snnfl.spiking import SpikingNetwork, trace
from snnfl.spiking import network as network_module
from snnfl.spiking.events import event_layers


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
