"""Scans of integrate-and-fire neurons for the CPU, compiled by Numba: the state stays in the cache while time runs."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from snnfl.neurons.compiled import compiled

BLOCK = 2048
"""Neurons whose potential, threshold and amplitude stay in the first-level cache while time runs."""

Reals: TypeAlias = NDArray[np.floating]


@compiled
def advance(potential: np.floating, current: np.floating, threshold: np.floating) -> tuple[np.floating, bool]:
    """Take one neuron's step, as :meth:`snnfl.neurons.Neuron.step`; return its potential and whether it fired."""
    charged = potential + current
    fired = charged >= threshold
    return charged - threshold if fired else charged, fired


@compiled
def scan(
    threshold: Reals,
    amplitude: NDArray[np.generic],
    current: Reals,
    potential: Reals,
    spikes: NDArray[np.generic],
    inner: int,
) -> None:
    """Run the neurons of a layer; potentials and spikes are written in place.

    One pass over memory: each current is read once, each spike written once (floor: 5 to 16 bytes per neuron-step).

    Args:
        threshold: Shape ``[1]`` or ``[C]``.
        amplitude: What a spike is worth, of the shape of ``threshold`` and the type of ``spikes``.
        current: Shape ``[T, N, neurons]``, or ``[1, N, neurons]`` if it is constant in time.
        potential: Shape ``[N, neurons]``.
        spikes: Shape ``[T, N, neurons]``.
        inner: Neurons of one channel that lie side by side.
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
                    v[j], fired = advance(v[j], drive[j], th[j])
                    out[j] = amp[j] if fired else silent


@compiled
def scan_counts(
    threshold: Reals,
    current: Reals,
    potential: Reals,
    count: NDArray[np.int32],
    spikes: NDArray[np.generic],
    inner: int,
    how: tuple[bool, int, int],
    worth: bool,
) -> None:
    """Run neurons that may fire several spikes in a step, and take them back; all states are written in place.

    Args:
        threshold: Shape ``[1]`` or ``[C]``.
        current: Shape ``[T, N, neurons]``, or ``[1, N, neurons]`` if it is constant in time.
        potential: Shape ``[N, neurons]``.
        count: Spikes so far, likewise.
        spikes: Shape ``[T, N, neurons]``: numbers of spikes, or what they are worth.
        inner: Neurons of one channel that lie side by side.
        how: Whether spikes are taken back, how many there may be in a step, and how many steps there were so far;
            negative where totals aren't bounded by it.
        worth: Whether spikes are written as what they are worth.
    """
    signed, burst, time = how
    steps, images, neurons = spikes.shape
    level = _spread(threshold, inner, neurons)
    for image in range(images):
        for start in range(0, neurons, BLOCK):
            stop = min(start + BLOCK, neurons)
            v, n, th = potential[image, start:stop], count[image, start:stop], level[start:stop]
            for step in range(steps):
                drive = current[min(step, len(current) - 1), image, start:stop]
                out = spikes[step, image, start:stop]
                most = np.int32(time + step + 1 if time >= 0 else 2**31 - 1)
                for j in range(stop - start):
                    v[j], fired = advance_counting(v[j] + drive[j], th[j], n[j], most, signed, burst)
                    n[j] += fired
                    out[j] = fired * th[j] if worth else fired


@compiled
def advance_counting(
    charged: np.floating, threshold: np.floating, count: np.int32, most: np.int32, signed: bool, burst: int
) -> tuple[np.floating, np.int32]:
    """Take one neuron's step, as :meth:`snnfl.neurons.Neuron.step`; return its potential and how often it fired."""
    fired = np.int32(0)
    while fired < burst and charged >= threshold and count + fired < most:
        charged -= threshold
        fired += np.int32(1)
    if signed:
        taken = 0
        while taken < burst and count + fired > 0 and charged + threshold < threshold:
            charged += threshold
            fired -= np.int32(1)
            taken += 1
    return charged, fired


@compiled
def scan_to_bits(
    threshold: Reals, drive: Reals, current: Reals, potential: Reals, bits: NDArray[np.uint8], first: int
) -> None:
    """Run the neurons of a layer over steps of one byte, and set the bits of their spikes.

    That saves three passes over memory: adding a constant to the current, writing bytes and packing them cost more than
    the neurons themselves.

    Args:
        threshold: Of each neuron, ``[neurons]``.
        drive: Added to each neuron's current at every step, ``[neurons]``.
        current: Shape ``[T, N, neurons]``.
        potential: Shape ``[N, neurons]``; updated in place.
        bits: Shape ``[N, neurons]``; bit ``first + t`` is set where a neuron fires at step ``t``.
        first: Bit of the first step.
    """
    steps, images, neurons = current.shape
    for image in range(images):
        for start in range(0, neurons, BLOCK):
            stop = min(start + BLOCK, neurons)
            v, out = potential[image, start:stop], bits[image, start:stop]
            th, extra = threshold[start:stop], drive[start:stop]
            for step in range(steps):
                flow, bit = current[step, image, start:stop], np.uint8(1 << (first + step))
                for j in range(stop - start):
                    v[j], fired = advance(v[j], flow[j] + extra[j], th[j])
                    out[j] |= bit if fired else np.uint8(0)


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
