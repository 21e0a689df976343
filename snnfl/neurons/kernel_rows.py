"""Passes over rows of neurons, which their scans are made of.

Copies, means of neighbours, products with the weights of a narrow layer, and rows asked for ahead.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from snnfl.neurons.compiled import compiled
from snnfl.neurons.vectors import FOUND_AT_ONCE, POSITIONS, accumulate, append_nonzero, load, prefetch, store

Reals: TypeAlias = NDArray[np.floating]
Integers: TypeAlias = NDArray[np.integer]

LINE = 16
"""Numbers of a line of the cache, in float32."""

NARROW = 16
"""Outputs of a linear layer up to which :func:`sum_events` takes it: those that are added at once."""

TOGETHER = 32
"""Neurons whose gradients :func:`multiply_back` computes at once."""


@compiled
def copy(source: Reals, out: Reals) -> None:
    """Copy a row, without the question whether both are the same memory."""
    for j in range(len(out)):
        out[j] = source[j]


@compiled
def clear(out: Reals) -> None:
    """Write zeros, many at a time."""
    for j in range(len(out)):
        out[j] = out.dtype.type(0)


@compiled
def ask_for(values: Reals, step: int, row: int) -> None:
    """Let a row of a step, if there is one, come from memory while others are worked on.

    Rows of one step after the other lie far apart, and the processor by itself asks for what is next on a page.
    """
    if step < len(values) and row < values.shape[1]:  # of what is constant in time there is one step
        ahead = values[step, row]
        for j in range(0, len(ahead), LINE):
            prefetch(ahead, j)


@compiled
def pool_row(fired: Reals, row: int, pool: int, inner: int, out: Reals) -> None:
    """Add a row of spikes to the row of their means, ``[width / pool * inner]``."""
    share, lanes = out.dtype.type(1.0 / (pool * pool)), (0, 0)
    whole = inner // 16 * 16
    if row == 0:
        clear(out)
    for cell in range(0, len(out), inner):
        for start in range(cell, cell + whole, 16):
            total = load(out, start, lanes)
            for column in range(pool):
                total = accumulate(total, load(fired, start + (cell * (pool - 1)) + column * inner, lanes), share)
            store(out, start, total)
        for column in range(pool):
            for j in range(cell + whole, cell + inner):
                out[j] += fired[j + cell * (pool - 1) + column * inner] * share


@compiled
def unpool_row(gradient: Reals, pool: int, inner: int, out: Reals) -> None:
    """Write the gradient of a row of spikes from that of the row of their means; columns left over get none."""
    share, lanes = out.dtype.type(1.0 / (pool * pool)), (0, 0)
    whole = inner // 16 * 16
    clear(out[len(gradient) * pool :])
    nothing = load(np.zeros(16, out.dtype), 0, lanes)
    for cell in range(0, len(gradient), inner):
        for start in range(cell, cell + whole, 16):
            each = accumulate(nothing, load(gradient, start, lanes), share)
            for column in range(pool):
                store(out, start + cell * (pool - 1) + column * inner, each)
        for column in range(pool):
            for j in range(cell + whole, cell + inner):
                out[j + cell * (pool - 1) + column * inner] = gradient[j] * share


@compiled
def list_events(fired: Reals, events: Integers) -> int:
    """Write which neurons of a row fired, in order, and return how many."""
    whole = len(fired) // FOUND_AT_ONCE * FOUND_AT_ONCE
    count = 0
    for j in range(0, whole, FOUND_AT_ONCE):
        count = append_nonzero(fired, j, events, count, POSITIONS)
    for j in range(whole, len(fired)):
        events[count] = j
        count += fired[j] != 0
    return count


@compiled
def sum_events(events: Integers, count: int, weight: Reals, sums: Reals, out: Reals) -> None:
    """Write a narrow linear layer's outputs: its bias, and the weights of neurons that fired.

    Args:
        events: From :func:`list_events`.
        count: Of these.
        weight: Of each neuron, and the bias behind them, ``[width + 1, NARROW]``, zeros behind the outputs.
        sums: Memory of shape ``[NARROW]``.
        out: Shape ``[outputs]``; written.
    """
    lanes, one = (0, 0), out.dtype.type(1)
    total = load(weight[len(weight) - 1], 0, lanes)
    for k in range(count):
        total = accumulate(total, load(weight[events[k]], 0, lanes), one)
    store(sums, 0, total)
    for j in range(len(out)):
        out[j] = sums[j]


@compiled
def add_to_events(events: Integers, count: int, gradient: Reals, sums: Reals, of_weight: Reals) -> None:
    """Add the gradient by a narrow linear layer's outputs to those by its bias and the weights of neurons that fired.

    Args:
        events: From :func:`list_events`, with room for one more.
        count: Of these.
        gradient: Shape ``[outputs]``.
        sums: Memory of shape ``[NARROW]``, zeros behind the outputs.
        of_weight: Of each neuron, and of the bias behind them, ``[width + 1, NARROW]``; added to.
    """
    lanes, one = (0, 0), gradient.dtype.type(1)
    for j in range(len(gradient)):
        sums[j] = gradient[j]
    added = load(sums, 0, lanes)
    events[count] = len(of_weight) - 1
    for k in range(count + 1):
        place = of_weight[events[k]]
        store(place, 0, accumulate(load(place, 0, lanes), added, one))


@compiled
def multiply_back(gradient: Reals, weight: Reals, zeros: Reals, out: Reals) -> None:
    """Write the gradient by a row of spikes from that by a narrow linear layer's outputs.

    Args:
        gradient: Shape ``[outputs]``.
        weight: Shape ``[outputs, width]``.
        zeros: Shape ``[TOGETHER]``.
        out: Shape ``[width]``; written.
    """
    lanes, width = (0, 0, 0, 0), len(out)
    nothing = load(zeros, 0, lanes)
    for block in range(0, width if width >= TOGETHER else 0, TOGETHER):
        start = min(block, width - TOGETHER)  # the last ones may be computed twice
        total = nothing
        for k in range(len(gradient)):
            total = accumulate(total, load(weight[k], start, lanes), gradient[k])
        store(out, start, total)
    if width < TOGETHER:
        clear(out)
        for k in range(len(gradient)):
            for j in range(width):
                out[j] += weight[k, j] * gradient[k]
