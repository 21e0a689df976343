"""Scans of leaky neurons for the CPU, forward and backward, that touch memory once.

Forward reads a current and writes spikes; backward reads the current and the gradient by the spikes, computes the
potentials anew while they fit in the cache, and writes the gradient by the current. Floor in float32: 8 bytes for each
neuron and step forward, 12 backward; where spikes are pooled 2x2 at once, 5 and 9; of a current that is constant in
time, which is read once and whose gradient is one step, 1 and 1. Where a narrow linear layer reads the spikes, scans
write that layer's outputs and read the gradient by them, which are few.

Neurons lie in rows: ``[T, rows, width * inner]``, with ``inner`` channels side by side, where ``pool`` rows and columns
are averaged into one. Without pooling a row is any piece of memory.

Where batch normalisation gives the current, scans read what it normalises (:mod:`snnfl.neurons.kernel_normalised`), and
a row is several times all channels.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from snnfl.neurons import surrogates
from snnfl.neurons.compiled import compiled
from snnfl.neurons.kernel_normalised import add_moments, flush, normalise
from snnfl.neurons.kernel_rows import (
    NARROW,
    TOGETHER,
    add_to_events,
    ask_for,
    clear,
    copy,
    list_events,
    multiply_back,
    pool_row,
    sum_events,
    unpool_row,
)
from snnfl.neurons.vectors import FOUND_AT_ONCE

Reals: TypeAlias = NDArray[np.floating]

DERIVATIVES: dict[surrogates.Derivative, int] = {
    surrogates.fast_sigmoid: 0,
    surrogates.atan: 1,
    surrogates.sigmoid: 2,
    surrogates.spike_rate_escape: 3,
    surrogates.triangle: 4,
    surrogates.triangular_snntorch: 5,
    surrogates.straight_through: 6,
    surrogates.triangle_damped: 7,
}
"""Surrogate gradients that are compiled, by their number in :func:`differentiate`."""

SUBTRACT, ZERO, KEEP = 0, 1, 2
"""Kinds of reset."""


@compiled
def first_above(threshold: np.floating, strict: bool) -> np.floating:
    """Return the smallest potential that fires: the threshold, or the next number above it."""
    return np.nextafter(threshold, type(threshold)(np.inf)) if strict else threshold


@compiled
def begin(before: Reals, row: int, out: Reals) -> None:
    """Write the potentials of a row before the first step."""
    if len(before):
        copy(before[row], out)
    else:
        clear(out)


@compiled
def advance(
    before: Reals,
    drive: Reals,
    leak: np.floating,
    threshold: np.floating,
    late: np.floating,
    level: np.floating,
    reset: int,
    delayed: bool,
    here: Reals,
    fired: Reals,
) -> None:
    """Write the charged potentials that follow on one step's, and 1 where neurons fire, else 0.

    As :meth:`snnfl.neurons.Neuron.step`, bit for bit. What has reached ``late`` before is reset, what reaches ``level``
    now fires.
    """
    zero, one = here.dtype.type(0), here.dtype.type(1)
    for j in range(len(here)):
        if reset == KEEP:
            u = drive[j] + leak * before[j]
        elif reset == SUBTRACT and delayed:
            u = drive[j] + leak * before[j] - (threshold if before[j] >= late else zero)
        elif reset == SUBTRACT:
            u = drive[j] + leak * (before[j] - (threshold if before[j] >= late else zero))
        else:
            u = drive[j] + leak * (before[j] * (zero if before[j] >= late else one))
        here[j] = u
        fired[j] = one if u >= level else zero


@compiled
def differentiate(derivative: int, slope: np.floating, threshold: np.floating, u: Reals, out: Reals) -> None:
    """Write the surrogate gradient of some neurons' spikes at their potentials."""
    one = out.dtype.type(1)
    if derivative == 0:
        for j in range(len(out)):
            root = one + slope * abs(u[j] - threshold)
            out[j] = one / (root * root)
    elif derivative == 1:
        half, scale = slope / out.dtype.type(2), out.dtype.type(math.pi / 2) * slope
        for j in range(len(out)):
            angle = scale * (u[j] - threshold)
            out[j] = half / (one + angle * angle)
    elif derivative == 2:
        for j in range(len(out)):
            tail = np.exp(-slope * abs(u[j] - threshold))
            out[j] = slope * tail / ((one + tail) * (one + tail))
    elif derivative == 3:
        for j in range(len(out)):
            out[j] = slope * np.exp(-abs(u[j] - threshold - one))
    elif derivative == 4:
        for j in range(len(out)):
            out[j] = slope * max(one - slope * abs(u[j] - threshold), one - one)
    elif derivative == 5:
        for j in range(len(out)):
            out[j] = slope if u[j] < threshold else -slope
    elif derivative == 7:
        scale = out.dtype.type(0.3) * slope
        for j in range(len(out)):
            out[j] = scale * max(one - slope * abs(u[j] - threshold), one - one)
    else:
        out[:] = one


