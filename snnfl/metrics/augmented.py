"""Which of the shifts and mirror images that a client may train on a reconstruction is to be compared with.

A client with ``data.augment`` trains on one draw of :func:`snnfl.data.augmentation.augment` per image and epoch. Who
finds that very picture has found the private image, though its pixels are elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from snnfl.data.augmentation import crop


@dataclass(frozen=True, kw_only=True)
class Freedom:
    """What augmentation may do to an image.

    Attributes:
        padding: Pixels of the largest shift either way.
        flip: Whether images may be mirrored.
    """

    padding: int = 0
    flip: bool = False


def variants(images: Tensor, freedom: Freedom) -> Iterator[Tensor]:
    """Yield every picture that augmentation may make of each image, ``(2 padding + 1)^2`` of them, twice with ``flip``.

    Args:
        images: Pixels in [0, 1], shape ``[N, C, H, W]``; what is shifted in is black.
        freedom: Which pictures these are.
    """
    count, padding = len(images), freedom.padding
    for mirrored in (False, True) if freedom.flip else (False,):
        for top in range(2 * padding + 1):
            for left in range(2 * padding + 1):
                offsets = (torch.full((count,), top), torch.full((count,), left))
                yield crop(images, *offsets, torch.full((count,), mirrored), padding)


def nearest_variant(found: Tensor, true: Tensor, freedom: Freedom) -> Tensor:
    """Return of each true image the variant with the smallest squared error to its reconstruction, ``[N, C, H, W]``.

    Args:
        found: Pixels in [0, 1], shape ``[N, C, H, W]``.
        true: As ``found``.
        freedom: As of :func:`variants`.
    """
    nearest, least = true, torch.full((len(true),), torch.inf)
    for variant in variants(true, freedom):
        error = (found - variant).square().flatten(1).sum(1)
        better = error < least
        least = torch.where(better, error, least)
        nearest = torch.where(better.view(-1, 1, 1, 1), variant, nearest)
    return nearest


def costs(found: Tensor, true: Tensor, freedom: Freedom) -> Tensor:
    """Return the squared error of each reconstruction to the nearest variant of each true image, ``[N, M]``.

    Args:
        found: Shape ``[M, C, H, W]``.
        true: Shape ``[N, C, H, W]``.
        freedom: As of :func:`variants`.
    """
    flat = found.flatten(1).double()
    least = torch.full((len(true), len(found)), torch.inf, dtype=torch.float64)
    for variant in variants(true, freedom):
        least = torch.minimum(least, torch.cdist(variant.flatten(1).double(), flat).square())
    return least
