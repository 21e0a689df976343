"""Energy of published networks by hand."""

from __future__ import annotations

import networks
import pytest
import torch
from torch import nn

from snnfl.conversion import fold, trace
from snnfl.metrics.energy import count_spikes
from snnfl.private_snn import PublishedNetwork
from snnfl.private_snn.energy import energy_ratios
from snnfl.rng import generator
from snnfl.spiking import SpikingNetwork


def network(encoding: str = "poisson") -> PublishedNetwork:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4))
    graph = trace(model)
    parameters = {name: array.detach() for name, array in fold(graph, model.state_dict()).items()}
    parameters["0.weight"], parameters["0.bias"] = torch.zeros(3, 2), torch.tensor([1.0, 0.5, 0.0])
    parameters["1.threshold"], parameters["1.leak"] = torch.ones(1), torch.ones(1)
    return PublishedNetwork(graph=graph, parameters=parameters, steps=10, input_shape=(2,), encoding=encoding)


def test_by_hand() -> None:
    """Neurons fire 10, 5 and 0 times; both inputs fire at each of 10 steps, for they are 1."""
    found = energy_ratios(network(), torch.ones(4, 2), generator(0, "spikes"))
    assert found.spikes_per_neuron == 5
    assert found.rate == 0.5
    ann = 4.6 * (6 + 12)
    assert found.paper == pytest.approx(ann / (0.9 * (6 * 10 + 12 * 5)))
    assert found.paper_per_step == pytest.approx(10 * found.paper)
    assert found.compute == pytest.approx(ann / (0.9 * (2 * 10 * 3 + 15 * 4)))
    assert found.total < found.compute * 10


def test_a_constant_image_is_multiplied_once() -> None:
    found = energy_ratios(network("direct"), torch.ones(4, 2), None)
    ann = 4.6 * (6 + 12)
    assert found.paper == pytest.approx(ann / (4.6 * 6 + 0.9 * 12 * 5))
    assert found.compute == pytest.approx(found.paper)


def test_maxima_over_spikes_are_counted_as_in_the_converted_network() -> None:
    module = networks.trained(networks.Gated)
    graph = trace(module)
    parameters = dict(fold(graph, module.state_dict()))
    parameters |= {f"{node.name}.threshold": torch.full((1,), 0.6).double() for node in graph.spikes}
    leaks = {f"{node.name}.leak": torch.ones(1).double() for node in graph.spikes}
    published = PublishedNetwork(
        graph=graph, parameters={**parameters, **leaks}, steps=9, input_shape=(2, 6, 6), encoding="direct"
    )
    found = energy_ratios(published, networks.images(), None)
    expected = count_spikes(SpikingNetwork(graph, parameters, "zero"), networks.images(), steps=9)
    assert found.compute == pytest.approx(expected.ann_energy.compute / expected.energy.compute)
    assert found.total == pytest.approx(expected.ann_energy.total / expected.energy.total)
