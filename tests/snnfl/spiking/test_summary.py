"""A network in a few lines."""

from __future__ import annotations

import networks
import pytest
import torch

from snnfl.config import ModelConfig
from snnfl.conversion import ConversionConfig, convert
from snnfl.models import build_model
from snnfl.spiking import SpikingNetwork


def test_a_small_network_is_shown_whole():
    config = ConversionConfig(steps=12, thresholds="channel_mmse", initial_potential="half", calibration="potential")
    network = convert(networks.trained(networks.Plain), networks.images(8), config)
    low, high = (getattr(network.thresholds["relu"], end)() for end in ("min", "max"))
    first, second, *rows = repr(network).splitlines()
    size = sum(array.numel() for name, array in network.parameters.items() if name.endswith(("weight", "bias")))
    assert first == f"SpikingNetwork: 2 spiking layers, {size} weights and biases, float64 on cpu"
    assert second == "  steps=12, initial_potential=half, readout=all"
    assert [row.split()[0] for row in rows] == ["conv", "relu", "hidden", "relu_hidden", "head"]
    assert rows[0] == "  conv         conv2d   4 x 2 x 3 x 3"
    assert rows[1] == f"  relu         neurons  4 thresholds from {low:.3g} to {high:.3g}, potential"


@pytest.mark.parametrize("name", ["lenet5", "resnet20", "vgg16"])
def test_a_large_network_takes_a_few_lines(name):
    generator = torch.Generator().manual_seed(0)
    model = build_model(ModelConfig(name=name), input_shape=(3, 32, 32), classes=10, generator=generator)
    network = convert(model, torch.rand(2, 3, 32, 32, generator=generator), ConversionConfig(steps=2))
    lines = repr(network).splitlines()
    assert len(lines) <= 2 + 10
    assert max(map(len, lines)) <= 100
    last = network.graph.affines[-1]
    assert lines[-1].split() == [
        last.name,
        "linear",
        "10",
        "x",
        str(network.parameters[f"{last.name}.weight"].shape[1]),
    ]


def test_it_is_no_conversion_to_print_a_network_without_layers():
    """A graph that somebody built by hand, of neurons alone."""
    network = convert(networks.trained(networks.Plain), networks.images(8), ConversionConfig(steps=2))
    neurons = [node for node in network.graph.nodes if node.name == "relu"]
    alone = SpikingNetwork(type(network.graph)((neurons[0],), input="conv"), {"relu.threshold": torch.ones(1)})
    assert repr(alone).splitlines()[-1] == "  relu  neurons  threshold 1"
