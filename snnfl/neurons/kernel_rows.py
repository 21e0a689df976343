"""Passes over rows of neurons, which their scans are made of: copies, means of neighbours, and rows asked for ahead."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from snnfl.neurons.compiled import compiled
from snnfl.neurons.vectors import accumulate, load, prefetch, store

Reals: TypeAlias = NDArray[np.floating]

LINE = 16
"""Numbers of a line of the cache, in float32."""


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
    if row < values.shape[1]:
        ahead = values[min(step, len(values) - 1), row]
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
