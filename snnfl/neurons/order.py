"""The order in which neurons lie in memory, as the scans of trained neurons read them."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from snnfl.neurons.kernel_normalised import BLOCK


class Order:
    """The order in which neurons lie in memory: as rows ``[T, rows, width * inner]`` of the kernels.

    Args:
        values: Shape ``[T, N, C, *space]``.
        pool: Side of the squares that are averaged.
        channels: Whether a row has to be several times all channels, of values that lie channels last.
    """

    def __init__(self, values: Tensor, pool: int, *, channels: bool = False) -> None:
        last = values.movedim(2, -1) if values.dim() > 3 else values
        lies_so = values.dim() > 3 and last.is_contiguous() and not values.is_contiguous()
        self._channels_last = lies_so or (pool > 1 and values.dim() > 3)
        self._pool = pool
        if pool > 1:
            self.inner, (self.height, self._width) = values.shape[2], values.shape[3:]
            return
        neurons = math.prod(values.shape[1:])
        self._length = row_of_channels(neurons, values.shape[2]) if channels else _row_of(neurons)
        self.inner, self.height = 1, 1

    def rows(self, values: Tensor, *, pooled: bool = False) -> NDArray[Any]:
        """Return values of ``[T, N, C, *space]`` as rows, without a copy where they lie so."""
        laid_out = values.movedim(2, -1) if self._channels_last else values
        length = (
            self._length if self._pool == 1 else self.inner * (self._width // self._pool if pooled else self._width)
        )
        rows: NDArray[Any] = laid_out.detach().contiguous().numpy().reshape(values.shape[0], -1, length)
        return rows

    def flat(self, values: Tensor) -> Tensor:
        """Return values of ``[T, N, C, *space]`` as ``[T, neurons]``, without a copy where they lie so."""
        laid_out = values.movedim(2, -1) if self._channels_last else values
        return laid_out.detach().contiguous().view(len(values), -1)

    def empty(self, steps: int, like: Tensor, *, pooled: bool = False) -> Tensor:
        """Return memory of this order for so many steps."""
        _, images, channels, *space = like.shape
        if pooled:
            space = [side // self._pool for side in space]
        if not self._channels_last:
            return torch.empty(steps, images, channels, *space, dtype=like.dtype, device=like.device)
        return torch.empty(steps, images, *space, channels, dtype=like.dtype, device=like.device).movedim(-1, 2)


@functools.cache
def _row_of(neurons: int) -> int:
    """Return the longest row that the neurons fill evenly and the cache holds; all of them if there is none."""
    return next((size for size in range(BLOCK, 255, -1) if neurons % size == 0), neurons)


@functools.cache
def row_of_channels(neurons: int, channels: int) -> int:
    """Return the longest row of several times all channels that the neurons fill evenly and the cache holds."""
    longest = BLOCK - BLOCK % channels
    return next((size for size in range(longest, channels, -channels) if neurons % size == 0), channels)
