"""Max pooling over time: what passes a window is the growth of its largest sum so far.

With ``X_i(t)`` the sum over time of what element ``i`` of a window has given, the result of step ``t`` is

    ``y(t) = max_i X_i(t) - max_i X_i(t - 1)``

so that its sum over time is ``max_i X_i(T)`` at every ``T``: the mean of the maxima is the maximum of the means, as the
ANN has it, without an error of its own. Of spikes this is a gate as that of Rueckauer et al. (2017, "spiking
max-pooling"), which lets the spikes of the neuron pass that has fired most: a spike passes when it takes its neuron
ahead of all others. No neuron gets ahead by more than one spike at a time, so that ``y`` is a train of single spikes.
The maximum of the current at each step, by contrast, has a mean above the maximum of the mean currents, however long
one waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnfl.neurons.compiled import compiled
from snnfl.spiking.graph import MaxPool


class Accumulated(NamedTuple):
    """What a max pooling remembers between steps: sums over time ``[N, C, *space]`` and their maxima."""

    total: Tensor
    largest: Tensor


def gated_maximum(node: MaxPool, value: Tensor, before: Accumulated | None) -> tuple[Tensor, Accumulated]:
    """Run a max pooling over consecutive time steps.

    Sums are float64: then the difference of two sums of equal single-precision spikes is that spike in every bit. Two
    implementations agree, on the CPU in every bit: compiled by Numba there, and PyTorch's operations for all else.

    Args:
        node: The pooling.
        value: What it reads, ``[T, N, C, *space]``.
        before: What it remembers of the steps before, which is changed in place; ``None`` at the first.

    Returns:
        What passes at each step, ``[T, N, C, *windows]``, and what to remember.
    """
    if value.device.type == "cpu" and value.dtype in (torch.float32, torch.float64):
        return _gate_compiled(node, value, before)
    return gate(node, value, before)


def gate(node: MaxPool, value: Tensor, before: Accumulated | None) -> tuple[Tensor, Accumulated]:
    """Do the same by PyTorch's operations, which can be differentiated."""
    total = value.double()
    if before is not None:
        total = torch.cat([before.total[None], total])
    total = total.cumsum(0)[-len(value) :]
    largest = node.apply([total.flatten(0, 1)], {})
    largest = largest.view(*total.shape[:2], *largest.shape[1:])
    earlier = torch.zeros_like(largest[:1]) if before is None else before.largest[None]
    return torch.diff(largest, dim=0, prepend=earlier).to(value.dtype), Accumulated(total[-1], largest[-1])


def _gate_compiled(node: MaxPool, value: Tensor, before: Accumulated | None) -> tuple[Tensor, Accumulated]:
    """Lay everything out channels last, which the loops read in order."""
    pixels = value.movedim(2, -1)
    if value.dim() == 4:
        pixels = pixels[..., None, :]
    pixels = pixels.contiguous()
    steps, images, *size, channels = pixels.shape
    shape = node.apply([value[0, :1]], {}).shape
    counts = (*shape[2:], 1)[:2]
    if before is None:
        before = Accumulated(
            torch.zeros(images, *size, channels, dtype=torch.float64),
            torch.zeros(images, *counts, channels, dtype=torch.float64),
        )
    windows: list[NDArray[np.int64]] = [_windows(node, axis, size[axis], counts[axis]) for axis in range(2)]
    passed = torch.empty(steps, images, *counts, channels, dtype=value.dtype)
    _pass(pixels.numpy(), before.total.numpy(), before.largest.numpy(), *windows, passed.numpy())
    passed = passed[..., 0, :] if value.dim() == 4 else passed
    return passed.movedim(-1, 2), before


def _windows(node: MaxPool, axis: int, size: int, count: int) -> NDArray[np.int64]:
    """Return the first position, the one after the last, and the step of each window along an axis."""
    if axis == 1 and node.op.endswith("1d"):
        return np.array([[0, 1, 1]])
    if node.op.startswith("adaptive"):
        return np.array([[i * size // count, -(-(i + 1) * size // count), 1] for i in range(count)])

    def of_axis(key: str, default: Any) -> int:
        given = node.arguments.get(key, default)
        values: Sequence[int] = [*given] if isinstance(given, tuple | list) else [given]
        return values[axis % len(values)]

    kernel, padding, dilation = of_axis("kernel_size", None), of_axis("padding", 0), of_axis("dilation", 1)
    stride = of_axis("stride", node.arguments["kernel_size"])
    starts = [place * stride - padding for place in range(count)]
    return np.array(
        [[max(start, start % dilation), min(start + dilation * (kernel - 1) + 1, size), dilation] for start in starts]
    )


@compiled
def _pass(
    value: NDArray[np.floating],
    total: NDArray[np.floating],
    largest: NDArray[np.floating],
    rows: NDArray[np.integer],
    columns: NDArray[np.integer],
    passed: NDArray[np.floating],
) -> None:
    steps, images, height, width, channels = value.shape
    most = np.empty(channels, total.dtype)
    for image in range(images):
        for step in range(steps):
            for row in range(height):
                for column in range(width):
                    given, sums = value[step, image, row, column], total[image, row, column]
                    for c in range(channels):
                        sums[c] += given[c]
            for i in range(len(rows)):
                for j in range(len(columns)):
                    most[:] = -np.inf
                    for row in range(rows[i, 0], rows[i, 1], rows[i, 2]):
                        for column in range(columns[j, 0], columns[j, 1], columns[j, 2]):
                            sums = total[image, row, column]
                            for c in range(channels):
                                most[c] = max(most[c], sums[c])
                    before, out = largest[image, i, j], passed[step, image, i, j]
                    for c in range(channels):
                        out[c] = most[c] - before[c]
                        before[c] = most[c]
