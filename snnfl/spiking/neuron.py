"""Integrate-and-fire neurons as a pure function of (current, membrane potential).

``v(t) = v(t-1) + I(t)``, ``s(t) = V_th if v(t) >= V_th else 0``, ``v(t) <- v(t) - s(t)``: SNFL equation 5, with
reset by subtraction (Rueckauer et al. 2016). State is an argument and a result, never an attribute.
"""

from __future__ import annotations

import functools
import importlib.util

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnfl.spiking.compiled import compiled

BLOCK = 2048
"""Neurons whose potential, threshold and amplitude stay in the first-level cache while time runs."""


def integrate_and_fire(current: Tensor, threshold: Tensor, potential: Tensor, *, binary: bool = False) -> Tensor:
    """Run integrate-and-fire neurons over consecutive time steps.

    Three implementations agree spike for spike: compiled by Numba on the CPU, by Triton on CUDA, and a loop of PyTorch
    operations for what neither takes.

    Args:
        current: Input current, shape ``[T, N, C, *space]``. One that is constant in time may be expanded.
        threshold: ``V_th > 0``, shape ``[1]`` (one for the layer) or ``[C]`` (one per channel).
        potential: Membrane potential before the first step, shape ``[N, C, *space]``; updated in place to that
            after the last step, so that a simulation may go on in chunks of time. Spikes take its memory format. It
            may be of a longer type than the current.
        binary: Return spikes as uint8 0 or 1, not as ``current``'s type with amplitude ``V_th``.

    Returns:
        Spikes ``s``, of the shape of ``current``.
    """
    if current.device.type == "cpu" and current.dtype in (torch.float32, torch.float64):
        return _scan_numba(current, threshold, potential, binary)
    if current.device.type == "cuda" and _has_triton():
        return _scan_triton(current, threshold, potential, binary)
    return _scan_torch(current, threshold, potential, binary)


def broadcast(per_channel: Tensor, shape: torch.Size) -> Tensor:
    """Give ``[1]`` or ``[C]`` trailing axes, so that it broadcasts over ``shape = [N, C, *space]``."""
    return per_channel.view(-1, *[1] * (len(shape) - 2))


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _scan_torch(current: Tensor, threshold: Tensor, potential: Tensor, binary: bool) -> Tensor:
    level = broadcast(threshold, potential.shape)
    like = potential.expand(len(current), *potential.shape)
    spikes = torch.empty_like(like, dtype=torch.uint8 if binary else current.dtype)
    for step in range(len(current)):
        potential += current[step]
        fired = potential >= level
        potential -= fired * level
        spikes[step] = fired if binary else fired * level
    return spikes


def _scan_triton(current: Tensor, threshold: Tensor, potential: Tensor, binary: bool) -> Tensor:
    from snnfl.spiking.scan_triton import scan  # PyTorch brings Triton along for CUDA alone

    (level, worth, drives, state, out), inner, spikes = _in_memory_order(current, threshold, potential, binary)
    scan(level, worth, drives, state, out, inner)
    return spikes


def _scan_numba(current: Tensor, threshold: Tensor, potential: Tensor, binary: bool) -> Tensor:
    arrays, inner, spikes = _in_memory_order(current, threshold, potential, binary)
    level, worth, drives, state, out = (array.numpy() for array in arrays)
    _fused(level, worth, drives, state, out, inner)
    return spikes


def _in_memory_order(
    current: Tensor, threshold: Tensor, potential: Tensor, binary: bool
) -> tuple[list[Tensor], int, Tensor]:
    """View everything in the order in which the membrane potentials lie in memory.

    Returns:
        The arguments of :func:`_fused`, and what it will have written, in the shape of ``current``. A current that is
        constant in time stays one step.
    """
    drives = current[:1] if current.stride(0) == 0 else current
    amplitude = torch.ones_like(threshold, dtype=torch.uint8) if binary else threshold
    channels_last = not potential.is_contiguous()
    if channels_last:
        drives, potential = drives.movedim(2, -1), potential.movedim(1, -1)
    spikes = torch.empty(len(current), *potential.shape, dtype=amplitude.dtype, device=current.device)
    inner = 1 if channels_last else potential[0, 0].numel()
    rows = [drives.contiguous().flatten(2), potential.view(len(potential), -1), spikes.flatten(2)]
    return [threshold, amplitude, *rows], inner, spikes.movedim(-1, 2) if channels_last else spikes


@compiled
def _fused(
    threshold: NDArray[np.floating],
    amplitude: NDArray[np.generic],
    current: NDArray[np.floating],
    potential: NDArray[np.floating],
    spikes: NDArray[np.generic],
    inner: int,
) -> None:
    """One pass over memory: read each current once, write each spike once (floor: 5 to 16 bytes per neuron-step).

    Threshold and amplitude of a channel are those of ``inner`` neurons that lie side by side.
    """
    steps, images, neurons = spikes.shape
    level, worth = _spread(threshold, inner, neurons), _spread(amplitude, inner, neurons)
    silent = amplitude[0] - amplitude[0]
    for image in range(images):
        for start in range(0, neurons, BLOCK):
            stop = min(start + BLOCK, neurons)
            v = potential[image, start:stop]
            th = level[start:stop]
            amp = worth[start:stop]
            for step in range(steps):
                drive = current[min(step, len(current) - 1), image, start:stop]
                out = spikes[step, image, start:stop]
                for j in range(stop - start):
                    charged = v[j] + drive[j]
                    fired = charged >= th[j]
                    v[j] = charged - th[j] if fired else charged
                    out[j] = amp[j] if fired else silent


@compiled
def _spread(per_channel: NDArray[np.generic], inner: int, neurons: int) -> NDArray[np.generic]:
    """Repeat each channel's value for ``inner`` neurons, and all of them until every neuron has one."""
    if len(per_channel) == 1:
        return np.full(neurons, per_channel[0])
    spread = np.empty(neurons, per_channel.dtype)
    for start in range(0, neurons, inner * len(per_channel)):
        for channel in range(len(per_channel)):
            left = start + channel * inner
            spread[left : left + inner] = per_channel[channel]
    return spread
