"""Small convolutions of gradient matching's flat graph, by the kernels that take the least time for them.

For one CIFAR-10 image in LeNet-5, what oneDNN prepares at every call takes four times as long as the convolution itself
(100 against 25 us). PyTorch's own kernels, columns of pixels times a matrix, prepare nothing. From about a million
products on, oneDNN is as fast or faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

ATEN = torch.ops.aten

SMALL = 2**20
"""Products of a convolution, below which it is small."""


def convolution(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    *_: Any,
) -> Tensor:
    """Convolve as ``aten.convolution``, without dilation and groups; a transposed one has no bias."""
    inputs, weight, kernel = inputs.contiguous(), weight.contiguous(), weight.shape[2:]
    if not transposed:
        found: Tensor = ATEN._slow_conv2d_forward.default(inputs, weight, kernel, bias, stride, padding)
        return found
    each = zip(inputs.shape[2:], kernel, stride, padding, strict=True)
    wide = [(length - 1) * step + size - 2 * pad for length, size, step, pad in each]
    like = inputs.new_empty(len(inputs), weight.shape[1], *wide)  # for its shape
    return _backward(inputs, like, weight, kernel, stride, padding, [True, False, False])[0]


def convolution_backward(
    gradient: Tensor,
    inputs: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    *others: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiate as ``aten.convolution_backward``, without dilation, groups and of none that is transposed.

    Which slopes are wanted is its last argument.
    """
    gradient, inputs, weight = gradient.contiguous(), inputs.contiguous(), weight.contiguous()
    return _backward(gradient, inputs, weight, weight.shape[2:], stride, padding, others[-1])


_backward: Callable[..., tuple[Tensor, Tensor, Tensor]] = ATEN._slow_conv2d_backward.output_mask


def choose_kernel(node: fx.Node) -> None:
    """Let a node of a flat graph convolve by :func:`convolution`, or its derivative, if it is a small and plain one."""
    given: Any = node.args
    if node.target is ATEN.convolution.default:
        inputs, weight, bias, *_, dilation, transposed, output_padding, groups = given
        positions = (_value(inputs) if transposed else _value(node)).shape[2:]
        kernel: Callable[..., Any] = convolution
        plain = not transposed or bias is None
    elif node.target is ATEN.convolution_backward.default:
        gradient, inputs, weight, *_, dilation, transposed, output_padding, groups, _ = given
        positions = _value(gradient).shape[2:]
        kernel, plain = convolution_backward, not transposed
    else:
        return
    one, other = _value(inputs), _value(weight)
    alike = one.dtype == other.dtype == torch.float32 and one.device.type == "cpu" and one.dim() == 4
    if not (plain and alike and groups == 1 and {*dilation} == {1} and not any(output_padding)):
        return
    if len(one) * other.numel() * prod(positions) < SMALL:
        node.target = kernel


def _value(node: Any) -> Tensor:
    """Return a tensor as a node's."""
    value: Tensor = node.meta["val"]
    return value
