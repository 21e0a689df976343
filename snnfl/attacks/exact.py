"""The inputs of a linear layer behind which a ReLU stands, from its weight's gradient alone, for a whole batch.

``dL/dW = sum_n d_n x_n^T`` is a sum of as many matrices of rank one as the batch has samples, and its row space is that
of the inputs. Which of its bases are the inputs themselves, a matrix alone doesn't tell; but ReLU makes about half of
each ``d_n`` zero. So of all vectors of the column space, the ``d_n`` are those with the most zeros (SPEAR, Dimitrov et
al. 2024, "SPEAR: Exact gradient inversion of batches in federated learning").
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_TRIES = 2**21
"""Sets of rows that are tried at most, 2^13 times as many as one is found in and no more than this: enough for 16."""

MOST_IMAGES = 24
"""Of a batch: with each the sets that have to be tried double, and of more than these none is met."""

TRIES = 2**14
"""Sets of rows that are tried before it is asked whether they are enough, and up to which all there are are tried."""

ELEMENTS = 2**21
"""Of sets times rows that are looked at together: memory for larger arrays costs more time than what is done in it."""

NEARLY = 1e-3
"""Part of a candidate's root mean square below which one of its elements counts as zero at first."""

ZERO = 1e-5
"""Part of a slope's root mean square below which one of its elements is zero in the end; some roundings are large."""

ROUNDING = 6.0
"""Deviations of the noise within which an element, and a singular value, counts as zero."""

SAME = 0.9
"""Share of a candidate's zeros that another candidate of the same slope has, too."""

MOST_SLOPES = 64
"""Slopes that are refined of the candidates that are tried at once."""

DEPENDENT = 1e-4
"""Part of a unit vector outside of others' span below which it is one of it."""


@dataclass(frozen=True, eq=False)
class Separated:
    """A gradient as a sum of products ``slopes[:, n] inputs[n]^T``, each pair up to a factor and its inverse.

    Attributes:
        slopes: Of the loss by the layer's outputs, ``[out, M]``; exactly zero where a ReLU is.
        inputs: Of the layer, ``[M, in]``.
    """

    slopes: Tensor
    inputs: Tensor


def separate(gradient: Tensor, count: int, generator: torch.Generator) -> Separated | None:
    """Write a gradient as the sum of its samples' products, or return ``None`` where it isn't such a sum.

    With ``L`` of ``M`` columns that span the column space, ``d_n = L q_n``; rows where ``d_n`` is zero are orthogonal
    to ``q_n``, and ``M - 1`` of them determine it. So sets of as many random rows each give a candidate, right by
    chance once in ``2^(M - 1)``, and told by its further zeros. Of the candidates, those with the most zeros that are
    linearly independent are the samples': a sum of several ``d_n`` is zero only where all of them are. Sets are drawn
    until each sample is likely to have been met, and the choice hasn't improved over three times as many as it took;
    up to a limit. Where there are few sets, as of two samples, each is tried once.

    Args:
        gradient: Of the weight, ``[out, in]``, without weight decay.
        count: Samples in the batch.
        generator: Draws the sets of rows.

    Returns:
        The products, in order of falling sparsity, of as many samples as stand out of rounding errors or noise: slopes
        of a sample that the network is sure of are smaller than these, and it changes what is seen of the others as
        little. Where fewer independent candidates are found than samples stand out, those products that come nearest:
        their slopes are right, and their inputs hold something of the missing ones'. ``None`` if there is no candidate,
        as without a ReLU.
    """
    gradient = gradient.double()
    if min(gradient.shape) < count or not bool(torch.isfinite(gradient).all()):
        return None
    left, values, _ = torch.linalg.svd(gradient, full_matrices=False)
    rank, noise = _told(values, gradient.shape, count)
    if rank == 0:
        return None
    slopes = _sparsest(left[:, :rank] * values[:rank], values[:rank], noise, generator)
    if slopes is None:
        return None
    return Separated(slopes, torch.linalg.lstsq(slopes, gradient).solution)


def _told(values: Tensor, shape: torch.Size, count: int) -> tuple[int, float]:
    """Return how many samples stand out of the noise, by a gradient's singular values, and the noise of an element."""
    for rank in range(count, 0, -1):
        noise = float(values[rank:].square().sum() / shape.numel()) ** 0.5
        noise = max(noise, float(values[0]) * torch.finfo(values.dtype).eps)
        if values[rank - 1] > ROUNDING * noise * sum(side**0.5 for side in shape):
            hidden = float(values[rank]) / shape[0] ** 0.5 if rank < count else 0.0
            return rank, max(noise, hidden)
    return 0, 0.0


def _sparsest(span: Tensor, values: Tensor, noise: float, generator: torch.Generator) -> Tensor | None:
    """Return the basis of a column space with the most zeros, as columns, as far as it is found, or ``None``.

    Args:
        span: Orthogonal columns ``[out, M]``.
        values: Their norms.
        noise: Of an element.
        generator: Draws sets of rows.
    """
    count = len(values)
    if count == 1:
        return torch.where(span.abs() > ROUNDING * noise, span, 0.0)
    rows = span[span.norm(dim=1) > ROUNDING * noise * count**0.5]  # others, dead for every sample, tell nothing
    if len(rows) < count:
        return None
    found = rows.new_empty(0, count)
    best, needed, tries = -1, 0, 0
    least, most = min(MOST_TRIES, 2 ** (count + 3)), min(MOST_TRIES, 2 ** (count + 13))
    few = math.comb(len(rows), count - 1) <= TRIES
    while tries < most and (best < 0 or tries < max(least, 4 * needed)):
        if few:
            sets, tries = torch.combinations(torch.arange(len(rows)), count - 1), most
        else:
            sets, tries = torch.randint(len(rows), (TRIES, count - 1), generator=generator), tries + TRIES
        found = _chosen(torch.cat([found, _candidates(rows, sets, noise, generator)]), rows, values, noise)
        zeros = int(_zeros(rows, found, noise).sum()) if len(found) == count else -1
        if zeros > best:
            best, needed = zeros, tries
    if not len(found):
        return None
    slopes = span @ found.T
    least = (ZERO * slopes.square().mean(0).sqrt()).clamp_min(ROUNDING * noise)
    return torch.where(slopes.abs() > least, slopes, 0.0)


