"""The networks of the papers, spike by spike against spikingjelly in float64."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from torch import Tensor, nn

from snnfl.config import ModelConfig
from snnfl.conversion import ConversionConfig, convert
from snnfl.models import build_model
from snnfl.spiking import SpikingNetwork, to_spikingjelly
from snnfl.torchvision_guard import guard

STEPS = 9
"""More than a chunk of time."""

SHAPES = {
    "lenet5": (1, 28, 28),
    "convnet": (1, 28, 28),
    "vgg16": (3, 32, 32),
    "resnet20": (3, 32, 32),
    "resnet20_snfl": (3, 32, 32),
}


def pictures(name: str, count: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, *SHAPES[name], generator=draw, dtype=torch.float64)


def settled(name: str) -> nn.Module:
    """Build a model whose batch normalisation knows its activations, so that every layer spikes."""
    model = build_model(
        ModelConfig(name=name), input_shape=SHAPES[name], classes=10, generator=torch.Generator().manual_seed(0)
    ).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics become those of the one batch that follows
    with torch.no_grad():
        model(pictures(name, 4, seed=1))
    return model.eval()


def their_trains(network: SpikingNetwork, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Simulate with spikingjelly, one time step after the other."""
    guard()
    from spikingjelly.activation_based.neuron import IFNode

    module, steps = to_spikingjelly(network), defaultdict[str, list[Tensor]](list)
    for name, each in module.named_modules():
        if isinstance(each, IFNode):
            each.register_forward_hook(lambda m, i, spikes, name=name: steps[name].append(spikes != 0))
    with torch.no_grad():
        logits = torch.stack([module(images) for _ in range(STEPS)]).mean(0)
    return logits, {name: torch.stack(parts) for name, parts in steps.items()}


@pytest.mark.parametrize(
    "options", [{}, {"thresholds": "channel_mmse", "initial_potential": "half"}], ids=["paper", "fast"]
)
@pytest.mark.parametrize("name", SHAPES)
def test_every_spike_is_spikingjellys(name, options):
    model = settled(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    network = convert(model, pictures(name, 2, seed=2), ConversionConfig(steps=STEPS, **options))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    images = pictures(name, 2, seed=3)
    recording = network.record(images)
    logits, found = recording.logits, recording.spikes
    expected_logits, expected = their_trains(network, images)
    assert found.keys() == expected.keys() == network.thresholds.keys()
    for layer, spikes in expected.items():
        assert spikes.any(), f"a silent layer proves nothing: {layer}"
        assert torch.equal(found[layer], spikes), layer
    torch.testing.assert_close(logits, expected_logits, rtol=1e-10, atol=1e-10)
