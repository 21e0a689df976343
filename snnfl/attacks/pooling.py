"""Average pooling of gradient matching's flat graph, as sums of rows and a product with a small matrix.

PyTorch's kernels of average pooling take pixel by pixel, and those that ``torch.compile`` writes for its derivative do
so, too, for each element reads the one of half its index. The rows of a window are whole rows apart, and what a row's
windows hold is a product with a matrix of zeros and ones: both run on vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def average(
    inputs: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """Pool as ``aten.avg_pool2d``; ``NotImplemented`` unless windows tile the picture."""
    if (window := _tiling(inputs, kernel, stride, padding, divisor_override)) is None:
        return NotImplemented
    down, across = window
    *lead, height, width = inputs.shape
    rows = torch.stack([inputs[..., row::down, :] for row in range(down)]).sum(0)
    pooled = rows.reshape(-1, width) @ _membership(inputs, width // across, across) / (down * across)
    return pooled.view(*lead, height // down, width // across)


def average_backward(
    gradient: Tensor,
    inputs: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Any:
    """Differentiate as ``aten.avg_pool2d_backward``; ``NotImplemented`` unless windows tile the picture."""
    if (window := _tiling(inputs, kernel, stride, padding, divisor_override)) is None:
        return NotImplemented
    down, across = window
    *lead, height, width = gradient.shape
    shares = gradient.reshape(-1, width) / (down * across) @ _membership(gradient, width, across).T
    wide = shares.view(*lead, height, 1, width * across).expand(*lead, height, down, width * across)
    return wide.reshape(*lead, height * down, width * across)


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.avg_pool2d.default: average,
    torch.ops.aten.avg_pool2d_backward.default: average_backward,
}
"""For ``make_fx``."""


def _tiling(
    inputs: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], divisor: int | None
) -> tuple[int, int] | None:
    """Return the window's height and width if windows lie edge to edge and fill the picture."""
    down, across = kernel[0], kernel[-1]
    edge_to_edge = not stride or (stride[0], stride[-1]) == (down, across)
    fills = inputs.shape[-2] % down == 0 and inputs.shape[-1] % across == 0
    return (down, across) if edge_to_edge and fills and not any(padding) and divisor is None else None


def _membership(like: Tensor, windows: int, across: int) -> Tensor:
    """Return ``[windows * across, windows]``: one where a column lies in a window."""
    return torch.eye(windows, dtype=like.dtype, device=like.device).repeat_interleave(across, dim=0)
