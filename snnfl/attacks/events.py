"""Event frames from the gradient of a first linear layer: sums of few integer vectors, taken apart exactly.

The weights of a linear layer whose inputs are the frames ``x_1 .. x_F`` have the gradient ``dL/dW = sum_f d_f x_f^T =
D X``, where ``d_f`` is the gradient by the layer's output. Frames of events are small counts, mostly zero. So the row
space of the gradient, of rank ``F``, has one basis of sparse vectors of whole numbers of at least 0: the frames.
Enumerating the ``2^F`` binary vectors of the row space finds those that are binary, for small ``F``. Here columns are
looked at instead, which works for counts and for any ``F``:

1. A pixel with events in one frame alone has the column ``c d_f``, an extreme ray of the cone of all columns. The
   successive projection algorithm finds such pixels (Araujo et al. 2001; Gillis & Vavasis, "Fast and robust recursive
   algorithms for separable nonnegative matrix factorization", IEEE TPAMI 2014), and in their basis the rows of the
   gradient are the frames.
2. A frame without such a pixel gives a row that is a sum or difference of frames. Adding rows to each other makes
   them non-negative and sparse again, as in the reduction of a lattice's basis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ROUNDING = 2.0**-24
"""Relative error of a float32 product."""

WHOLE = 0.1
"""A row counts as whole numbers if none of its values is further away from one."""

LARGEST = 256
"""Counts are in one byte."""

MOST_COUNTS = 12
"""Denominators that are tried for a row: the count of the pixel that its scale is from."""

REFINEMENTS = 20
"""Alternations at most; a few are enough."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Frames:
    """What a gradient tells of its frames.

    Attributes:
        frames: Those that were found, ``[F, inputs]``, float64, whole numbers of at least 0, in no order.
        coefficients: Of each, ``[outputs, F]``: the gradient by the layer's output at its time.
        rank: How many frames show in the gradient, found or not.
        residual: What the found ones leave of the gradient, relative to it, in the Frobenius norm.
    """

    frames: Tensor
    coefficients: Tensor
    rank: int
    residual: float


def rounding_noise(weight: Tensor, learning_rate: float) -> float:
    """Return the standard deviation of an element of ``(sent - returned) / lr`` that float32 weights round off.

    Args:
        weight: As sent.
        learning_rate: Of the step.
    """
    magnitude = weight.detach().float().abs()
    spacing = torch.nextafter(magnitude, torch.full_like(magnitude, torch.inf)) - magnitude
    return float(spacing.double().square().mean().sqrt()) / math.sqrt(12) / learning_rate


def find_frames(gradient: Tensor, *, noise: float, most: int) -> Frames:
    """Return the frames of events of a linear layer's weight gradient.

    Frames that are equal, or whose coefficients are multiples of each other, show as one; those without events, or
    without a coefficient, don't show.

    Args:
        gradient: Shape ``[outputs, inputs]``.
        noise: Standard deviation of an error of its elements (:func:`rounding_noise`).
        most: Number of frames at most.
    """
    exact = gradient.double()
    active, basis = visible(exact, noise=noise, most=most)
    rows = whole_rows(basis)
    frames = torch.zeros(len(rows), gradient.shape[1], dtype=torch.float64)
    frames[:, active] = rows
    coefficients = exact @ torch.linalg.pinv(frames) if len(rows) else exact.new_zeros(len(exact), 0)
    size = float(torch.linalg.matrix_norm(exact))
    residual = float(torch.linalg.matrix_norm(exact - coefficients @ frames)) / size if size else 1.0
    return Frames(frames=frames, coefficients=coefficients, rank=len(basis), residual=residual)


def visible(gradient: Tensor, *, noise: float, most: int) -> tuple[Tensor, Tensor]:
    """Return which columns of a gradient stand out of its errors, and a basis of its rows there, ``[rank, columns]``.

    Args:
        gradient: Shape ``[outputs, inputs]``, float64.
        noise: Standard deviation of an error of its elements, and then of the basis's.
        most: Its rank at most.
    """
    outputs, inputs = gradient.shape
    active = torch.nonzero(torch.linalg.vector_norm(gradient, dim=0) > 4 * noise * math.sqrt(outputs))[:, 0]
    _, sizes, right = torch.linalg.svd(gradient[:, active], full_matrices=False)
    floor = 2 * noise * (math.sqrt(outputs) + math.sqrt(inputs))
    rank = min(int((sizes > floor).sum() if len(sizes) else 0), int((sizes > 4 * ROUNDING * sizes[:1]).sum()), most)
    return active, sizes[:rank, None] * right[:rank]


def whole_rows(basis: Tensor) -> Tensor:
    """Return the sparse rows of whole numbers, at least 0, that span the same space as a basis; ``[F, columns]``.

    Of a space without such rows, as of noise, fewer are found, mostly none.

    Args:
        basis: Shape ``[rank, columns]``, float64, no column zero. Its columns have equal errors.
    """
    rank = len(basis)
    chosen = _extreme_columns(basis)
    if rank == 0 or len(chosen) < rank:
        return basis[:0]
    rows = refined(basis, torch.linalg.solve(basis[:, chosen], basis))
    found = [row.round() for row in rows if far(row) < WHOLE and float(row.abs().max()) < LARGEST]
    if not found:
        return basis[:0]
    reduced = _reduced(torch.stack(found))
    return reduced[(reduced >= 0).all(1)] + 0.0  # no -0.0


