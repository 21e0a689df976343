"""A natively trained spiking network as a server rebuilds it: for gradient matching, and with other surrogates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snnfl.models import SpikingModel, SpikingNeurons
from snnfl.models.over_time import OverTime
from snnfl.models.quantised import QuantisedWeight
from snnfl.neurons import ENCODINGS, surrogate_spike
from snnfl.neurons.dynamics import SpikeFunction


class _Linear(OverTime, nn.Linear):
    """A linear layer over time by PyTorch's product, which attacks tap and trace."""

    kind = nn.Linear


@dataclass(frozen=True)
class Stepwise:
    """A spike function that the compiled scans don't know, so that neurons take the reference, step after step.

    Attributes:
        spike: What fires.
    """

    spike: SpikeFunction

    def __call__(self, charged: Tensor, threshold: Tensor) -> Tensor:
        """Return 1 where the neuron fires, else 0."""
        return self.spike(charged, threshold)


def rebuilt(model: SpikingModel) -> SpikingModel:
    """Give a spiking model what its structure tells beside the arrays, in place: its constant thresholds.

    Spikes that an encoding draws are unknown to a server: their mean, the clipped sample, stands in.
    """
    for module in model.modules():
        if isinstance(module, SpikingNeurons) and not module.learns_threshold:
            module.threshold = torch.tensor([module.level])
    if ENCODINGS.find(model.encoding).random:
        model.encoding = "direct"
        model.register_forward_pre_hook(lambda _, given: (given[0].clamp(-1, 1),))
    return model


def in_operations(model: SpikingModel) -> SpikingModel:
    """Let a rebuilt model compute what it does by PyTorch's operations alone, in place, to be traced and batched.

    The compiled scans of :mod:`snnfl.neurons.unrolled` are faster for one network, but cannot be traced.
    """
    for module in rebuilt(model).modules():
        if isinstance(module, SpikingNeurons):
            module.spike = Stepwise(module.spike)  # type: ignore[assignment]  # any spike function will do
        elif isinstance(module, OverTime) and isinstance(module, nn.Linear) and not isinstance(module, QuantisedWeight):
            module.__class__ = _Linear
    return model


def with_surrogate(model: SpikingModel, name: str, slope: float) -> SpikingModel:
    """Let a rebuilt model's spikes have another derivative, in place; what it computes stays."""
    for module in rebuilt(model).modules():
        if isinstance(module, SpikingNeurons):
            module.spike = surrogate_spike(name, slope=slope)
    return model
