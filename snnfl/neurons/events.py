"""Convolutions and linear layers driven by events: work for the spikes that there are, not for the neurons.

A spike train is mostly zeros. A dense convolution multiplies all of them; here each output adds up the weights of the
inputs in its window that fired, ``b + sum_{x_k != 0} W_k x_k``. The terms left out are zero, so this is exact but for
the order of additions. Three things make it faster than dense arithmetic on SIMD, up to :data:`MAX_DENSITY`:

- events are found without a branch, eight values at a time;
- those of a row of a window lie side by side in memory, so a window is as many short runs as it has rows;
- an event adds :data:`LANES` weights at once: output channels or, where a layer has fewer, the channels of several
  neighbouring outputs, which share one wider window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnfl.neurons.compiled import compiled
from snnfl.neurons.vectors import FOUND_AT_ONCE, POSITIONS, accumulate, append_nonzero, load, store

LANES = 64
"""Numbers that are added at once: four AVX-512 registers, few enough for processors with shorter ones."""

MAX_TOGETHER = 4
"""Neighbouring outputs that are computed together at most; their common window has weights that are zero."""

MAX_DENSITY = 0.3
"""Part of the inputs that aren't zero above which dense arithmetic is faster."""

Reals = NDArray[np.floating]
Integers = NDArray[np.integer]


