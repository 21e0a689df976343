"""Firing thresholds that minimise the squared error of rate coding, by grid search."""

from __future__ import annotations

import torch
from torch import Tensor


def mmse_threshold(activations: Tensor, steps: int, *, candidates: int = 95) -> Tensor:
    """Find each row's threshold with the smallest mean squared error of its quantised activations.

    ``theta* = argmin mean((a - clip(floor(a T / theta), 0, T) theta / T)^2)`` over ``theta = max(a) (1 - 0.01 i)``,
    ``i = 0 .. candidates - 1`` (Li et al. 2021, section 4.1; SNFL Algorithm 1, "Get MMSE threshold").

    An activation between two levels ``k theta/T`` and ``(k+1) theta/T`` is rounded down to the first. So with the
    row sorted and its sums of ``a`` and ``a^2`` accumulated, a candidate's error needs one look-up per level, not one
    operation per activation: O(n log n + candidates T log n) instead of O(candidates n), and nothing is sampled.

    Args:
        activations: Non-negative, shape ``[rows, n]``: one row for a layer, or one per channel.
        steps: Simulation length T.
        candidates: Number of thresholds tried, 1 to 99.

    Returns:
        Shape ``[rows]``, positive: a row without any positive activation gets 1, which no calibration image decides.

    Raises:
        ValueError: If an activation is negative or not finite.
    """
    if not bool(torch.isfinite(activations).all()) or bool((activations < 0).any()):
        raise ValueError("activations must be finite and not negative: take them behind a ReLU")
    ordered = activations.contiguous().sort(dim=1).values
    maxima = ordered[:, -1:]
    grid = maxima * (1 - 0.01 * torch.arange(candidates, dtype=ordered.dtype, device=ordered.device))
    errors = torch.stack([_squared_error(ordered, grid, steps, row) for row in range(len(ordered))])
    best = grid.gather(1, errors.argmin(1, keepdim=True)).squeeze(1)
    return torch.where(maxima.squeeze(1) > 0, best, torch.ones_like(best))


def _squared_error(ordered: Tensor, grid: Tensor, steps: int, row: int) -> Tensor:
    """Sum ``(a - q(a))^2`` of one row for each candidate, ``[candidates]``, up to the constant sum of ``a^2``.

    With ``q = k theta/T`` for ``a`` in the k-th bin: ``sum a^2 - 2 theta/T sum_k k A_k + (theta/T)^2 sum_k k^2 N_k``,
    where ``A_k`` and ``N_k`` are the bin's sum and count. Summation by parts turns ``sum_k k A_k`` into
    ``sum_k S(k)``, ``S(k)`` the sum of all ``a >= k theta/T``; likewise ``k^2`` into ``2k - 1``.
    """
    values = ordered[row]
    theta = grid[row].double()
    k = torch.arange(1, steps + 1, device=values.device, dtype=torch.float64)
    edges = (k * theta[:, None] / steps).to(values.dtype)
    edges[:, -1] = grid[row]  # exactly: the largest activation reaches the top level of its own candidate
    below = torch.searchsorted(values, edges.contiguous())
    total = torch.cat([values.new_zeros(1, dtype=torch.float64), values.double().cumsum(0)])
    count_above = (len(values) - below).double()
    sum_above = total[-1] - total[below]
    return (theta / steps) ** 2 * ((2 * k - 1) * count_above).sum(1) - 2 * theta / steps * sum_above.sum(1)
