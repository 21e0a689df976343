"""Spike trains as they are kept between layers: eight time steps to a byte, an eighth of uint8.

Of neurons that fire several times a step, or take spikes back, a train holds a byte for each step.

On the CPU the neurons of a layer write their spikes straight into the bits, by
:func:`snnfl.neurons.kernel_numba.scan_to_bits`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnfl.neurons import Neuron, NeuronState, broadcast, scan
from snnfl.neurons.compiled import compiled
from snnfl.neurons.kernel_numba import BLOCK, scan_to_bits
from snnfl.neurons.kernels import runs_compiled
from snnfl.spiking.in_time import add_drive

STEPS = 8
"""Time steps in a byte. A chunk of time never crosses the border between two."""


@dataclass(frozen=True)
class Layer:
    """The neurons of one layer, and how their activations lie in memory.

    Attributes:
        neuron: Their parameters.
        drive: Added to the current at each step, ``[1]`` or ``[C]``; ``None`` is nothing.
        like: Shape and layout of one image's activations, ``[1, C, *space]``.
    """

    neuron: Neuron
    drive: Tensor | None
    like: Tensor

    @cached_property
    def order(self) -> list[int]:
        """Dimensions of an image as they lie in memory."""
        return sorted(range(1, self.like.dim()), key=self.like.stride, reverse=True)

    @cached_property
    def level(self) -> NDArray[np.floating]:
        """Threshold of every neuron, in that order."""
        return self._spread(self.neuron.threshold)

    @cached_property
    def extra(self) -> NDArray[np.floating]:
        """Drive of every neuron, in that order."""
        return self._spread(torch.zeros_like(self.neuron.threshold) if self.drive is None else self.drive)

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
        layer: What fires them. A spike is worth the threshold.
    """

    bits: Tensor
    layer: Layer

    @property
    def threshold(self) -> Tensor:
        """Threshold of the neurons, ``[1]`` or ``[C]``."""
        return self.layer.neuron.threshold

    @staticmethod
    def silent(steps: int, activation: Tensor, layer: Layer) -> SpikeTrain:
        """Allocate the train of neurons that haven't fired yet, in the shape and layout of their activation."""
        bits = torch.empty_like(activation.expand(-(-steps // STEPS), *activation.shape), dtype=torch.uint8)
        return SpikeTrain(bits.zero_(), layer)

    def record(self, images: slice, start: int, spikes: Tensor) -> None:
        """Write the spikes of consecutive steps of one byte, uint8 0 or 1, ``[length, n, C, *space]``."""
        byte, first = divmod(start, STEPS)
        target = self.bits[byte, images]
        for step, fired in enumerate(spikes, start=first):
            target |= fired << step

    def fire(self, images: slice, start: int, current: Tensor, state: NeuronState) -> None:
        """Run the neurons over consecutive steps of one byte and record their spikes.

        Args:
            images: Which of the N images.
            start: First step.
            current: Shape ``[length, n, C, *space]``.
            state: Before these steps, ``[n, C, *space]``, laid out as the activations; updated in place.
        """
        byte, first = divmod(start, STEPS)
        layer, rows, potential = self.layer, self.layer.rows, state.potential
        if not runs_compiled(layer.neuron, current):
            driven = add_drive(current, None if layer.drive is None else layer.drive[None])
            self.record(images, start, scan(layer.neuron, state, driven, binary=True))
            return
        bits, charge = rows(self.bits[byte, images]), rows(potential)
        scan_to_bits(layer.level, layer.extra, rows(current, copy=True), charge, bits, first)

    def replay(self, images: slice, start: int, stop: int) -> Tensor:
        """Read the steps ``start..stop``, of one byte, as floats."""
        byte, first = divmod(start, STEPS)
        bits, threshold = self.bits[byte, images], self.threshold
        if not runs_compiled(self.layer.neuron, threshold):
            steps = torch.arange(first, first + stop - start, device=bits.device, dtype=torch.uint8)
            fired = bits >> steps.view(-1, *[1] * bits.dim()) & 1
            return fired * broadcast(threshold, bits.shape)
        spikes = torch.empty_like(bits.expand(stop - start, *bits.shape), dtype=threshold.dtype)
        _replay(self.layer.rows(bits), self.layer.level, first, self.layer.rows(spikes))
        return spikes

    @property
    def fires(self) -> bool:
        """Whether any neuron ever fires."""
        return bool(self.bits.any())

    def mean(self, start: int, stop: int) -> Tensor:
        """Average over the steps ``start..stop``, ``[N, C, *space]``."""
        total = torch.zeros_like(self.bits[0], dtype=self.threshold.dtype)
        for step in range(start, stop):
            total += self.bits[step // STEPS] >> step % STEPS & 1
        return total.mul_(broadcast(self.threshold, total.shape)).div_(stop - start)


@dataclass(frozen=True)
class CountTrain:
    """The spikes of one layer of neurons that count them, over all time steps: what :class:`SpikeTrain` is of others.

    Attributes:
        numbers: Shape ``[T, N, C, *space]``, int8: spikes at each step, negative where they are taken back.
        layer: What fires them. A spike is worth the threshold.
    """

    numbers: Tensor
    layer: Layer

    @staticmethod
    def silent(steps: int, activation: Tensor, layer: Layer) -> CountTrain:
        """Allocate the train of neurons that haven't fired yet, in the shape and layout of their activation."""
        return CountTrain(torch.empty_like(activation.expand(steps, *activation.shape), dtype=torch.int8), layer)

    def record(self, images: slice, start: int, spikes: Tensor) -> None:
        """Write the numbers of spikes of consecutive steps, ``[length, n, C, *space]``."""
        self.numbers[start : start + len(spikes), images] = spikes

    def fire(self, images: slice, start: int, current: Tensor, state: NeuronState) -> None:
        """Run the neurons over consecutive steps and record their spikes, as :meth:`SpikeTrain.fire`."""
        drive = self.layer.drive
        driven = add_drive(current, None if drive is None else drive[None])
        self.record(images, start, scan(self.layer.neuron, state, driven, binary=True))

    def replay(self, images: slice, start: int, stop: int) -> Tensor:
        """Read the steps ``start..stop`` as floats."""
        threshold = self.layer.neuron.threshold
        return self.numbers[start:stop, images] * broadcast(threshold, self.numbers[0].shape)

    @property
    def fires(self) -> bool:
        """Whether any neuron ever fires."""
        return bool(self.numbers.any())

    def mean(self, start: int, stop: int) -> Tensor:
        """Average over the steps ``start..stop``, ``[N, C, *space]``."""
        threshold = self.layer.neuron.threshold
        total = self.numbers[start:stop].sum(0).to(threshold.dtype)
        return total.mul_(broadcast(threshold, total.shape)).div_(stop - start)


Train: TypeAlias = SpikeTrain | CountTrain


def silent(steps: int, activation: Tensor, layer: Layer) -> Train:
    """Allocate the train of neurons that haven't fired yet, of whatever kind they are."""
    return (CountTrain if layer.neuron.counts else SpikeTrain).silent(steps, activation, layer)


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
