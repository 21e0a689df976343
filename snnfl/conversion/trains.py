"""Spike trains as they are kept between layers: eight time steps to a byte, an eighth of uint8.

On the CPU the neurons of a layer write their spikes straight into the bits. That kernel is a copy of
:func:`snnfl.spiking.integrate_and_fire` with three passes over memory saved: adding a constant to the current, writing
bytes and packing them cost more than the neurons themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnfl.spiking.compiled import compiled
from snnfl.spiking.network import add_drive
from snnfl.spiking.neuron import BLOCK, broadcast, integrate_and_fire

STEPS = 8
"""Time steps in a byte. A chunk of time never crosses the border between two."""


@dataclass(frozen=True)
class Neurons:
    """The neurons of one layer.

    Attributes:
        threshold: ``[1]`` or ``[C]``.
        drive: Added to the current at each step, ``[1]`` or ``[C]``; ``None`` is nothing.
        like: Shape and layout of one image's activations, ``[1, C, *space]``.
    """

    threshold: Tensor
    drive: Tensor | None
    like: Tensor

    @cached_property
    def order(self) -> list[int]:
        """Dimensions of an image as they lie in memory."""
        return sorted(range(1, self.like.dim()), key=self.like.stride, reverse=True)

    @cached_property
    def level(self) -> NDArray[np.floating]:
        """Threshold of every neuron, in that order."""
        return self._spread(self.threshold)

    @cached_property
    def extra(self) -> NDArray[np.floating]:
        """Drive of every neuron, in that order."""
        return self._spread(torch.zeros_like(self.threshold) if self.drive is None else self.drive)

    def rows(self, value: Tensor, *, copy: bool = False) -> NDArray[Any]:
        """View ``[..., N, C, *space]`` as ``[..., N, neurons]``, or copy what isn't laid out like the activations."""
        batch = value.dim() - self.like.dim() + 1
        ordered = value.permute(*range(batch), *(dim + batch - 1 for dim in self.order))
        rows: NDArray[Any] = (ordered.contiguous() if copy else ordered).view(*value.shape[:batch], -1).numpy()
        return rows

    def _spread(self, per_channel: Tensor) -> NDArray[np.floating]:
        (one,) = self.rows(broadcast(per_channel, self.like.shape).expand(self.like.shape), copy=True)
        return cast("NDArray[np.floating]", one)


@dataclass(frozen=True)
class SpikeTrain:
    """The binary spikes of one layer over all time steps.

    Attributes:
        bits: Shape ``[ceil(T / 8), N, C, *space]``, uint8: bit ``k`` of byte ``b`` is the spike at step ``8 b + k``.
        neurons: What fires them. A spike is worth their threshold.
    """

    bits: Tensor
    neurons: Neurons

    @staticmethod
    def silent(steps: int, activation: Tensor, neurons: Neurons) -> SpikeTrain:
        """Allocate the train of neurons that haven't fired yet, in the shape and layout of their activation."""
        bits = torch.empty_like(activation.expand(-(-steps // STEPS), *activation.shape), dtype=torch.uint8)
        return SpikeTrain(bits.zero_(), neurons)

    def record(self, images: slice, start: int, spikes: Tensor) -> None:
        """Write the spikes of consecutive steps of one byte, uint8 0 or 1, ``[length, n, C, *space]``."""
        byte, first = divmod(start, STEPS)
        target = self.bits[byte, images]
        for step, fired in enumerate(spikes, start=first):
            target |= fired << step

    def fire(self, images: slice, start: int, current: Tensor, potential: Tensor) -> None:
        """Run the neurons over consecutive steps of one byte and record their spikes.

        Args:
            images: Which of the N images.
            start: First step.
            current: Shape ``[length, n, C, *space]``.
            potential: Membrane potential, ``[n, C, *space]``, laid out as the activations; updated in place.
        """
        byte, first = divmod(start, STEPS)
        if not _compiled(current):
            drive = self.neurons.drive
            driven = add_drive(current, None if drive is None else drive[None])
            self.record(images, start, integrate_and_fire(driven, self.neurons.threshold, potential, binary=True))
            return
        rows = self.neurons.rows
        bits, state = rows(self.bits[byte, images]), rows(potential)
        _fire(rows(current, copy=True), self.neurons.extra, self.neurons.level, state, bits, first)

    def replay(self, images: slice, start: int, stop: int) -> Tensor:
        """Read the steps ``start..stop``, of one byte, as floats."""
        byte, first = divmod(start, STEPS)
        bits, threshold = self.bits[byte, images], self.neurons.threshold
        if not _compiled(threshold):
            steps = torch.arange(first, first + stop - start, device=bits.device, dtype=torch.uint8)
            fired = bits >> steps.view(-1, *[1] * bits.dim()) & 1
            return fired * broadcast(threshold, bits.shape)
        spikes = torch.empty_like(bits.expand(stop - start, *bits.shape), dtype=threshold.dtype)
        _replay(self.neurons.rows(bits), self.neurons.level, first, self.neurons.rows(spikes))
        return spikes

    def mean(self, start: int, stop: int) -> Tensor:
        """Average over the steps ``start..stop``, ``[N, C, *space]``."""
        total = torch.zeros_like(self.bits[0], dtype=self.neurons.threshold.dtype)
        for step in range(start, stop):
            total += self.bits[step // STEPS] >> step % STEPS & 1
        return total.mul_(broadcast(self.neurons.threshold, total.shape)).div_(stop - start)


def _compiled(value: Tensor) -> bool:
    return value.device.type == "cpu" and value.dtype in (torch.float32, torch.float64)


@compiled
def _fire(
    current: NDArray[np.floating],
    drive: NDArray[np.floating],
    level: NDArray[np.floating],
    potential: NDArray[np.floating],
    bits: NDArray[np.uint8],
    first: int,
) -> None:
    steps, images, neurons = current.shape
    for image in range(images):
        for start in range(0, neurons, BLOCK):
            stop = min(start + BLOCK, neurons)
            v, out = potential[image, start:stop], bits[image, start:stop]
            th, extra = level[start:stop], drive[start:stop]
            for step in range(steps):
                flow, bit = current[step, image, start:stop], np.uint8(1 << (first + step))
                for j in range(stop - start):
                    charged = v[j] + (flow[j] + extra[j])
                    fired = charged >= th[j]
                    v[j] = charged - th[j] if fired else charged
                    out[j] |= bit if fired else np.uint8(0)


@compiled
def _replay(bits: NDArray[np.uint8], amplitude: NDArray[np.floating], first: int, spikes: NDArray[np.floating]) -> None:
    steps, images, neurons = spikes.shape
    silent = amplitude[0] - amplitude[0]
    for image in range(images):
        for start in range(0, neurons, BLOCK):
            stop = min(start + BLOCK, neurons)
            byte, amp = bits[image, start:stop], amplitude[start:stop]
            for step in range(steps):
                out, bit = spikes[step, image, start:stop], np.uint8(1 << (first + step))
                for j in range(stop - start):
                    out[j] = amp[j] if byte[j] & bit else silent
