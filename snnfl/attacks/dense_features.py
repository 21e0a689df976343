"""A batch's labels and last features out of the last layer's gradient, exactly: what its weights make of features.

Features ``h_n`` that aren't sparse, as behind tanh, lie in the row space of the gradient ``sum_n e_n h_n^T / N`` all
the same, and their errors ``e_n = softmax(W h_n + b) - [k = y_n]`` in its column space. Of a batch of ``N`` images and
``K`` classes these are ``K - 1 - N`` equations for ``N`` unknown coordinates and a label, and one more says that
``e_n h_n^T / N`` is a term of the gradient (:mod:`snnfl.attacks.sparse_features`). The bias's gradient, where it was
sent, is a further column, of features of one. So up to half of the classes' number of images are solved for one by one,
from many starts, and those belong together whose products are the gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snnfl.attacks.sparse_features import Head, Solved

MOST_IMAGES = 8
"""In a batch: of more, few starts end at an image."""

MOST_CLASSES = 100
"""Of more, the equations of all starts would fill the memory."""

STARTS = 640
"""Of all labels together, but of each at least eight."""

SPREAD = 30.0
"""From the features' size if errors are about one, as of an untrained network, to the largest that is tried."""

STEPS = 60
"""Of Levenberg and Marquardt's method, which converges in ten to thirty where it does."""

SOLVED = 1e-3
"""Residual of a solution at most, in parts of its error: float32 leaves less."""

APART = 1e-2
"""Of two images of a batch, how much of one's product is in the other's."""

DRAWS = 2
"""Of starts, where one doesn't end with all images."""

SEEDS = 32
"""Solutions that are tried as the first of a set, at most."""

NOISE = 1e-6
"""Part of the largest singular value below which one is float32's rounding."""


