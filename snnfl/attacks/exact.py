"""The inputs of a linear layer behind which a ReLU stands, from its weight's gradient alone, for a whole batch.

``dL/dW = sum_n d_n x_n^T`` is a sum of as many matrices of rank one as the batch has samples, and its row space is that
of the inputs. Which of its bases are the inputs themselves, a matrix alone doesn't tell; but ReLU makes about half of
each ``d_n`` zero. So of all vectors of the column space, the ``d_n`` are those with the most zeros (SPEAR, Dimitrov et
al. 2024, "Exact gradient inversion of batches in federated learning", sections 3 and 4).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MOST_TRIES = 2**21
"""Sets of rows that are tried at most, 2^13 times as many as one is found in and no more than this: enough for 16."""

TRIES = 2**14
"""Sets of rows that are tried at once."""

NEARLY = 1e-3
"""Part of a candidate's root mean square below which one of its elements counts as zero at first."""

ROUNDING = 6.0
"""Deviations of the noise within which an element counts as zero."""

DEPENDENT = 1e-4
"""Part of a unit vector outside of others' span below which it is one of it."""


@dataclass(frozen=True, eq=False)
class Separated:
    """A gradient as a sum of products ``slopes[:, n] inputs[n]^T``, each pair up to a factor and its inverse.

    Attributes:
        slopes: Of the loss by the layer's outputs, ``[out, B]``; exactly zero where a ReLU is.
        inputs: Of the layer, ``[B, in]``.
    """

    slopes: Tensor
    inputs: Tensor


def separate(gradient: Tensor, count: int, generator: torch.Generator) -> Separated | None:
    """Write a gradient as the sum of its samples' products, or return ``None`` where it isn't one of so many.

    With ``L`` of ``count`` columns that span the column space, ``d_n = L q_n``; rows where ``d_n`` is zero are
    orthogonal to ``q_n``, and ``count - 1`` of them determine it. So sets of as many random rows each give a candidate,
    right by chance once in ``2^(count - 1)``, and told by its further zeros. Of the candidates, those with the most
    zeros that are linearly independent are the samples': a sum of several ``d_n`` is zero only where all of them are.
    Sets are drawn until each sample is likely to have been met, and the choice hasn't improved over three times as many
    as it took; up to a limit.

    Args:
        gradient: Of the weight, ``[out, in]``, without weight decay.
        count: Samples in the batch, ``B``.
        generator: Draws the sets of rows.

    Returns:
        The products, in order of falling sparsity, or ``None``: for a rank below ``count``, and where fewer independent
        candidates are found, as with noise or without a ReLU.
    """
    gradient = gradient.double()
    if min(gradient.shape) < count or not bool(torch.isfinite(gradient).all()):
        return None
    left, values, _ = torch.linalg.svd(gradient, full_matrices=False)
    noise = float(values[count:].square().sum() / gradient.numel()) ** 0.5
    noise = max(noise, float(values[0]) * torch.finfo(gradient.dtype).eps)
    if not values[count - 1] > ROUNDING * noise * sum(side**0.5 for side in gradient.shape):
        return None
    span = left[:, :count] * values[:count]
    slopes = _sparsest(span, noise, generator)
    if slopes is None:
        return None
    return Separated(slopes, torch.linalg.lstsq(slopes, gradient).solution)


def _sparsest(span: Tensor, noise: float, generator: torch.Generator) -> Tensor | None:
    """Return the basis of a column space ``[out, B]`` with the most zeros, as columns, or ``None`` if none is found."""
    count = span.shape[1]
    if count == 1:
        return span
    rows = span[span.norm(dim=1) > ROUNDING * noise * count**0.5]  # others, dead for every sample, tell nothing
    if len(rows) < count:
        return None
    found = rows.new_empty(0, count)
    best, needed, tries = -1, 0, 0
    least, most = min(MOST_TRIES, 2 ** (count + 3)), min(MOST_TRIES, 2 ** (count + 13))
    while tries < most and (best < 0 or tries < max(least, 4 * needed)):
        tries += TRIES
        found = _chosen(torch.cat([found, _candidates(rows, noise, generator)]), rows, noise)
        zeros = int(_zeros(rows, found, noise).sum()) if len(found) == count else -1
        if zeros > best:
            best, needed = zeros, tries
    if best < 0:
        return None
    slopes = span @ found.T
    return torch.where(slopes.abs() > ROUNDING * noise, slopes, 0.0)


def _candidates(rows: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Return unit vectors ``[K, B]`` that are orthogonal to more of the rows than those that they were made from."""
    count = rows.shape[1]
    unit = rows / rows.norm(dim=1, keepdim=True)
    sets = unit[torch.randint(len(unit), (TRIES, count - 1), generator=generator)]
    anything = torch.randn(TRIES, 1, count, generator=generator, dtype=rows.dtype)
    last = torch.eye(count, dtype=rows.dtype)[-1]
    solved, failed = torch.linalg.solve_ex(torch.cat([sets, anything], dim=1), last.expand(TRIES, count))
    solved = solved / solved.norm(dim=1, keepdim=True)
    solved = solved[(failed == 0) & solved.isfinite().all(1)]
    found = (solved @ rows.T).abs()
    near = found < NEARLY * found.square().mean(1, keepdim=True).sqrt() + ROUNDING * noise
    enough = count - 1 + max(3, len(rows) // 20)
    many = near.sum(1) >= enough
    refined = [_refined(rows, q, zero, noise) for q, zero in _distinct(solved[many], near[many])]
    return torch.stack(refined) if refined else rows.new_empty(0, count)


def _distinct(candidates: Tensor, zeros: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Keep one candidate of each line, the one with the most zeros; and of the lines the 64 with the most."""
    kept: list[int] = []
    for index in zeros.sum(1).argsort(descending=True).tolist():
        if len(kept) < 64 and not (kept and float((candidates[kept] @ candidates[index]).abs().max()) > 1 - 1e-6):
            kept.append(index)
    return [(candidates[index], zeros[index]) for index in kept]


def _refined(rows: Tensor, candidate: Tensor, zero: Tensor, noise: float) -> Tensor:
    """Return the vector that is most orthogonal to all rows that a candidate is nearly orthogonal to."""
    for power in range(1, 5):  # an element that is small by chance is left out as the others come nearer to zero
        if int(zero.sum()) < rows.shape[1] - 1:
            break
        candidate = torch.linalg.svd(rows[zero], full_matrices=True)[2][-1]
        found = (rows @ candidate).abs()
        zero = found < NEARLY * 10.0**-power * found.square().mean().sqrt() + ROUNDING * noise
    return candidate


def _zeros(rows: Tensor, candidates: Tensor, noise: float) -> Tensor:
    """Tell which rows each candidate is orthogonal to, ``[K, rows]``."""
    return (candidates @ rows.T).abs() < ROUNDING * noise


def _chosen(candidates: Tensor, rows: Tensor, noise: float) -> Tensor:
    """Return independent candidates, those with more zeros first: greedily, which for a basis is the best choice."""
    order = _zeros(rows, candidates, noise).sum(1).argsort(descending=True)
    basis = rows.new_empty(0, rows.shape[1])
    kept = []
    for index in order.tolist():
        outside = candidates[index] - basis.T @ (basis @ candidates[index])
        if float(outside.norm()) > DEPENDENT:
            kept.append(index)
            outside = outside - basis.T @ (basis @ outside)
            basis = torch.cat([basis, (outside / outside.norm())[None]])
        if len(kept) == rows.shape[1]:
            break
    return candidates[kept]
