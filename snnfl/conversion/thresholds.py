"""Firing thresholds: what a neuron's spike is worth, found from the activations that it stands for."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from snnfl.config import ConversionConfig

GRID = 100
"""Candidates are hundredths of the largest activation."""

PART = 2**16
"""Activations that are sorted into a histogram at once: their float64 copies stay in the second-level cache."""


def find_thresholds(
    activation: Tensor, steps: int, config: ConversionConfig, *, ceiling: float | None = None
) -> Tensor:
    """Find the thresholds of one layer.

    ``layer_mmse`` and ``channel_mmse``: :func:`mmse_threshold` (Li et al. 2021, section 4.1). ``layer_max``: the
    largest activation (Diehl et al. 2015, "model-based normalisation" from data). ``percentile``: of all activations of
    the layer, zeros included (Rueckauer et al. 2017, section 2.2.2); the largest where the percentile is zero.

    Args:
        activation: The ANN's activations of the layer, ``[N, C, *space]``, not negative.
        steps: Simulation length T, which the MMSE depends on.
        config: The kind of threshold and its options.
        ceiling: What no activation exceeds, of a clipped ReLU.

    Returns:
        Shape ``[1]``, or ``[C]`` for ``channel_mmse``; positive. A channel without any positive activation gets the
        largest threshold of the others, a layer without any 1 or the ceiling, if that is less.

    Raises:
        ValueError: If an activation is negative or not finite.
    """
    found = _thresholds(activation, steps, config)
    silent = found == 0
    scale = found.new_tensor(min(1.0, ceiling or 1.0)) if bool(silent.all()) else found.amax()
    return torch.where(silent, scale, found)


def _thresholds(activation: Tensor, steps: int, config: ConversionConfig) -> Tensor:
    """Find the thresholds of one layer, zero where no activation is positive."""
    if config.thresholds == "channel_mmse":
        return _best(activation.transpose(0, 1).flatten(1), steps, config.candidates)
    row = in_memory_order(activation)[None]
    if config.thresholds == "layer_mmse":
        return _best(row, steps, config.candidates)
    check_activations(activation)
    largest = row.amax(1)
    if config.thresholds == "layer_max":
        return largest
    level = percentile_threshold(row, config.percentile)
    return torch.where(level > 0, level, largest)


def mmse_threshold(activations: Tensor, steps: int, *, candidates: int = 95) -> Tensor:
    """Find each row's threshold with the smallest mean squared error of its quantised activations.

    ``theta* = argmin mean((a - clip(floor(a T / theta), 0, T) theta / T)^2)`` over ``theta = max(a) (1 - 0.01 i)``,
    ``i = 0 .. candidates - 1`` (Li et al. 2021, section 4.1; SNFL Algorithm 1, "Get MMSE threshold").

    An activation between two levels ``k theta/T`` and ``(k+1) theta/T`` is rounded down to the first, and the levels of
    all candidates lie on one grid, of spacing ``max(a) / 100T``. So one histogram of counts and sums over that grid
    gives every candidate's error: O(n + candidates T) instead of O(candidates n), and nothing is sampled.

    Args:
        activations: Non-negative, shape ``[rows, n]``: one row for a layer, or one per channel.
        steps: Simulation length T.
        candidates: Number of thresholds tried, 1 to 99.

    Returns:
        Shape ``[rows]``, positive: a row without any positive activation gets 1, which no calibration image decides.

    Raises:
        ValueError: If an activation is negative or not finite.
    """
    found = _best(activations, steps, candidates)
    return torch.where(found > 0, found, torch.ones_like(found))


def _best(activations: Tensor, steps: int, candidates: int) -> Tensor:
    check_activations(activations)
    factors = 1 - 0.01 * torch.arange(candidates, dtype=activations.dtype, device=activations.device)
    best = [best_candidate(*_histogram(row, GRID * steps), candidates, steps) for row in activations]
    return activations.amax(1) * factors[torch.stack(best)]


def percentile_threshold(activations: Tensor, percentile: float) -> Tensor:
    """Return a percentile of each row, linear between the two nearest values, as NumPy's; 100 is the maximum.

    Args:
        activations: Non-negative, shape ``[rows, n]``.
        percentile: Above 0, at most 100.

    Returns:
        Shape ``[rows]``.
    """
    position = (activations.shape[1] - 1) * percentile / 100
    low, high = (activations.kthvalue(1 + index, dim=1).values for index in (math.floor(position), math.ceil(position)))
    return low + (high - low) * (position - math.floor(position))


def search_bytes(size: int, itemsize: int, config: ConversionConfig) -> int:
    """Bound the memory that :func:`find_thresholds` needs beside activations of ``size`` bytes."""
    copies = 1 + 8 / itemsize if config.thresholds == "percentile" else 1  # a selection and its indices, or channels
    tables = 64 * config.calibration_length * (GRID + config.candidates)
    return int(copies * size) + 40 * min(PART, size // itemsize) + tables


def check_activations(activations: Tensor) -> None:
    """Check that activations are finite and not negative.

    Raises:
        ValueError: If they aren't.
    """
    low, high = activations.aminmax()  # NaN if there is any
    if not (float(low) >= 0 and float(high) < math.inf):
        raise ValueError(
            f"activations from {float(low):g} to {float(high):g} must be finite and not negative: take them behind a "
            "ReLU, of a model whose weights are finite"
        )


def in_memory_order(value: Tensor) -> Tensor:
    """Flatten a dense tensor in whatever order its values lie in memory, without a copy."""
    order = sorted(range(value.dim()), key=value.stride, reverse=True)
    return value.permute(order).flatten()


def _histogram(row: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Count and sum the values that are at least ``j max/bins``, for ``j = 0 .. bins``, in units of ``max/bins``."""
    count, total = torch.zeros(2, bins + 1, dtype=torch.float64, device=row.device)
    largest = row.amax(0, keepdim=True).double()
    if largest > 0:
        for part in torch.split(row, PART):
            values = (part / largest).mul_(bins)  # float64, and exactly `bins` for the largest
            index = values.long()
            count += torch.bincount(index, minlength=bins + 1)
            total += torch.bincount(index, values, minlength=bins + 1)
    return count.flip(0).cumsum(0).flip(0), total.flip(0).cumsum(0).flip(0)


def best_candidate(count: Tensor, total: Tensor, candidates: int, steps: int) -> Tensor:
    """Return the index of the candidate with the smallest ``sum (a - q(a))^2``, from :func:`_histogram`.

    With ``q = k theta/T`` for ``a`` in the k-th bin: ``sum a^2 - 2 theta/T sum_k k A_k + (theta/T)^2 sum_k k^2 N_k``,
    where ``A_k`` and ``N_k`` are the bin's sum and count. Summation by parts turns ``sum_k k A_k`` into
    ``sum_k S(k)``, ``S(k)`` the sum of all ``a >= k theta/T``; likewise ``k^2`` into ``2k - 1``.
    """
    k = torch.arange(1, steps + 1, device=count.device)
    level = GRID - torch.arange(candidates, device=count.device)  # theta/T in units of the grid
    edges = k * level[:, None]
    return (level**2 * (count[edges] @ (2.0 * k - 1).double()) - 2 * level * total[edges].sum(1)).argmin()