@compiled
def receive(current: Reals, lanes: Reals, also: Reals, step: int, row: int, drive: Reals) -> Reals:
    """Return what flows into a row of neurons at a step; where that has to be computed, it is written to ``drive``."""
    given: Reals = current[min(step, len(current) - 1), row]
    if not len(lanes):
        return given
    normalise(given, lanes[0], lanes[1], lanes[2], drive)
    if len(also):
        added = also[min(step, len(also) - 1), row]
        for j in range(len(drive)):
            drive[j] += added[j]
    return drive


@compiled
def forward(
    leak: np.floating,
    threshold: np.floating,
    reset: int,
    delayed: bool,
    strict: bool,
    pool: int,
    inner: int,
    height: int,
    current: Reals,
    lanes: Reals,
    also: Reals,
    before: Reals,
    weight: Reals,
    spikes: Reals,
    potentials: Reals,
) -> None:
    """Run neurons as :meth:`snnfl.neurons.Neuron.step`.

    Args:
        leak: Part of the potential that is left after a step.
        threshold: ``V_th``.
        reset: One of the kinds.
        delayed: Whether it comes with the next step.
        strict: Whether neurons fire above the threshold alone.
        pool: Side of the squares that are averaged; 1: none.
        inner: Channels side by side.
        height: Rows of one image; those left over by the pooling have no output.
        current: Shape ``[T, rows, width * inner]``, or ``[1, ...]`` if it is constant in time.
        lanes: Mean, scale and shift by which the current is normalised first, ``[3, width * inner]``, or ``[0, 0]``.
        also: What is added to a normalised current, of its shape, or ``[0, 0, 0]``.
        before: Potentials before the first step, ``[rows, width * inner]``, or ``[0, 0]`` for zeros.
        weight: Of a narrow linear layer that reads the spikes, where a row is a sample: for each of its neurons, and
            behind them its bias, ``[width + 1, NARROW]``; or ``[0, 0]``.
        spikes: Shape ``[T, pooled rows, pooled width * inner]``, or that layer's outputs, ``[T, rows, outputs]``;
            written.
        potentials: Of the current's shape with ``T`` steps, or ``[0, 0, 0]``; written: those that fired or didn't.
    """
    steps, kind = len(spikes), spikes.dtype
    rows, width = current.shape[1:]
    u, fired, drive = np.empty((2, width), kind), np.empty(width, kind), np.empty(width, kind)
    level, never = first_above(threshold, strict), kind.type(np.inf)
    kept = height // pool
    events, sums = np.empty(width + FOUND_AT_ONCE, np.int32), np.zeros(NARROW, kind)
    for row in range(rows):
        image, line = row // height, row % height
        target = image * kept + line // pool
        outside = line // pool >= kept
        if outside and not len(potentials):
            continue
        begin(before, row, u[0])
        for step in range(steps):
            here, late = u[(step + 1) % 2], level if delayed or step else never
            into = spikes[step, row] if pool == 1 and not len(weight) else fired
            given = receive(current, lanes, also, step, row, drive)
            ask_for(current, step, row + 1)
            ask_for(also, step, row + 1)
            ask_for(spikes, step, target + 1)
            advance(u[step % 2], given, leak, threshold, late, level, reset, delayed, here, into)
            if len(potentials):
                copy(here, potentials[step, row])
            if pool > 1 and not outside:
                pool_row(fired, line % pool, pool, inner, spikes[step, target])
            if len(weight):
                sum_events(events, list_events(fired, events), weight, sums, spikes[step, row])


