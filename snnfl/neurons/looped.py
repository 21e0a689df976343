"""Neurons over consecutive time steps by their reference, and whether a compiled scan computes the same."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from snnfl.neurons import kernel_training
from snnfl.neurons.dynamics import Neuron, Reset, by_subtraction, to_zero, without_reset
from snnfl.neurons.kernels import has_triton
from snnfl.neurons.surrogates import SurrogateSpike

RESETS: dict[Reset, int] = {
    by_subtraction: kernel_training.SUBTRACT,
    to_zero: kernel_training.ZERO,
    without_reset: kernel_training.KEEP,
}


@dataclass(frozen=True)
class How:
    """What isn't differentiated."""

    neuron: Neuron
    steps: int | None
    potentials: bool
    pool: int


def loop(
    current: Tensor, leak: Tensor | float | None, threshold: Tensor, before: Tensor | None, how: How
) -> tuple[Tensor, Tensor]:
    """Return spikes and potentials by the reference, step after step."""
    neuron = replace(how.neuron, leak=leak, threshold=threshold.reshape(-1))
    flows = current.unbind() if how.steps is None else (current,) * how.steps
    state = neuron.at_rest(flows[0])
    if before is not None:
        state = state._replace(potential=before)
    spikes, potentials = [], []
    for flow in flows:
        state, fired, charged = neuron.advance(state, flow)
        spikes.append(fired)
        potentials.append(charged)
    trains = torch.stack(spikes)
    if how.pool > 1:
        trains = pooled(trains, how.pool)
    return trains, torch.stack(potentials) if how.potentials else current.new_empty(0)


def pooled(trains: Tensor, pool: int) -> Tensor:
    """Average spikes ``[T, N, C, H, W]`` over squares."""
    found = functional.avg_pool2d(trains.flatten(0, 1), pool)
    return found.view(*trains.shape[:2], *found.shape[1:])


def fuses(neuron: Neuron, current: Tensor) -> bool:
    """Tell whether the compiled scans compute these neurons on this current."""
    spike = neuron.spike
    return (
        neuron.adaptation is None
        and neuron.recurrent is None
        and neuron.store is None
        and neuron.unit_spikes
        and (current.device.type == "cpu" or (current.device.type == "cuda" and has_triton()))
        and current.dtype in (torch.float32, torch.float64)
        and neuron.threshold.numel() == 1
        and neuron.reset in RESETS
        and isinstance(spike, SurrogateSpike)
        and spike.derivative in kernel_training.DERIVATIVES
        and (not isinstance(neuron.leak, Tensor) or neuron.leak.numel() == 1)
    )


def scalar(value: Tensor | float, like: Tensor) -> Tensor:
    """Return a parameter as a tensor without axes, of a current's type and device."""
    if isinstance(value, Tensor):
        return value.reshape(()).to(like)
    return torch.full((), value, dtype=like.dtype, device=like.device)


def spike_of(neuron: Neuron) -> SurrogateSpike:
    """Return a fused neuron's spike function."""
    if not isinstance(neuron.spike, SurrogateSpike):
        raise TypeError(f"{neuron.spike}: expected a spike function with a surrogate gradient")
    return neuron.spike


@functools.cache
def nothing(axes: int, kind: Any) -> NDArray[Any]:
    """Return an array of so many axes without a number, which kernels take for what isn't given."""
    return np.empty((0,) * axes, kind)
