"""A client's images in each of its epochs, where nobody knows in which order it took them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from snnfl import rng
from snnfl.metrics.images import matched

PROJECTIONS = 64
"""Directions in which epochs are compared."""

EPOCH_WEIGHT = 0.01
"""Of the distance between epochs beside a cosine distance."""


def directions(input_shape: tuple[int, ...]) -> Tensor:
    """Return random directions of unit length in the space of images, ``[pixels, PROJECTIONS]``; always the same."""
    drawn = torch.randn(math.prod(input_shape), PROJECTIONS, generator=rng.generator(0, "directions of epochs"))
    unit: Tensor = drawn / torch.linalg.vector_norm(drawn, dim=0)
    return unit


def epoch_distance(images: Tensor, epochs: int, directions: Tensor) -> Tensor:
    """Return how far the images of several epochs are from being the same ones in other orders.

    ``mean_e (s_e - mean_e s_e)^2``, where ``s_e`` are an epoch's images projected on random directions and sorted along
    each: a sliced Wasserstein distance (Rabin et al. 2011), which is zero if and only if the epochs have the same
    images. Dimitrov et al. 2022 (section 4.2) compare sums of features, which more sets of images share.

    Args:
        images: Of all epochs, ``[epochs * N, ...]``.
        epochs: Their number.
        directions: Of :func:`directions`.
    """
    projected = images.reshape(epochs, -1, len(directions)) @ directions
    ranked = projected.sort(dim=1).values
    return (ranked - ranked.mean(0)).square().mean()


def merged(images: Tensor, epochs: int) -> Tensor:
    """Return the mean over epochs of the images that resemble each other, ``[N, ...]``, as the first epoch has them.

    Args:
        images: Of all epochs, ``[epochs * N, ...]``.
        epochs: Their number.
    """
    first, *others = images.reshape(epochs, -1, *images.shape[1:])
    return torch.stack([first, *(other[matched(other, first)] for other in others)]).mean(0)