@compiled
def backward(
    leak: np.floating,
    threshold: np.floating,
    reset: int,
    delayed: bool,
    detached: bool,
    strict: bool,
    derivative: int,
    slope: np.floating,
    learned: bool,
    pool: int,
    inner: int,
    height: int,
    steps: int,
    current: Reals,
    lanes: Reals,
    also: Reals,
    before: Reals,
    weight: Reals,
    of_spikes: Reals,
    of_potentials: Reals,
    of_current: Reals,
    of_before: Reals,
    of_parameters: NDArray[np.float64],
    sums: NDArray[np.float64],
    of_weight: Reals,
) -> None:
    """Run the derivatives of :func:`forward` backwards in time.

    With ``g(t)`` the gradient by the charged potential ``u(t)``, ``d(t)`` the surrogate's derivative there and ``c(t)``
    what the next step gives back to the potential after the reset,
    ``g(t) = dL/ds(t) d(t) + dL/du(t) + c(t) dv(t)/du(t)``.

    Args:
        leak: As in :func:`forward`, like the next four and ``pool`` to ``before``.
        threshold: ``V_th``.
        reset: One of the kinds.
        delayed: Whether it comes with the next step, and without a gradient.
        detached: Whether one that isn't delayed passes no gradient on from its spikes.
        strict: Whether neurons fire above the threshold alone.
        derivative: Number of the surrogate gradient.
        slope: Its slope.
        learned: Whether gradients of leak and threshold are wanted.
        pool: Side of the squares that are averaged.
        inner: Channels side by side.
        height: Rows of one image.
        steps: ``T``.
        current: Shape ``[T or 1, rows, width * inner]``.
        lanes: As in :func:`forward`, like ``also``.
        also: What is added to a normalised current.
        before: Potentials before the first step, or ``[0, 0]``.
        weight: Of the linear layer that reads the spikes, ``[outputs, width]``, or ``[0, 0]``.
        of_spikes: Gradient by what :func:`forward` wrote as spikes, or ``[0, 0, 0]`` for none.
        of_potentials: Gradient by the potentials, or ``[0, 0, 0]`` for none.
        of_current: Gradient by the current, of its shape: summed over time where that is constant; written. Where it is
            normalised first, the gradient by what comes of it.
        of_before: Gradient by the potentials before the first step, or ``[0, 0]``; written.
        of_parameters: Gradients by leak and threshold, ``[2]``; written.
        sums: Where the current is normalised first, each lane's sum of the gradients by what comes of it, and of their
            products with the distances from the mean, ``[2, width * inner]``; written.
        of_weight: Gradient by that layer's weights, and behind them by its bias, ``[width + 1, NARROW]``, which is
            added to; or ``[0, 0]``.
    """
    rows, width = current.shape[1:]
    kind = current.dtype
    one, zero = kind.type(1), kind.type(0)
    level, never = first_above(threshold, strict), kind.type(np.inf)
    kept = height // pool
    u, carry, slopes = np.empty((steps + 1, width), kind), np.empty(width, kind), np.empty(width, kind)
    zeros = np.zeros(TOGETHER, kind)
    drive, total, moment = np.empty(width, kind), np.zeros(width, kind), np.zeros(width, kind)
    of_leak, of_threshold = 0.0, 0.0
    constant = len(current) == 1
    resets = not delayed and reset != KEEP
    events, outputs = np.empty(width + FOUND_AT_ONCE, np.int32), np.zeros(NARROW, kind)
    for row in range(rows):
        image, line = row // height, row % height
        source = image * kept + line // pool
        outside = line // pool >= kept
        begin(before, row, u[0])
        for step in range(steps):
            late = level if delayed or step else never
            received = receive(current, lanes, also, step, row, drive)
            ask_for(current, step, row + 1)
            ask_for(also, step, row + 1)
            advance(u[step], received, leak, threshold, late, level, reset, delayed, u[step + 1], slopes)
            if len(weight):
                add_to_events(events, list_events(slopes, events), of_spikes[step, row], outputs, of_weight)
        clear(carry)
        if constant:
            clear(of_current[0, row])
        for step in range(steps - 1, -1, -1):
            here, previous, late = u[step + 1], u[step], level if delayed or step else never
            target = of_current[0 if constant else step, row]
            ask_for(of_current, step, row + 1)
            if len(of_spikes) or (resets and not detached):
                differentiate(derivative, slope, threshold, here, slopes)
            if resets:
                for j in range(width):
                    through = zero if detached else slopes[j]
                    if reset == SUBTRACT:
                        if learned:
                            of_threshold += carry[j] * (threshold * through - (one if here[j] >= level else zero))
                        carry[j] *= one - threshold * through
                    else:
                        if learned:
                            of_threshold += carry[j] * here[j] * through
                        carry[j] *= (zero if here[j] >= level else one) - here[j] * through
            if len(of_spikes) and not outside:
                ask_for(of_spikes, step, source + 1)
                given = drive
                if len(weight):
                    multiply_back(of_spikes[step, row], weight, zeros, drive)
                elif pool == 1:
                    given = of_spikes[step, row]
                else:
                    unpool_row(of_spikes[step, source], pool, inner, drive)
                for j in range(width):
                    carry[j] += given[j] * slopes[j]
                if learned:
                    for j in range(width):
                        of_threshold -= given[j] * slopes[j]
            if len(of_potentials):
                given = of_potentials[step, row]
                for j in range(width):
                    carry[j] += given[j]
            if len(lanes) and not constant:
                add_moments(carry, current[step, row], lanes[0], total, moment)
            if learned:
                for j in range(width):
                    fell = previous[j] >= late
                    if reset == SUBTRACT and delayed:
                        of_threshold -= carry[j] * (one if fell else zero)
                        of_leak += carry[j] * previous[j]
                    elif reset == SUBTRACT:
                        of_leak += carry[j] * (previous[j] - (threshold if fell else zero))
                    elif reset == ZERO:
                        of_leak += carry[j] * (zero if fell else previous[j])
                    else:
                        of_leak += carry[j] * previous[j]
            for j in range(width):
                gradient = carry[j]
                target[j] = target[j] + gradient if constant else gradient
                kept_back = zero if delayed and reset == ZERO and previous[j] >= late else leak
                carry[j] = gradient * kept_back
        if len(of_before):
            copy(carry, of_before[row])
        if len(lanes):
            if constant:
                add_moments(of_current[0, row], current[0, row], lanes[0], total, moment)
            flush(total, sums[0])
            flush(moment, sums[1])
    of_parameters[0] = of_leak
    of_parameters[1] = of_threshold
