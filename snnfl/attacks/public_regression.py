"""Samples as public ones, regressed on what an update tells of them, say: where to start, and what is likely.

What a hidden layer is given of a sample, or what an update of it tells, every server can compute of public ones. Kernel
ridge regression (Saunders, Gammerman & Vovk 1998) with a Gaussian kernel ``k`` has the expected sample
``m + (x - m) (K + l 1)^-1 k``. Leaving each example out once costs nothing more: its error is
``a_i / ((K + l 1)^-1)_ii`` with the coefficients ``a``. So the errors' covariance ``C`` says which mistakes are likely,
and a correction ``e`` costs ``e C^-1 e^T``. An image's shifted copies aren't left out with it, so the errors of
images that have some are a little larger than these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

MOST_EXAMPLES = 8000
"""Public samples, and copies of images shifted by a pixel, whose kernel is inverted: some 20 CPU-s, and 2.5 GB."""

MOST_NUMBERS = 5 * 10**7
"""Of what a layer is given of all examples, in memory."""

MOST_PIXELS = 4096
"""Of a sample, whose errors have a covariance."""

RIDGE = 1e-2
"""Of the kernel, which is 1 for equals."""

SHRINKAGE = 0.02
"""Of the errors' covariance: share of the mean variance that is added to each."""

PART = 250
"""Samples that are run at once."""

LEAST = 8
"""Public samples to learn from."""

SHIFTS = ((0, 1), (2, 1), (1, 0), (1, 2))
"""Corners of the cut, in an image with one more pixel on each side."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Expected:
    """What public samples say of some others.

    Attributes:
        samples: The expected ones, ``[V, *input_shape]``.
        root: Shape ``[pixels, pixels]``: a correction ``e`` costs ``|e root|^2 / pixels``, and one of a single pixel 1
            over the pixels, on average.
    """

    samples: Tensor
    root: Tensor

    def cost(self, samples: Tensor, near: Tensor) -> Tensor:
        """Return how unlikely samples ``[N, *input_shape]`` are where ``near`` ones are expected, ``[N]``."""
        costs: Tensor = ((samples - near).flatten(1) @ self.root).square().mean(1)
        return costs


def expected(
    public: Tensor,
    given: Callable[[Tensor, Tensor], Tensor],
    wanted: Tensor,
    generator: torch.Generator,
    most: int | None = None,
) -> Expected:
    """Regress public samples on what is known of the ones that are sought.

    Args:
        public: Shape ``[M, *input_shape]``, at least two; drawn from, if they are too many.
        given: What would be known of samples ``[N, *input_shape]`` and of which public ones they are, ``[N]``, copies
            that are shifted: ``[N, features]``.
        wanted: What is known of the samples that are sought, ``[V, features]``.
        generator: Draws examples.
        most: Of them; ``None`` for :data:`MOST_EXAMPLES`.

    Raises:
        ValueError: For more than :data:`MOST_PIXELS`.
    """
    samples, errors = _regressed(public, given, wanted, generator, most)
    covariance = errors.T @ errors / len(errors)
    covariance.diagonal().add_(SHRINKAGE * covariance.diagonal().mean() + 1e-12)
    precision = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
    root = torch.linalg.cholesky(precision / precision.diagonal().mean())
    return Expected(samples=samples, root=root.float())


def expected_alone(
    public: Tensor,
    given: Callable[[Tensor, Tensor], Tensor],
    wanted: Tensor,
    generator: torch.Generator,
    most: int | None = None,
) -> Tensor:
    """Return the samples of :func:`expected`, without the cost of others, which takes longest of large samples."""
    return _regressed(public, given, wanted, generator, most)[0]


def _regressed(
    public: Tensor,
    given: Callable[[Tensor, Tensor], Tensor],
    wanted: Tensor,
    generator: torch.Generator,
    most: int | None,
) -> tuple[Tensor, Tensor]:
    """Return the expected samples, and the errors of examples that are expected without themselves."""
    pixels = public[0].numel()
    if pixels > MOST_PIXELS:
        raise ValueError(f"samples of {pixels} numbers: expected at most {MOST_PIXELS}")
    samples, which = _examples(public, min(most or MOST_EXAMPLES, MOST_NUMBERS // wanted.shape[1]), generator)
    parts = zip(torch.split(samples, PART), torch.split(which, PART), strict=True)
    inputs = torch.cat([given(*part).detach() for part in parts])
    values = samples.flatten(1).double()
    mean, middle = values.mean(0), inputs.mean(0)
    inputs, wanted = inputs - middle, wanted - middle  # products of what is nearly equal would be rounding alone
    squares = _squares(inputs, inputs)
    width = squares.median().clamp_min(1e-300)
    kernel = torch.exp(-squares / width)
    kernel.diagonal().add_(RIDGE)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(kernel))
    coefficients = inverse @ (values - mean)
    found = torch.exp(-_squares(wanted, inputs) / width) @ coefficients + mean
    return found.float().view(-1, *public.shape[1:]), coefficients / inverse.diagonal()[:, None]


def others(public: Tensor, taken: Sequence[Tensor]) -> Tensor:
    """Tell which public samples aren't among those taken, ``[M]``."""
    free = torch.ones(len(public), dtype=torch.bool)
    for sample in torch.cat(list(taken)) if taken else ():
        free &= (public != sample).flatten(1).any(1)
    return free


def _examples(public: Tensor, most: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return public samples, of images also as many shifted copies as there is room for, and which ones they are."""
    shifts = SHIFTS if public.dim() == 4 else ()
    first = torch.randperm(len(public), generator=generator)[:most]
    copies = torch.randperm(len(public) * len(shifts), generator=generator)[: most - len(first)]
    samples = torch.cat([public[first], public[copies % len(public)]])
    for number, (top, left) in enumerate(shifts):
        height, width = public.shape[2:]
        moved = len(first) + (copies // len(public) == number).nonzero()[:, 0]
        padded = functional.pad(samples[moved], (1, 1, 1, 1), mode="replicate")
        samples[moved] = padded[..., top : top + height, left : left + width]
    return samples, torch.cat([first, copies % len(public)])


def _squares(one: Tensor, other: Tensor) -> Tensor:
    """Return the squared distances of rows, float64, of products in float32."""
    sizes = [rows.square().sum(1).double() for rows in (one, other)]
    return (sizes[0][:, None] + sizes[1] - 2 * (one @ other.T).double()).clamp_min(0)