@dataclass(frozen=True)
class EventLayer:
    """The weight of a convolution or linear layer, laid out so that :meth:`apply` reads it in order.

    Attributes:
        weight: Shape ``[tiles, KH, window, C, lanes]``; ``window`` is the width that ``together`` outputs see.
        channels: Output channels.
        width: Width that one output sees.
        together: Neighbouring outputs computed together.
        stride: Vertical and horizontal.
        padding: Vertical and horizontal.
    """

    weight: Tensor
    channels: int
    width: int
    together: int
    stride: tuple[int, int]
    padding: tuple[int, int]

    @staticmethod
    def of(weight: Tensor, stride: tuple[int, int] = (1, 1), padding: tuple[int, int] = (0, 0)) -> EventLayer:
        """Lay out the weight ``[out, in, KH, KW]`` of a convolution, or ``[out, in]`` of a linear layer."""
        kernel = weight if weight.dim() == 4 else weight[:, :, None, None]
        channels, inputs, height, width = kernel.shape
        gapless = channels in (8, 16, 32) and width > 1  # the outputs of a vector are neighbours in memory
        together = min(MAX_TOGETHER, LANES // channels) if gapless else 1
        window = (together - 1) * stride[1] + width
        lanes = min(LANES, max(8, 1 << (together * channels - 1).bit_length()))
        tiles = -(-together * channels // lanes)
        tiled = kernel.new_zeros(tiles, height, window, inputs, lanes)
        for output in range(together):
            seen, first = slice(output * stride[1], output * stride[1] + width), output * channels
            for tile, part in enumerate(torch.split(kernel, lanes)):
                tiled[tile, :, seen, :, first : first + len(part)] = part.permute(2, 3, 1, 0)
        return EventLayer(tiled, channels, width, together, stride, padding)

    def apply(self, value: Tensor, bias: Tensor, most: float = MAX_DENSITY) -> Tensor | None:
        """Compute ``W x + b`` of a batch.

        Args:
            value: Shape ``[N, C, H, W]``, preferably channels last, or ``[N, C]``; finite, of the weight's type.
            bias: Shape ``[out]``.
            most: Part of the value that isn't zero above which dense arithmetic is faster.

        Returns:
            Shape ``[N, out, OH, OW]``, channels last, or ``[N, out]``. ``None`` where dense arithmetic is faster: if
            too much of the value isn't zero, or the output is narrower than what is computed together.
        """
        pixels = value.permute(0, 2, 3, 1).contiguous() if value.dim() == 4 else value.contiguous()[:, None, None]
        batch, height, width, inputs = pixels.shape
        tiles, window_rows, window_columns, _, lanes = self.weight.shape
        rows = (height + 2 * self.padding[0] - window_rows) // self.stride[0] + 1
        columns = (width + 2 * self.padding[1] - self.width) // self.stride[1] + 1
        if rows < 1 or columns < self.together or pixels.numel() >= 2**31:
            return None
        shape, numbers = (batch, height, width, inputs), pixels.view(-1).numpy()
        capacity = int(most * len(numbers))
        first = np.empty(batch * height * width + 1, np.uint32)
        where = np.empty(capacity + width * inputs + FOUND_AT_ONCE, np.uint32)
        if not _find(numbers, first, where, POSITIONS, shape, capacity):
            return None
        depth = self.channels if self.together > 1 else tiles * lanes
        out = torch.empty(batch, rows, columns, depth, dtype=pixels.dtype)
        window = (window_rows, window_columns, self.together, *self.stride, *self.padding)
        weight, target = self.weight.view(-1).numpy(), out.view(-1).numpy()
        eighths = (0,) * (lanes // 8)
        _gather(numbers, first, where, weight, bias.numpy(), target, shape, window, (rows, columns, depth), eighths)
        result = out[..., : self.channels].contiguous()
        return result.permute(0, 3, 1, 2) if value.dim() == 4 else result[:, 0, 0]


def density(value: Tensor) -> float:
    """Return the part of a value on the CPU that isn't zero."""
    return float(_count(value.detach().contiguous().view(-1).numpy())) / max(value.numel(), 1)


@compiled
def _count(value: Reals) -> int:
    count = 0
    for j in range(len(value)):
        count += value[j] != 0
    return count


@compiled
def _find(
    value: Reals, first: Integers, where: Integers, positions: Integers, shape: tuple[int, ...], capacity: int
) -> bool:
    """List the positions of the inputs that aren't zero, and the ``first`` of each pixel; both with an end."""
    batch, height, width, inputs = shape
    whole = inputs // FOUND_AT_ONCE
    count = position = pixel = 0
    for _ in range(batch * height):
        for _ in range(width):
            first[pixel] = count
            pixel += 1
            for _ in range(whole):
                count = append_nonzero(value, position, where, count, positions)
                position += FOUND_AT_ONCE
            for _ in range(inputs - whole * FOUND_AT_ONCE):
                where[count] = position
                count += value[position] != 0
                position += 1
        if count > capacity:
            return False
    first[pixel] = count
    where[count] = position
    return True


@compiled
def _gather(
    value: Reals,
    first: Integers,
    where: Integers,
    weight: Reals,
    bias: Reals,
    out: Reals,
    shape: tuple[int, ...],
    window: tuple[int, ...],
    size: tuple[int, ...],
    eighths: tuple[int, ...],
) -> None:
    """Add up, for each group of outputs, the weights of the events in its window; ``8 * len(eighths)`` lanes."""
    batch, height, width, inputs = shape
    window_rows, window_columns, together, down, right, above, before = window
    rows, columns, depth = size
    lanes = 8 * len(eighths)
    start = np.zeros(-(-together * len(bias) // lanes) * lanes, bias.dtype)
    for lane in range(together * len(bias)):
        start[lane] = bias[lane % len(bias)]
    for tile in range(len(start) // lanes):
        initial = load(start, tile * lanes, eighths)
        for image in range(batch):
            for row in range(rows):
                top = row * down - above
                for group in range(0, columns, together):
                    column = min(group, columns - together)  # the last group may repeat outputs of the one before
                    left = column * right - before
                    begin, end = min(max(left, 0), width), min(left + window_columns, width)
                    total = initial
                    for y in range(max(top, 0), min(top + window_rows, height)):
                        pixels = (image * height + y) * width
                        base = ((tile * window_rows + y - top) * window_columns - left - pixels) * inputs
                        # Not a loop over a known number of events: LLVM would unroll it, which short runs don't repay.
                        event = np.intp(first[pixels + begin])
                        position = np.intp(where[event])
                        while position < (pixels + end) * inputs:
                            weights = load(weight, (base + position) * lanes, eighths)
                            total = accumulate(total, weights, value[position])
                            event += 1
                            position = np.intp(where[event])
                    store(out, ((image * rows + row) * columns + column) * depth + tile * lanes, total)
