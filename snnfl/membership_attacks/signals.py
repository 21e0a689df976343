"""Ask a network: what membership attacks see of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from snnfl.models import SpikingModel
from snnfl.spiking import SpikingNetwork
from snnfl.threat import Signals

AnyNetwork: TypeAlias = nn.Module | SpikingNetwork
"""An ordinary network, one trained as a spiking one, or a converted one."""

BATCH = 256
"""Samples per forward pass."""

DROPPED = 0.2
"""Part of a sample's values that is blanked (Guan et al. 2025 average over such samples)."""

REPETITIONS = 8
"""Altered copies of each sample."""


@torch.inference_mode()
def measure(
    network: AnyNetwork, inputs: Tensor, *, perturbed: bool = False, white_box: bool = False, batch: int = BATCH
) -> Signals:
    """Ask a network in evaluation mode about samples, each in the same way: nothing here knows who is a member.

    Args:
        network: Maps ``[batch, *input_shape]`` to logits ``[batch, classes]``.
        inputs: ``[N, *input_shape]``, on its device.
        perturbed: Whether to ask about altered samples, too: :data:`REPETITIONS` forward passes more.
        white_box: Whether to look at hidden spikes, of a spiking network: another forward pass.
        batch: Samples at a time.
    """
    modules = list(network.modules()) if isinstance(network, nn.Module) else []
    modes = [(module, module.training) for module in modules]
    for module in modules:
        module.training = False
    try:
        parts = torch.split(inputs, batch)
        answers = [_answer(network, part) for part in parts]
        logits = torch.cat([logits for logits, _ in answers])
        potentials = [potential for _, potential in answers if potential is not None]
        looked = white_box and isinstance(network, SpikingModel | SpikingNetwork)
        inside = [_inside(_spikes(network, part)) for part in parts] if looked else []
        return Signals(
            logits=logits,
            potentials=torch.cat(potentials) if potentials else None,
            perturbed=_perturbed(network, inputs, batch) if perturbed else None,
            counts=torch.cat([counts for counts, _ in inside]) if inside else None,
            timing=torch.cat([timing for _, timing in inside]) if inside else None,
        )
    finally:
        for module, mode in modes:
            module.training = mode


def _answer(network: AnyNetwork, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return logits and, of a spiking network, its output neurons' last potentials: one forward pass for both.

    A converted network's outputs never fire: what they have summed up, over T, are its logits.
    """
    if not isinstance(network, SpikingModel):
        logits = network(inputs).float().cpu()
        return logits, logits if isinstance(network, SpikingNetwork) else None
    currents, readout = network.currents(inputs), network.readout
    logits = readout(currents)
    if readout.kind == "final_potential":
        return logits.float().cpu(), logits.float().cpu()
    return logits.float().cpu(), readout.neurons.over_time(currents).potentials[-1].float().cpu()


def _perturbed(network: Callable[[Tensor], Tensor], inputs: Tensor, batch: int) -> Tensor:
    """Return logits of altered samples, ``[P, N, classes]``; the blanked places are the same for every network."""
    draw = torch.Generator(inputs.device).manual_seed(0)
    found = []
    for _ in range(REPETITIONS):
        kept = torch.rand(inputs.shape, generator=draw, device=inputs.device) >= DROPPED
        found.append(torch.cat([network(part).float().cpu() for part in torch.split(inputs * kept, batch)]))
    return torch.stack(found)


def _spikes(network: AnyNetwork, inputs: Tensor) -> list[Tensor]:
    """Return each hidden layer's spikes, ``[T, N, ...]``."""
    if isinstance(network, SpikingModel):
        return [layer.spikes for layer in network.record(inputs).values()]
    return list(network.record(inputs).spikes.values()) if isinstance(network, SpikingNetwork) else []


def _inside(layers: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return spikes by neuron or channel ``[N, neurons]``, and each layer's share of firing neurons over time."""
    trains = [spikes.float() for spikes in layers]
    counts = [train.sum(0).flatten(2).sum(2) if train.dim() > 3 else train.sum(0) for train in trains]
    timing = [train.flatten(2).mean(2).T for train in trains]
    return torch.cat(counts, 1).cpu(), torch.cat(timing, 1).cpu()
