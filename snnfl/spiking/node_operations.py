"""What the nodes of a spiking graph compute: each operation declared once, with all that others ask about it.

The simulation asks how it is computed, a file of a network which arguments it may have, a spiking layer behind it how
many channels it gives, an export whether a factor passes it, and the count of energy which way spikes go through it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from snnfl.spiking.checks import Check, fixed, is_count, is_flag, sizes

Arguments: TypeAlias = Mapping[str, Any]


class Form(NamedTuple):
    """What is known of a value without an image: its channels and its dimensions; ``None`` where the image tells."""

    channels: int | None = None
    rank: int | None = None


Forms: TypeAlias = Sequence[Form]


def same_form(read: Forms, arguments: Arguments) -> Form:
    """Return the form of the first value that an operation reads."""
    return read[0]


@dataclass(frozen=True, kw_only=True)
class NodeOperation:
    """An operation of a node.

    Attributes:
        apply: Computes it, from the values that it reads (and weight and bias) and its arguments by name.
        arguments: What it may be told, and what each argument may be.
        required: What it must be told.
        reads: How many values it reads; ``None`` is one or more.
        form: The form of its result, from those of what it reads and its arguments.
        problem: What is wrong with arguments that fit one by one, or nothing.
        by_channel: Whether each channel of the result is computed from that channel alone, of a value of so many
            dimensions (``None``: unknown).
        constant: Whether it adds something of its own, so that a factor doesn't pass.
        paths: The number of events that reach each element of the result, from those of the values read; by default
            that is the operation itself, which is right for what moves values and copies them.
    """

    apply: Callable[..., Tensor]
    arguments: Mapping[str, Check] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    reads: int | None = 1
    form: Callable[[Forms, Arguments], Form] = same_form
    problem: Callable[[Arguments], str | None] = lambda arguments: None
    by_channel: Callable[[Arguments, int | None], bool] = lambda arguments, rank: False
    constant: Callable[[Arguments], bool] = lambda arguments: False
    paths: Callable[..., Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class AffineOperation(NodeOperation):
    """A layer with weight and bias.

    Attributes:
        weight_rank: Dimensions of its weight, whose first one is that of the output channels.
        rank: Dimensions of its values; ``None`` is any.
        transposed: Whether PyTorch's weight has the input channels first.
    """

    weight_rank: int
    rank: int | None
    transposed: bool = False

    @property
    def axes(self) -> int:
        """Dimensions of space that a convolution's window has."""
        return self.weight_rank - 2

    def dense(self, weight: Tensor, read: Sequence[int], result: Sequence[int]) -> int:
        """Count the multiply-accumulates of one image, from the shapes of what is read and of the result.

        Inputs that are padding count, as in every published number; in a transposed convolution each input meets each
        weight of its channel once, and what it adds beyond the border counts likewise.
        """
        if self.transposed:
            return weight.numel() * torch.Size(read[2:]).numel()
        return weight[0].numel() * torch.Size(result[1:]).numel()


def fixed_rank(rank: int) -> Callable[[Forms, Arguments], Form]:
    """Return the form of an operation that keeps channels and works on values of ``rank`` dimensions."""
    return lambda read, arguments: Form(read[0].channels, rank)


def window(rank: int, **more: Check) -> dict[str, Check]:
    """Return what a pooling over windows may be told."""
    each, padding = sizes(1, 1, rank), sizes(0, 1, rank)
    return {"kernel_size": each, "stride": each, "padding": padding, "ceil_mode": is_flag, **more}