def solve_dense(head: Head, count: int, generator: torch.Generator) -> Solved | None:
    """Return the errors and features of a batch's images, as many as were found, or ``None`` of none.

    What is found is taken out of the gradient: the others have fewer coordinates and more equations then.

    Args:
        head: The last layer, and the gradient of one step; its scale is known.
        count: Images of the batch; of more than half of the classes, or :data:`MOST_IMAGES`, nothing is found.
        generator: Draws the starts.
    """
    whole, weight = head.gradient.double(), head.weight.double()
    if head.bias is not None and head.bias_gradient is not None:
        whole = torch.cat([whole, head.bias_gradient.double()[:, None]], 1)
        weight = torch.cat([weight, head.bias.double()[:, None]], 1)
    most = min(len(whole) // 2, whole.shape[1] - 1, MOST_IMAGES)
    if not 1 < count <= most or len(whole) > MOST_CLASSES or not torch.isfinite(whole).all():
        return None
    errors, features = whole.new_empty(0, len(whole)), whole.new_empty(0, whole.shape[1])
    while (left := count - len(errors)) > 0:
        rest = (count * whole - errors.T @ features) / left
        found = _terms(rest, weight, left, generator, biased=head.bias_gradient is not None)
        if found is None:
            break
        errors, features = torch.cat([errors, found[0]]), torch.cat([features, found[1]])
    return Solved(errors=errors, features=features[:, : head.weight.shape[1]], checked=True) if len(errors) else None


def _terms(
    whole: Tensor, weight: Tensor, count: int, generator: torch.Generator, *, biased: bool
) -> tuple[Tensor, Tensor] | None:
    """Return errors and features of images whose products are terms of a gradient, all of them or some."""
    columns, sizes, rows = torch.linalg.svd(whole, full_matrices=False)
    if not sizes[count - 1] > NOISE * sizes[0]:
        return None
    columns, sizes, rows = columns[:, :count], sizes[:count], rows[:count]
    classes = len(whole)
    system = _System(
        weight @ rows.T, torch.eye(classes).double() - columns @ columns.T, columns / sizes / count,
        rows[:, -1] if biased else None,
    )  # fmt: skip
    labels = torch.eye(classes, dtype=torch.float64).repeat(max(8, STARTS // classes), 1)
    found, errors = labels.new_empty(0, count), labels.new_empty(0, classes)
    best = list[int]()
    for _ in range(DRAWS):
        drawn = torch.randn(len(labels), count, generator=generator, dtype=torch.float64)
        spread = SPREAD ** torch.rand(len(labels), 1, generator=generator, dtype=torch.float64)
        starts = spread * float(sizes.norm()) * count**0.5 * nn.functional.normalize(drawn, dim=1)
        ended, residual = system.solved(starts, labels)
        own = system.errors(ended, labels)
        order = residual.argsort()
        order = order[residual[order] < SOLVED * own[order].norm(dim=1)]
        found, errors = torch.cat([found, ended[order]]), torch.cat([errors, own[order]])
        best = _set_of(found @ system.inverse.T @ errors.T)
        if len(best) == count:
            break
    sure = len(best) == count or 2 * count < classes + biased  # fewer equations have solutions that are no images
    return (errors[best], found[best] @ rows) if best and sure else None


def _set_of(products: Tensor) -> list[int]:
    """Return the largest set that is found of solutions that are terms of one gradient.

    ``a_m^T inverse^T e_n`` is one of an image with itself, and zero with another one of the batch, for errors and
    features of a gradient ``sum_n e_n h_n^T / N`` of full rank are biorthogonal by its inverse.
    """
    apart = (products.abs() < APART) & (products.T.abs() < APART)
    best = list[int]()
    for first in range(min(len(apart), SEEDS)):
        kept, left = [first], apart[first]
        while bool(left.any()):
            kept.append(int(left.int().argmax()))
            left = left & apart[kept[-1]]
        best = kept if len(kept) > len(best) else best
    return best


@dataclass(frozen=True, eq=False)
class _System:
    """The equations of an image's coordinates ``a`` in the row space.

    Attributes:
        logits: ``W R^T`` of a basis of it, ``[K, N]``.
        outside: Projects errors out of the column space, ``[K, K]``.
        inverse: ``G^+ / N`` from errors to coordinates, transposed, ``[K, N]``.
        one: Of coordinates the feature that is one, ``[N]``, where there is one.
    """

    logits: Tensor
    outside: Tensor
    inverse: Tensor
    one: Tensor | None

    def errors(self, coordinates: Tensor, labels: Tensor) -> Tensor:
        """Return ``softmax(W h) - [k = y]``, ``[S, K]``, of coordinates ``[S, N]`` and labels ``[S, K]``."""
        return (coordinates @ self.logits.T).softmax(1) - labels

    def residuals(self, coordinates: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the equations are off by, ``[S, E]``, and its derivatives, ``[S, E, N]``."""
        errors = self.errors(coordinates, labels)
        likely = errors + labels
        slopes = likely[:, :, None] * (self.logits - (likely @ self.logits)[:, None])
        term = errors @ self.inverse
        values = [errors @ self.outside, (coordinates * term).sum(1, keepdim=True) - 1]
        by = [self.outside @ slopes, term[:, None] + (coordinates @ self.inverse.T)[:, None] @ slopes]
        if self.one is not None:
            values.append((coordinates @ self.one)[:, None] - 1)
            by.append(self.one.expand(len(coordinates), 1, -1))
        return torch.cat(values, 1), torch.cat(by, 1)

    def solved(self, coordinates: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the coordinates at which the method of Levenberg and Marquardt ends, and the residuals' norms."""
        damping = torch.full((len(coordinates), 1, 1), 1e-2, dtype=coordinates.dtype)
        values, by = self.residuals(coordinates, labels)
        for _ in range(STEPS):
            square = by.mT @ by
            damped = square + damping * torch.diag_embed(square.diagonal(dim1=1, dim2=2).clamp_min(1e-12))
            tried = coordinates - torch.linalg.solve_ex(damped, by.mT @ values[:, :, None])[0][:, :, 0]
            now, now_by = self.residuals(tried, labels)
            better = now.square().sum(1) < values.square().sum(1)
            coordinates = torch.where(better[:, None], tried, coordinates)
            values, by = torch.where(better[:, None], now, values), torch.where(better[:, None, None], now_by, by)
            damping = torch.where(better[:, None, None], damping / 3, damping * 4).clamp(1e-12, 1e8)
        return coordinates, values.norm(dim=1)
