"""Batch normalisation of what lies channels last, for the CPU, as passes over rows of channels.

Rows are ``[rows, width]``, ``width`` several times all channels side by side: each column, a lane, is one channel's.
Sums are float32's over a few rows, and float64's over these, so that they lose no digits.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from snnfl.neurons.compiled import compiled

BLOCK = 1024
"""Numbers of a row: a few rows stay in the first-level cache while they are worked on."""

ROWS = 8
"""Rows that are added up at once."""

Reals: TypeAlias = NDArray[np.floating]
Doubles: TypeAlias = NDArray[np.float64]


@compiled
def moments(values: Reals, mean: Doubles, squares: Doubles) -> None:
    """Write each lane's mean, and the sum of the squares of its distances from that, in one pass.

    A few rows at once while they are in the cache: their mean, then their distances; what came before is joined to them
    by Chan, Golub and LeVeque's formula ("Algorithms for computing the sample variance", The American Statistician
    1983, eq. 2.1).
    """
    rows, width = values.shape
    kind = values.dtype
    centre, total = np.empty(width, kind), np.empty(width, kind)
    mean[:] = 0.0
    squares[:] = 0.0
    before = 0
    while before < rows:
        count = min(ROWS, rows - before)
        share = kind.type(1.0 / count)
        total[:] = kind.type(0)
        for row in range(before, before + count):
            for j in range(width):
                total[j] += values[row, j]
        for j in range(width):
            centre[j] = total[j] * share
        total[:] = kind.type(0)
        for row in range(before, before + count):
            for j in range(width):
                distance = values[row, j] - centre[j]
                total[j] += distance * distance
        of_all, both = count / (before + count), before * count / (before + count)
        for j in range(width):
            apart = np.float64(centre[j]) - mean[j]
            mean[j] += of_all * apart
            squares[j] += np.float64(total[j]) + both * apart * apart
        before += count


@compiled
def normalise(values: Reals, mean: Reals, scale: Reals, shift: Reals, out: Reals) -> None:
    """Write ``scale (value - mean) + shift`` of a row."""
    for j in range(len(out)):
        out[j] = scale[j] * (values[j] - mean[j]) + shift[j]


@compiled
def normalise_rows(values: Reals, mean: Reals, scale: Reals, shift: Reals, out: Reals) -> None:
    """Write ``scale (value - mean) + shift`` of all rows."""
    for row in range(len(values)):
        normalise(values[row], mean, scale, shift, out[row])


@compiled
def add_moments(gradient: Reals, values: Reals, mean: Reals, total: Reals, moment: Reals) -> None:
    """Add a row's gradients, and their products with what is normalised, to those of the rows before."""
    for j in range(len(total)):
        total[j] += gradient[j]
        moment[j] += gradient[j] * (values[j] - mean[j])


@compiled
def flush(total: Reals, into: Doubles) -> None:
    """Add sums over a few rows to those over all, and begin anew."""
    for j in range(len(total)):
        into[j] += total[j]
    total[:] = total.dtype.type(0)


@compiled
def gradient_moments(gradient: Reals, values: Reals, mean: Reals, sums: Doubles) -> None:
    """Write each lane's sum of gradients, and of their products with the distances from the mean, ``[2, width]``."""
    rows, width = values.shape
    total, moment = np.zeros(width, values.dtype), np.zeros(width, values.dtype)
    sums[:] = 0.0
    for row in range(rows):
        add_moments(gradient[row], values[row], mean, total, moment)
        if row % ROWS == ROWS - 1 or row == rows - 1:
            flush(total, sums[0])
            flush(moment, sums[1])


@compiled
def gradient_rows(
    gradient: Reals, values: Reals, mean: Reals, scale: Reals, of_mean: Reals, of_deviation: Reals, out: Reals
) -> None:
    """Write the gradient by what was normalised, ``scale (gradient - of_mean - of_deviation (value - mean))``."""
    width = values.shape[1]
    line = np.empty(width, values.dtype)  # for the gradient may be what is written, and vectors need to know that
    for row in range(len(values)):
        for j in range(width):
            less = of_mean[j] + of_deviation[j] * (values[row, j] - mean[j])
            line[j] = scale[j] * (gradient[row, j] - less)
        out[row] = line