def padded_too_far(arguments: Arguments) -> str | None:
    """Say so where a window may lie in a pooling's padding alone, which PyTorch refuses."""

    def per_axis(value: Any) -> list[int]:
        values = [*value] if isinstance(value, tuple | list) else [value]
        return values * (2 // len(values))

    keys = ("kernel_size", "padding", "dilation")
    each = zip(*(per_axis(arguments.get(key, 1 if key == "dilation" else 0)) for key in keys), strict=True)
    if any(2 * padding > dilation * (kernel - 1) + 1 for kernel, padding, dilation in each):
        return f"padding={arguments['padding']!r} beyond half of a window"
    return None


def _scale(value: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    axes = [1] * (value.dim() - 2)
    return torch.addcmul(bias.view(-1, *axes), value, weight.view(-1, *axes))


def _transposed(convolution: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def apply(value: Tensor, weight: Tensor, bias: Tensor, *, groups: int, **arguments: Any) -> Tensor:
        return convolution(value, swap_channels(weight, groups), bias, groups=groups, **arguments)

    return apply


def swap_channels(weight: Tensor, groups: int) -> Tensor:
    """Turn the weight of a transposed convolution between PyTorch's layout and ours, in either direction.

    Args:
        weight: Shape ``[in, out / groups, *kernel]`` or ``[out, in / groups, *kernel]``.
        groups: Of the convolution.

    Returns:
        The same numbers in the other of the two shapes.
    """
    grouped = weight.view(groups, len(weight) // groups, *weight.shape[1:])
    return grouped.transpose(1, 2).flatten(0, 1)


def _same_needs_no_stride(arguments: Arguments) -> str | None:
    if arguments["padding"] == "same" and set(arguments["stride"]) != {1}:
        return f"padding='same' with stride={arguments['stride']!r}"
    return None


def _convolution(apply: Callable[..., Tensor], rank: int) -> AffineOperation:
    padding = fixed(0, rank)
    arguments: dict[str, Check] = {
        "stride": fixed(1, rank),
        "padding": lambda value: value in ("same", "valid") or padding(value),
        "dilation": fixed(1, rank),
        "groups": is_count,
    }
    return AffineOperation(
        apply=apply,
        arguments=arguments,
        required=tuple(arguments),
        problem=_same_needs_no_stride,
        weight_rank=rank + 2,
        rank=rank + 2,
    )


def _transposed_convolution(convolution: Callable[..., Tensor], rank: int) -> AffineOperation:
    arguments: dict[str, Check] = {
        "stride": fixed(1, rank),
        "padding": fixed(0, rank),
        "output_padding": fixed(0, rank),
        "groups": is_count,
        "dilation": fixed(1, rank),
    }
    return AffineOperation(
        apply=_transposed(convolution),
        arguments=arguments,
        required=tuple(arguments),
        weight_rank=rank + 2,
        rank=rank + 2,
        transposed=True,
    )


AFFINE_OPS: dict[str, AffineOperation] = {
    "conv1d": _convolution(F.conv1d, 1),
    "conv2d": _convolution(F.conv2d, 2),
    "conv_transpose1d": _transposed_convolution(F.conv_transpose1d, 1),
    "conv_transpose2d": _transposed_convolution(F.conv_transpose2d, 2),
    "linear": AffineOperation(apply=F.linear, weight_rank=2, rank=2),
    "scale": AffineOperation(apply=_scale, weight_rank=1, rank=None),
}


def _maximum(apply: Callable[..., Tensor], rank: int, **arguments: Check) -> NodeOperation:
    return NodeOperation(
        apply=apply,
        arguments=arguments,
        required=tuple(arguments.keys() & {"kernel_size", "output_size"}),
        form=fixed_rank(rank + 2),
        problem=padded_too_far if "kernel_size" in arguments else lambda arguments: None,
        by_channel=lambda arguments, rank: True,
    )


MAX_OPS: dict[str, NodeOperation] = {
    "max_pool1d": _maximum(F.max_pool1d, 1, **window(1, dilation=sizes(1, 1))),
    "max_pool2d": _maximum(F.max_pool2d, 2, **window(2, dilation=sizes(1, 1, 2))),
    "adaptive_max_pool1d": _maximum(F.adaptive_max_pool1d, 1, output_size=sizes(1, 1, none=True)),
    "adaptive_max_pool2d": _maximum(F.adaptive_max_pool2d, 2, output_size=sizes(1, 2, none=True)),
}
