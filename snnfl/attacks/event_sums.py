"""Counts of events from one weighted sum of them, as where the surrogate gradient is 1 everywhere."""

from __future__ import annotations

import torch
from torch import Tensor

MOST_TRIED = 2**20
"""Ways to spread a number of events over the time steps, beyond which none are tried."""


def counts_of(sums: Tensor, weights: Tensor, tolerance: float) -> Tensor:
    """Return whole numbers ``x >= 0`` with ``sum_t weights_t x_t`` equal to each sum, ``[T, pixels]``.

    Every way of spreading 1, 2, 3, ... events over the steps is compared, so the fewest events win. A pixel whose sum
    none of them gives is empty.

    Args:
        sums: Shape ``[pixels]``, float64.
        weights: Shape ``[T]``, float64, above 0.
        tolerance: Error of a sum.
    """
    found = sums.new_zeros(len(weights), len(sums))
    spread, last = torch.zeros(1, len(weights), dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8)
    left = torch.nonzero(sums > tolerance)[:, 0]
    while len(left):
        grown, ends = list[Tensor](), list[Tensor]()
        for step in range(len(weights)):
            rows = spread[last <= step].clone()
            rows[:, step] += 1
            grown.append(rows)
            ends.append(torch.full((len(rows),), step, dtype=torch.uint8))
        if sum(map(len, grown)) > MOST_TRIED:
            break
        spread, last = torch.cat(grown), torch.cat(ends)
        values, places = (spread.double() @ weights).sort()
        nearest = torch.searchsorted(values, sums[left]).clamp(0, len(values) - 1)
        before = (nearest - 1).clamp_min(0)
        nearest = torch.where(
            (values[before] - sums[left]).abs() < (values[nearest] - sums[left]).abs(), before, nearest
        )
        hit = (values[nearest] - sums[left]).abs() < tolerance
        found[:, left[hit]] = spread[places[nearest[hit]]].T.double()
        left = left[~hit]
    return found