def refined(basis: Tensor, rows: Tensor) -> Tensor:
    """Scale rows to whole numbers, and take the errors of single columns out of them.

    Rows are in the basis of a few columns, each with its error. Rounded rows tell the basis from all columns together:
    least squares with projection on whole numbers, alternating (Talwar et al. 1996), as long as it changes something.
    """
    rows = torch.stack([_scale(row) * row for row in rows])
    for _ in range(REFINEMENTS):
        whole = rows.round()
        mixing, rank = basis @ torch.linalg.pinv(whole), torch.linalg.matrix_rank(whole)
        if rank < len(rows) or torch.linalg.matrix_rank(mixing) < len(rows):
            break
        rows = torch.linalg.solve(mixing, basis)
        if torch.equal(rows.round(), whole):
            break
    return rows


def _extreme_columns(basis: Tensor) -> list[int]:
    """Choose as many independent columns as there are rows, extreme rays of the columns' cone first."""
    white = torch.linalg.svd(basis, full_matrices=False)[2]
    inside = _positive(white)
    if inside is None:
        return []
    left, chosen = white / (inside @ white), list[int]()
    for _ in range(len(basis)):
        column = int(left.square().sum(0).argmax())
        size = torch.linalg.vector_norm(left[:, column])
        if size < 1e-9:
            break
        axis = left[:, column] / size
        left = left - torch.outer(axis, axis @ left)
        chosen.append(column)
    return chosen


def _positive(columns: Tensor) -> Tensor | None:
    """Return a vector whose product with every column is positive, as far inside as can be; ``None`` if none is.

    Columns ``D x`` with ``x >= 0`` and independent ``D`` have one.
    """
    from scipy.optimize import linprog  # half a second to import

    rank, number = columns.shape
    if number == 0:
        return None
    unit = (columns / torch.linalg.vector_norm(columns, dim=0)).T
    limits = torch.cat([-unit, torch.ones(number, 1)], 1).numpy()
    goal = [0.0] * rank + [-1.0]
    bounds = [(-1.0, 1.0)] * rank + [(None, 1.0)]
    found = linprog(goal, A_ub=limits, b_ub=[0.0] * number, bounds=bounds)
    if found.x is None or found.x[-1] < 1e-9:
        return None
    return torch.from_numpy(found.x[:-1].copy())


def _scale(row: Tensor) -> int:
    """Return the smallest number that makes a row whole within its error, or 1 if none does."""
    misses = [far(factor * row) for factor in range(1, MOST_COUNTS + 1)]
    return next((factor for factor, miss in enumerate(misses, 1) if miss < WHOLE), 1)


def far(row: Tensor) -> float:
    """Return how far the value that is furthest away from a whole number is from it."""
    return float((row - row.round()).abs().max())


def _reduced(rows: Tensor) -> Tensor:
    """Add multiples of rows to each other, and divide them by their common factor, while one gets smaller by it.

    Being less negative is being smaller, too.
    """
    rows = rows.clone()
    weights = _weight(rows)
    moved = True
    while moved:
        moved = False
        for place in range(len(rows)):
            tried = torch.stack([rows[place] + factor * rows for factor in (-2, -1, 1, 2)])
            weight = _weight(tried)
            weight[:, place] = math.inf
            best, index = weight.flatten().min(0)
            if best < weights[place]:
                rows[place] = tried.flatten(0, 1)[index]
                rows[place] /= max(1, int(np.gcd.reduce(rows[place].long().numpy())))
                weights[place] = _weight(rows[place])
                moved = True
    return rows


def _weight(rows: Tensor) -> Tensor:
    """Return the sum of a row's magnitudes; each negative one counts for more than any row has."""
    return rows.abs().sum(-1) + 1e6 * (-rows).clamp_min(0).sum(-1)


def grouped(coefficients: Tensor, count: int) -> list[Tensor]:
    """Return which frames are of one sample, as indices for each of ``count`` samples.

    A step's coefficient is a sum of products of the later steps' surrogate derivatives, which aren't negative, with one
    vector that depends on the sample alone. So of a sample every output has one sign. Samples are joined from the
    frames that agree most, by average linkage.

    Args:
        coefficients: Shape ``[outputs, F]``.
        count: Number of samples.
    """
    from scipy.cluster.hierarchy import fcluster, linkage  # half a second to import

    frames = coefficients.shape[1]
    if count == 1 or frames <= 1:
        return [torch.arange(frames)] + [torch.arange(0)] * (count - 1)
    unit = coefficients / torch.linalg.vector_norm(coefficients, dim=0).clamp_min(1e-300)
    sizes, signs = unit.abs(), unit.sign()
    differ = list[Tensor]()  # of each frame from those behind it, as linkage takes it
    for frame in range(frames - 1):
        shared = torch.minimum(sizes[:, frame, None], sizes[:, frame + 1 :])
        opposed = shared * (signs[:, frame, None] != signs[:, frame + 1 :])
        differ.append(opposed.sum(0) / shared.sum(0).clamp_min(1e-300))
    labels = torch.from_numpy(fcluster(linkage(torch.cat(differ).numpy(), "average"), count, "maxclust"))
    return [torch.nonzero(labels == group + 1)[:, 0] for group in range(count)]
