"""A batch's labels and last features out of the last layer's gradient alone, exactly: features are sparse.

The gradient ``sum_n e_n h_n^T / N`` of the last layer's weight has the rank of the batch if that is below the number
of classes, and each image's features ``h_n``, behind ReLU or spikes, lie in its row space. Of all that lies there,
``h_n`` is what vanishes where ``h_n`` is zero: so ``N - 1`` columns, drawn at random, that happen to be zero in ``h_n``
give it up to a factor. That is the argument by which SPEAR (Dimitrov et al. 2024) recovers the inputs of a first linear
layer. Of the last one it can be checked what was found, for logits, probabilities and errors follow from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TRIES = 4000
"""Sets of columns that are drawn. Of eight images whose features are zero in half of the units each is met 31 times."""

MOST_IMAGES = 32
"""In a batch: of more, no set of columns is met by chance, and all sets together would fill the memory."""

ROUNDING = 3e-3
"""Share of a vector's largest element below which an element counts as zero."""

UNLIKE = 30.0
"""Times the median of what rounding leaves of a vector's zeros: what is larger may be a small feature."""

SAME = 1 - 1e-4
"""Cosine from which two vectors are one."""

FITS = 1e-3
"""Share of an image's error that may lie outside the gradient's column space; of a wrong one most does."""


TERM = 0.01
"""By how much the rank-one term of right features may differ from one, from float32 rounding."""

APART = 0.5
"""Of two images, how much of one's term is in the other's: nothing but rounding, of one that came twice all of it."""

CLEAR = 0.05
"""Share of an error's largest element below which a negative one counts as rounding."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """The last layer.

    Attributes:
        weight: ``[classes, features]``.
        gradient: Mean over the batch, as ``weight``.
        bias: ``[classes]``, and its gradient; ``None`` where the update doesn't hold it.
        bias_gradient: ``[classes]``.
    """

    weight: Tensor
    gradient: Tensor
    bias: Tensor | None = None
    bias_gradient: Tensor | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Solved:
    """Images of a batch whose terms of the gradient were found.

    Attributes:
        errors: ``p_n - [k = y_n]``, ``[M, classes]``. The one negative element is the image's label.
        features: ``h_n``, what the last layer was given, ``[M, features]``.
        checked: Whether each was checked to be a term of the gradient. Else both are known up to a factor.
    """

    errors: Tensor
    features: Tensor
    checked: bool

    @property
    def labels(self) -> Tensor:
        """Of the images, ``[M]``."""
        return self.errors.argmin(1)


def solve(head: Head, count: int, generator: torch.Generator) -> Solved | None:
    """Return the errors and features of a batch's images, as many as were found, or ``None`` of none.

    Without the bias's gradient they are known up to a factor and nothing can be checked, so there are all of them or
    ``None``.

    Args:
        head: The last layer, and the gradient of one step.
        count: Images of the batch; of more than :data:`MOST_IMAGES` nothing is found.
        generator: Draws the columns.
    """
    whole = head.gradient if head.bias_gradient is None else torch.cat([head.gradient, head.bias_gradient[:, None]], 1)
    if not 1 < count < min(*whole.shape, MOST_IMAGES + 1) or not torch.isfinite(whole).all():
        return None
    columns, sizes, rows = torch.linalg.svd(whole.double(), full_matrices=False)
    found, seen = _sparse_vectors(rows[:count], generator)
    found = found[seen.argsort(descending=True, stable=True)]
    if head.bias is None or count == len(whole) - 1:  # of as many images any error fits, for its elements' sum is zero
        return _unchecked(whole.double(), found, count, head.weight.shape[1])
    inverse = rows[:count].T / sizes[:count].clamp_min(1e-300) @ columns[:, :count].T
    return _checked(head.weight.double(), head.bias.double(), columns[:, :count], inverse, found, count)


def _sparse_vectors(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return different vectors of a row space without negative elements but with many zeros, and how often each came.

    Args:
        rows: A basis, ``[N, features]``.
        generator: Draws the columns.
    """
    count = len(rows)
    sizes = rows.norm(dim=0)
    live = (sizes > 1e-6 * sizes.max()).nonzero().flatten()
    if len(live) < count:
        return rows[:0], sizes[:0]
    drawn = torch.rand(TRIES, len(live), generator=generator).topk(count - 1, largest=False).indices
    sets, times = torch.unique(drawn.sort(1).values, dim=0, return_counts=True)  # few of two images, nearly all of more
    drawn = rows[:, live[sets]].permute(1, 2, 0)
    _, values, vectors = torch.linalg.svd(drawn / drawn.norm(dim=2, keepdim=True))
    told = values[:, -1] > 1e-2 * values[:, 0]  # else more than one vector vanishes there
    found = vectors[told, -1] @ rows
    found = found * found.sum(1, keepdim=True).sign()
    smallest = ROUNDING * found.amax(1, keepdim=True)
    zeros = (found[:, live].abs() < smallest).sum(1)
    fine = (found >= -smallest).all(1) & (zeros > count)
    order = zeros[fine].argsort(descending=True, stable=True)
    found, times = torch.nn.functional.normalize(found[fine][order], dim=1), times[told][fine][order]
    kept, seen = list[Tensor](), list[int]()
    while len(found):
        same = found @ found[0] > SAME
        again, met = _by_all_zeros(rows, found[0], live), int(times[same].sum())
        twice = [i for i, other in enumerate(kept) if float(other @ again) > SAME]  # apart by rounding alone
        if twice:
            seen[twice[0]] += met
        else:
            kept.append(again)
            seen.append(met)
        found, times = found[~same], times[~same]
    return torch.stack(kept) if kept else rows[:0], torch.tensor(seen)