def _candidates(rows: Tensor, sets: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Return unit vectors ``[K, M]`` that are orthogonal to more of the rows than those of the set they were made of.

    Args:
        rows: ``[rows, M]``.
        sets: Numbers of rows, ``[S, M - 1]``.
        noise: Of an element.
        generator: Draws what the vectors are made unit by.
    """
    found, zeros = list[Tensor](), list[Tensor]()
    for some in torch.split(sets, max(1, ELEMENTS // len(rows))):
        solved = _orthogonal(rows, some, generator)
        products = (solved @ rows.T).abs()
        near = products < NEARLY * products.square().mean(1, keepdim=True).sqrt() + ROUNDING * noise
        many = near.sum(1, dtype=torch.int32) >= rows.shape[1] - 1 + max(3, len(rows) // 20)
        many[many.clone()] = _determined(rows, near[many], noise)
        found.append(solved[many])
        zeros.append(near[many])
    return _distinct(torch.cat(found), torch.cat(zeros), rows, noise)


def _orthogonal(rows: Tensor, sets: Tensor, generator: torch.Generator) -> Tensor:
    """Return for each set of rows that determines one the unit vector that is orthogonal to all of them."""
    count = rows.shape[1]
    unit = rows / rows.norm(dim=1, keepdim=True)
    anything = torch.randn(len(sets), 1, count, generator=generator, dtype=rows.dtype)
    last = torch.eye(count, dtype=rows.dtype)[-1]
    solved, failed = torch.linalg.solve_ex(torch.cat([unit[sets], anything], dim=1), last.expand(len(sets), count))
    solved = solved / solved.norm(dim=1, keepdim=True)
    found: Tensor = solved[(failed == 0) & solved.isfinite().all(1)]
    return found


def _determined(rows: Tensor, zeros: Tensor, noise: float) -> Tensor:
    """Tell of which candidates' zeros one vector alone is orthogonal to their rows, ``[K]``.

    To rows where several slopes are zero any sum of these is. Where some slopes are small, such sums have more zeros
    than these, and there is no end of them.
    """
    squares = (zeros.to(rows) @ (rows[:, :, None] * rows[:, None, :]).flatten(1)).view(-1, *[rows.shape[1]] * 2)
    second = torch.linalg.eigvalsh(squares)[:, 1].clamp_min(0).sqrt()
    told: Tensor = second > ROUNDING * noise * zeros.sum(1).sqrt()
    return told


def _distinct(candidates: Tensor, zeros: Tensor, rows: Tensor, noise: float) -> Tensor:
    """Refine one candidate of each slope, of as many slopes as ``MOST_SLOPES``, those with more zeros first.

    Candidates whose zeros are another one's, too, are of the same slope, for these determine it.
    """
    counts = zeros.sum(1, dtype=torch.int32)
    order = counts.argsort(descending=True, stable=True)
    candidates, counts, zeros = candidates[order], counts[order], zeros[order]
    left, kept = torch.ones(len(order), dtype=torch.bool), list[Tensor]()
    numbers = zeros.float()  # products of which count what two have in common, exactly
    while bool(left.any()) and len(kept) < MOST_SLOPES:
        first = int(left.int().argmax())
        found, shared = _refined(rows, candidates[first], zeros[first], noise)
        kept.append(found)
        left &= numbers @ shared.float() < SAME * counts
        left[first] = False
    return torch.stack(kept) if kept else candidates


def _refined(rows: Tensor, candidate: Tensor, zero: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Return the vector that is most orthogonal to all rows that a candidate is nearly orthogonal to, and these."""
    for power in range(1, 5):  # an element that is small by chance is left out as the others come nearer to zero
        if int(zero.sum()) < rows.shape[1]:
            break
        candidate = torch.linalg.svd(rows[zero], full_matrices=False)[2][-1]
        found = (rows @ candidate).abs()
        zero = found < NEARLY * 10.0**-power * found.square().mean().sqrt() + ROUNDING * noise
    return candidate, zero


def _zeros(rows: Tensor, candidates: Tensor, noise: float) -> Tensor:
    """Tell which rows each candidate is orthogonal to, ``[K, rows]``."""
    return (candidates @ rows.T).abs() < ROUNDING * noise


def _chosen(candidates: Tensor, rows: Tensor, values: Tensor, noise: float) -> Tensor:
    """Return candidates of independent slopes, those with more zeros first: greedily, for a basis the best choice."""
    order = _zeros(rows, candidates, noise).sum(1).argsort(descending=True, stable=True)
    slopes = candidates * values
    sizes = slopes.norm(dim=1)
    least = (ROUNDING * noise * len(rows) ** 0.5 / sizes).clamp_min(DEPENDENT)
    basis = rows.new_empty(0, rows.shape[1])
    kept = []
    for index in order.tolist():
        outside = slopes[index] / sizes[index]
        outside = outside - basis.T @ (basis @ outside)
        if outside.norm() > least[index]:
            kept.append(index)
            outside = outside - basis.T @ (basis @ outside)
            basis = torch.cat([basis, (outside / outside.norm())[None]])
        if len(kept) == rows.shape[1]:
            break
    return candidates[kept]
