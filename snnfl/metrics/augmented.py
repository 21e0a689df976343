"""Which of the shifts and mirror images that a client may train on a reconstruction is to be compared with.

A client with ``data.augment`` trains on one draw of :func:`snnfl.data.augmentation.augment` per image and epoch. Who
finds that very picture has found the private image, though its pixels are elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from snnfl.data.augmentation import crop


def variants(images: Tensor, *, padding: int, flip: bool) -> Iterator[Tensor]:
    """Yield every picture that augmentation may make of each image, ``(2 padding + 1)^2`` of them, twice with ``flip``.

    Args:
        images: Pixels in [0, 1], shape ``[N, C, H, W]``; what is shifted in is black.
        padding: Pixels of the largest shift.
        flip: Whether images may be mirrored.
    """
    count = len(images)
    for mirrored in (False, True) if flip else (False,):
        for top in range(2 * padding + 1):
            for left in range(2 * padding + 1):
                offsets = (torch.full((count,), top), torch.full((count,), left))
                yield crop(images, *offsets, torch.full((count,), mirrored), padding)


def nearest_variant(found: Tensor, true: Tensor, *, padding: int, flip: bool) -> Tensor:
    """Return of each true image the variant with the smallest squared error to its reconstruction, ``[N, C, H, W]``.

    Args:
        found: Pixels in [0, 1], shape ``[N, C, H, W]``.
        true: As ``found``.
        padding: As of :func:`variants`.
        flip: Likewise.
    """
    nearest, least = true, torch.full((len(true),), torch.inf)
    for variant in variants(true, padding=padding, flip=flip):
        error = (found - variant).square().flatten(1).sum(1)
        better = error < least
        least = torch.where(better, error, least)
        nearest = torch.where(better.view(-1, 1, 1, 1), variant, nearest)
    return nearest


def costs(found: Tensor, true: Tensor, *, padding: int, flip: bool) -> Tensor:
    """Return the squared error of each reconstruction to the nearest variant of each true image, ``[N, M]``.

    Args:
        found: Shape ``[M, C, H, W]``.
        true: Shape ``[N, C, H, W]``.
        padding: As of :func:`variants`.
        flip: Likewise.
    """
    flat = found.flatten(1).double()
    least = torch.full((len(true), len(found)), torch.inf, dtype=torch.float64)
    for variant in variants(true, padding=padding, flip=flip):
        least = torch.minimum(least, torch.cdist(variant.flatten(1).double(), flat).square())
    return least