def _by_all_zeros(rows: Tensor, found: Tensor, live: Tensor) -> Tensor:
    """Return a vector again, by all columns in which it is zero: with less rounding than by ``N - 1`` of them.

    Args:
        rows: A basis of the space in which it lies, ``[N, features]``.
        found: Of norm 1, ``[features]``.
        live: Columns in which any vector of the space isn't zero.
    """
    sizes = found[live].abs()
    zero = sizes < ROUNDING * found.max()
    zero &= sizes <= UNLIKE * sizes[zero].median()
    triangle = torch.linalg.qr(rows[:, live[zero]].T, mode="r")[1]  # as small as the batch: columns may be 10,000s
    again = torch.linalg.svd(triangle)[2][-1] @ rows
    return torch.nn.functional.normalize(again * (again @ found).sign(), dim=0)


def _checked(
    weight: Tensor, bias: Tensor, columns: Tensor, inverse: Tensor, found: Tensor, count: int
) -> Solved | None:
    """Return the errors that follow from features, of those that the gradient is made of together with their error.

    An error of an untrained network hardly depends on the features, so wrong ones have one that fits. But features
    ``h`` and error ``e`` of one of ``N`` images are a term of the gradient ``G`` if and only if ``G - e h^T / N`` has a
    rank less, which is ``h^T G^+ e = N`` (Wedderburn 1934); with the error of another of these images it is zero.

    Args:
        weight: Of the last layer.
        bias: Of it.
        columns: Basis of the gradient's column space, ``[classes, N]``.
        inverse: Pseudo-inverse of the gradient, whose last column is the bias's, ``[features + 1, classes]``.
        found: Features up to a factor, and in the last column that factor; the surest first.
        count: At most so many.
    """
    found = found[found[:, -1] > 0]
    features = found[:, :-1] / found[:, -1:]
    probabilities = (features @ weight.T + bias).softmax(1)
    errors = probabilities[:, None] - torch.eye(len(weight), dtype=weight.dtype)  # of each label that it might have
    outside = (errors - errors @ columns @ columns.T).norm(dim=2) / errors.norm(dim=2).clamp_min(1e-30)
    least, label = outside.min(1)
    own = errors[torch.arange(len(errors)), label]
    terms = (found / found[:, -1:]) @ inverse @ own.T / count
    fits = ((least < FITS) & ((terms.diagonal() - 1).abs() < TERM)).nonzero().flatten().tolist()
    right = list[int]()
    for one in fits:  # an image that came twice, once with more rounding, would take the place of another one
        met = torch.cat([terms[one, right], terms[right, one]]).abs() > APART
        if len(right) < count and not bool(met.any()):
            right.append(one)
    return Solved(errors=own[right], features=features[right], checked=True) if right else None


def _unchecked(gradient: Tensor, found: Tensor, count: int, width: int) -> Solved | None:
    """Return all errors up to a factor each, by the surest features; ``None`` if there are too few or one is no error.

    An error has one negative element.
    """
    if len(found) < count:
        return None
    errors = (gradient @ torch.linalg.pinv(found[:count])).T
    negative = (errors < -CLEAR * errors.abs().amax(1, keepdim=True)).sum(1)
    if not bool((negative == 1).all()):
        return None
    return Solved(errors=errors, features=found[:count, :width], checked=False)
