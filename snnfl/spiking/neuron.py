"""Integrate-and-fire neurons as a pure function of (current, membrane potential).

``v(t) = v(t-1) + I(t)``, ``s(t) = V_th if v(t) >= V_th else 0``, ``v(t) <- v(t) - s(t)``: SNFL equation 5, with
reset by subtraction (Rueckauer et al. 2016). State is an argument and a result, never an attribute.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 2048
"""Neurons whose potential, threshold and amplitude stay in the first-level cache while time runs."""


def integrate_and_fire(current: Tensor, threshold: Tensor, potential: Tensor, *, binary: bool = False) -> Tensor:
    """Run integrate-and-fire neurons over consecutive time steps.

    Args:
        current: Input current, shape ``[T, N, C, *space]``.
        threshold: ``V_th > 0``, shape ``[1]`` (one for the layer) or ``[C]`` (one per channel).
        potential: Membrane potential before the first step, shape ``[N, C, *space]``; updated in place to that
            after the last step, so that a simulation may go on in chunks of time. Spikes take its memory format.
        binary: Return spikes as uint8 0 or 1, not as ``current``'s type with amplitude ``V_th``.

    Returns:
        Spikes ``s``, of the shape of ``current``.
    """
    numba_can = current.device.type == "cpu" and current.dtype in (torch.float32, torch.float64)
    return (_scan_numba if numba_can else _scan_torch)(current, threshold, potential, binary)


def broadcast(per_channel: Tensor, shape: torch.Size) -> Tensor:
    """Give ``[1]`` or ``[C]`` trailing axes, so that it broadcasts over ``shape = [N, C, *space]``."""
    return per_channel.view(-1, *[1] * (len(shape) - 2))


def _scan_torch(current: Tensor, threshold: Tensor, potential: Tensor, binary: bool) -> Tensor:
    level = broadcast(threshold, potential.shape)
    spikes = torch.empty_like(current, dtype=torch.uint8 if binary else current.dtype)
    for step in range(len(current)):
        potential += current[step]
        fired = potential >= level
        potential -= fired * level
        spikes[step] = fired if binary else fired * level
    return spikes


def _scan_numba(current: Tensor, threshold: Tensor, potential: Tensor, binary: bool) -> Tensor:
    level = broadcast(threshold, potential.shape).expand(potential.shape[1:])
    state = potential
    channels_last = not potential.is_contiguous()
    if channels_last:  # all tensors in the order of the membrane potentials in memory
        current, level, state = current.movedim(2, -1), level.movedim(0, -1), potential.movedim(1, -1)
    level = level.contiguous().flatten()
    spikes = torch.empty(current.shape, dtype=torch.uint8 if binary else current.dtype)
    _fused(
        current.contiguous().view(*current.shape[:2], -1).numpy(),
        level.numpy(),
        torch.ones_like(level, dtype=torch.uint8).numpy() if binary else level.numpy(),
        state.view(len(state), -1).numpy(),
        spikes.view(*spikes.shape[:2], -1).numpy(),
    )
    return spikes.movedim(-1, 2) if channels_last else spikes


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _fused(
    current: NDArray[np.floating],
    level: NDArray[np.floating],
    amplitude: NDArray[np.generic],
    potential: NDArray[np.floating],
    spikes: NDArray[np.generic],
) -> None:
    """One pass over memory: read each current once, write each spike once (floor: 5 to 16 bytes per neuron-step)."""
    steps, images, neurons = current.shape
    silent = amplitude[0] - amplitude[0]
    for image in range(images):
        for start in range(0, neurons, BLOCK):
            stop = min(start + BLOCK, neurons)
            v = potential[image, start:stop]
            th = level[start:stop]
            amp = amplitude[start:stop]
            for step in range(steps):
                drive = current[step, image, start:stop]
                out = spikes[step, image, start:stop]
                for j in range(stop - start):
                    charged = v[j] + drive[j]
                    fired = charged >= th[j]
                    v[j] = charged - th[j] if fired else charged
                    out[j] = amp[j] if fired else silent
