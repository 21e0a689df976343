"""Event frames whose coefficients sum to zero, as behind batch normalisation: known up to one number per pixel.

Batch normalisation takes a mean over the batch and time, so ``sum_f d_f = 0`` in ``dL/dW = sum_f d_f x_f^T``. Adding
the same number to a pixel of all frames then changes nothing: the row space holds the differences of frames, of rank
``F - 1``. Two things fix the numbers:

1. The running mean that the client sends is that of ``W x_f + b``, so if the layer has as many outputs as pixels with
   events, it tells the sum of all frames; with it the row space is that of the frames.
2. Frames of events are sparse: nearly every pixel is silent in one of them, so its smallest count is 0. A pixel with
   one event in one frame has that frame's ``d_f`` as its column. Many pixels do, so the columns that occur most often
   are those. Where sums of several ``d_f`` are more frequent than one of them, differences of frames are added to
   frames as long as it takes events away, as in the reduction of a lattice's basis. That can end with wrong frames.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from snnfl.attacks.events import LARGEST, WHOLE, Frames, far, refined, visible, whole_rows


def find_differences(
    gradient: Tensor, *, noise: float, most: int, weight: Tensor | None = None, summed: Tensor | None = None
) -> Frames:
    """Return the frames of events of a linear layer's weight gradient, if their coefficients sum to zero.

    Args:
        gradient: Shape ``[outputs, inputs]``.
        noise: Standard deviation of an error of its elements.
        most: Number of frames at most.
        weight: Of the layer, for ``summed``.
        summed: ``sum_f W x_f``, ``[outputs]``, if it is known. Without, each pixel's smallest count is 0 in what is
            found, and a frame that no pixel shows is empty.
    """
    exact = gradient.double()
    active, basis = visible(exact, noise=noise, most=most - 1)
    counts = None if weight is None or summed is None else _counts(weight.double()[:, active], summed.double())
    rows = basis[:0]
    if counts is not None and len(basis):
        scale = torch.linalg.vector_norm(basis[0]) / torch.linalg.vector_norm(counts)
        rows = whole_rows(torch.cat([basis, scale * counts[None]]))
    if len(rows) <= len(basis):
        sparse = sparse_frames(basis, noise)
        if counts is None or len(rows) == 0 or torch.equal(sparse.sum(0), counts):
            rows = sparse
    frames = torch.zeros(len(rows), gradient.shape[1], dtype=torch.float64)
    frames[:, active] = rows
    centred = frames - frames.mean(0)
    coefficients = exact @ torch.linalg.pinv(centred) if len(rows) else exact.new_zeros(len(exact), 0)
    size = float(torch.linalg.matrix_norm(exact))
    residual = float(torch.linalg.matrix_norm(exact - coefficients @ centred)) / size if size else 1.0
    return Frames(frames=frames, coefficients=coefficients, rank=len(basis) + 1, residual=residual)


def _counts(weight: Tensor, summed: Tensor) -> Tensor | None:
    """Return how many events each pixel has in all frames, ``[columns]``, or ``None`` if that can't be told.

    Args:
        weight: Shape ``[outputs, columns]``.
        summed: Times the counts, ``[outputs]``.
    """
    if weight.shape[1] == 0 or len(weight) < weight.shape[1]:
        return None
    counts = torch.linalg.lstsq(weight, summed[:, None]).solution[:, 0]
    whole = counts.round()
    return whole if far(counts) < WHOLE and bool((whole >= 0).all() and whole.any()) else None


def sparse_frames(basis: Tensor, noise: float) -> Tensor:
    """Return the frames with fewest events whose differences span a basis, ``[rank + 1, columns]``, or none.

    Args:
        basis: Shape ``[rank, columns]``, float64, no column zero.
        noise: Standard deviation of an error of its elements.
    """
    if len(basis) == 0:
        return basis[:0]
    chosen = _frequent_columns(basis, noise)
    if len(chosen) < len(basis):
        return basis[:0]
    rows = refined(basis, torch.linalg.solve(chosen.T, basis))
    whole = [row.round() for row in rows if far(row) < WHOLE and float(row.abs().max()) < LARGEST]
    if not whole:
        return basis[:0]
    differences = _in_own_lattice(torch.stack(whole))
    return _fewest_events(_above_zero(torch.cat([differences, torch.zeros_like(differences[:1])])))


def _frequent_columns(basis: Tensor, noise: float) -> Tensor:
    """Return as many independent columns as there are rows, the most frequent first, ``[rank, rank]``: one per row."""
    rank = len(basis)
    near = noise * (math.sqrt(2 * rank) + 5)  # of the distance of two equal columns
    alike = torch.cdist(basis.T, basis.T) < near
    left, chosen = alike.sum(1), list[Tensor]()
    axes = basis.new_zeros(rank, 0)
    while len(chosen) < rank and int(left.max()) > 0:
        group = alike[int(left.argmax())]
        left[int(left.argmax())] = 0
        column = basis[:, group].mean(1)
        rest = column - axes @ (axes.T @ column)
        if torch.linalg.vector_norm(rest) > near:
            axes = torch.cat([axes, (rest / torch.linalg.vector_norm(rest))[:, None]], 1)
            chosen.append(column)
    return torch.stack(chosen) if chosen else basis[:0]


def _in_own_lattice(rows: Tensor) -> Tensor:
    """Return combinations of whole rows whose columns generate all whole vectors: none is a row of multiples in hiding.

    Columns of single events are unit vectors in the basis of the right frames, so those of any other basis generate a
    lattice of which this is the basis: the Hermite normal form of the columns (Cohen 1993, algorithm 2.4.4).
    """
    columns, basis = torch.unique(rows, dim=1), list[Tensor]()
    for place in range(len(rows)):
        while len(filled := torch.nonzero(columns[place])[:, 0]) > 1:
            least = filled[columns[place, filled].abs().argmin()]
            share = (columns[place] / columns[place, least]).round()
            share[least] = 0
            columns = torch.unique(columns - torch.outer(columns[:, least], share), dim=1)
        if not len(filled):  # rows that depend on each other
            return rows
        pivot = columns[:, filled[0]] * columns[place, filled[0]].sign()
        basis = [*(column - (column[place] / pivot[place]).round() * pivot for column in basis), pivot]
        columns = torch.cat([columns[:, : filled[0]], columns[:, filled[0] + 1 :]], 1)
    found: Tensor = torch.linalg.solve(torch.stack(basis, 1), rows).round()
    return found


def _above_zero(frames: Tensor) -> Tensor:
    """Shift each pixel so that its smallest count is 0."""
    return frames - frames.amin(0)


def _fewest_events(frames: Tensor) -> Tensor:
    """Add differences of two frames to a third while there are fewer events with it, pixels shifted back above zero."""
    number, moved = len(frames), float(frames.sum())
    while True:
        best, step = moved, None
        for changed in range(number):
            others = torch.cat([frames[:changed], frames[changed + 1 :]])
            low, total = others.amin(0), others.sum(0)
            for added in range(number):
                row = frames[changed] + frames[added] - frames  # [number, columns]
                events = (total + row - number * torch.minimum(low, row)).sum(1)
                events[changed] = math.inf
                least, taken = events.min(0)
                if float(least) < best and added != changed:
                    best, step = float(least), (changed, row[taken])
        if step is None:
            return frames
        frames = frames.clone()
        frames[step[0]] = step[1]
        frames, moved = _above_zero(frames), best
