"""The maps without parameters that a spiking graph may hold: linear in their input, or so but for a constant.

So each of them may act on every time step apart, or once on a mean over time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from snnfl.spiking.checks import (
    FARTHEST,
    is_flag,
    is_number,
    is_positive,
    is_size,
    one_of,
    optional,
    sizes,
    some,
)
from snnfl.spiking.moves import MOVES
from snnfl.spiking.node_operations import (
    Arguments,
    Form,
    Forms,
    NodeOperation,
    fixed_rank,
    padded_too_far,
    window,
)


def _always(arguments: Arguments, rank: int | None) -> bool:
    return True


# Sums of values and numbers.


def _add(left: Tensor, right: Tensor, alpha: float = 1) -> Tensor:
    if left.dim() != right.dim():  # PyTorch would align their last dimensions, and one's batch with another dimension
        raise ValueError(f"adds values of shape {list(left.shape)} and {list(right.shape)}; give both all dimensions")
    return torch.add(left, right, alpha=alpha)


def _sum_form(read: Forms, arguments: Arguments) -> Form:
    known = {form.channels for form in read} - {None}
    if len(known - {1}) > 1:
        raise ValueError(f"adds values of {' and '.join(str(form.channels) for form in read)} channels")
    largest = max((count for count in known if count is not None), default=None)
    told = largest != 1 or all(form.channels is not None for form in read)  # one channel broadcasts to an unknown count
    return Form(largest if told else None, next((form.rank for form in read if form.rank is not None), None))


def _concatenated_form(read: Forms, arguments: Arguments) -> Form:
    counts = [form.channels for form in read]
    rank = next((form.rank for form in read if form.rank is not None), None)
    if arguments["dim"] != 1:
        return Form(next((count for count in counts if count is not None), None), rank)
    return Form(None if None in counts else sum(count or 0 for count in counts), rank)


SUMS: dict[str, NodeOperation] = {
    "add": NodeOperation(
        apply=_add,
        arguments={"alpha": is_number},
        reads=2,
        form=_sum_form,
        paths=lambda left, right, alpha=1: left + right * (alpha != 0),
    ),
    "multiply": NodeOperation(
        apply=lambda value, by: value * by,
        arguments={"by": is_number},
        required=("by",),
        by_channel=_always,
        paths=lambda events, by: events * (by != 0),
    ),
    "shift": NodeOperation(
        apply=lambda value, by: value + by,
        arguments={"by": is_number},
        required=("by",),
        by_channel=_always,
        constant=lambda arguments: bool(arguments["by"]),
        paths=lambda events, by: events,
    ),
    "concatenate": NodeOperation(
        apply=lambda *values, dim: torch.cat(values, dim=dim),
        arguments={"dim": lambda value: is_size(value, 1, 8)},
        required=("dim",),
        reads=None,
        form=_concatenated_form,
    ),
}


# Averages over space.


def _mean(value: Tensor, dim: Sequence[int], keepdim: bool = False) -> Tensor:
    if any(each % value.dim() < 2 for each in dim):
        raise ValueError(f"mean over {list(dim)} of {list(value.shape)} isn't over space alone; use dimensions 2 and 3")
    return value.mean([*dim], keepdim)


def _mean_form(read: Forms, arguments: Arguments) -> Form:
    channels, rank = read[0]
    return Form(channels, rank if rank is None or arguments.get("keepdim") else rank - len(arguments["dim"]))


def _is_spatial(value: Any) -> bool:
    return some(one_of(-2, -1, 2, 3), most=2)(value) and len({*value}) == len(value)


def _window_paths_1d(events: Tensor, **arguments: Any) -> Tensor:
    wide: dict[str, Any] = {  # only the pooling of pictures takes a divisor
        key: (value[0] if isinstance(value, tuple | list) else value, int(key != "padding"))
        for key, value in arguments.items()
        if key not in ("ceil_mode", "count_include_pad")
    }
    ceil_mode = arguments.get("ceil_mode", False)
    return F.avg_pool2d(events[..., None], **wide, ceil_mode=ceil_mode, divisor_override=1)[..., 0]


def _window_paths_2d(events: Tensor, count_include_pad: bool = True, **arguments: Any) -> Tensor:
    return F.avg_pool2d(events, **arguments, divisor_override=1)


def _adaptive_paths(events: Tensor, output_size: Any) -> Tensor:
    pool = F.adaptive_avg_pool1d if events.dim() == 3 else F.adaptive_avg_pool2d
    reached = pool(events, output_size)
    for axis in range(2, reached.dim()):
        size, outputs = events.shape[axis], reached.shape[axis]
        i = torch.arange(outputs)  # a window reaches from floor(i size / outputs) on
        widths = -(-(i + 1) * size // outputs) - i * size // outputs
        reached = reached * widths.view(-1, *[1] * (reached.dim() - 1 - axis))
    return reached


def _average(rank: int) -> dict[str, NodeOperation]:
    return {
        f"avg_pool{rank}d": NodeOperation(
            apply=F.avg_pool1d if rank == 1 else F.avg_pool2d,
            arguments=window(rank, count_include_pad=is_flag),
            required=("kernel_size",),
            form=fixed_rank(rank + 2),
            problem=padded_too_far,
            by_channel=_always,
            paths=_window_paths_1d if rank == 1 else _window_paths_2d,
        ),
        f"adaptive_avg_pool{rank}d": NodeOperation(
            apply=F.adaptive_avg_pool1d if rank == 1 else F.adaptive_avg_pool2d,
            arguments={"output_size": sizes(1, rank, none=True)},
            required=("output_size",),
            form=fixed_rank(rank + 2),
            by_channel=_always,
            paths=_adaptive_paths,
        ),
    }


AVERAGES: dict[str, NodeOperation] = {
    **_average(1),
    **_average(2),
    "mean": NodeOperation(
        apply=_mean,
        arguments={"dim": _is_spatial, "keepdim": is_flag},
        required=("dim",),
        form=_mean_form,
        by_channel=_always,
        paths=lambda events, **arguments: events.sum(**arguments),
    ),
}


# Up-sampling and padding.

MODES = ("nearest", "nearest-exact", "linear", "bilinear", "bicubic", "area")


def _interpolation_paths(events: Tensor, **arguments: Any) -> Tensor:
    """Count paths axis by axis, for the weights are products of one per axis."""
    for axis in range(2, events.dim()):
        # Each position of the axis as a picture of its own, one pixel wide along the other axis.
        each = torch.eye(events.shape[axis], dtype=events.dtype)[:, None]
        for other in range(2, events.dim()):
            if other != axis:
                each = each.unsqueeze(other)
        reached = F.interpolate(each, **arguments).movedim(axis, 1).flatten(2)[..., 0] != 0
        events = torch.tensordot(events, reached.to(events), ([axis], [0])).movedim(-1, axis)
    return events


def _lacks_a_size(arguments: Arguments) -> str | None:
    if (arguments.get("size") is None) == (arguments.get("scale_factor") is None):
        return f"size={arguments.get('size')!r} with scale_factor={arguments.get('scale_factor')!r}"
    return None


def _is_factor(value: Any) -> bool:
    return is_positive(value) and value < FARTHEST


def _is_padding(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) in (2, 4, 6)
        and all(is_size(each, 1 - FARTHEST, FARTHEST) for each in value)
    )


def _pads_channels(arguments: Arguments, rank: int | None) -> int | None:
    """Return how many channels a padding adds, or nothing where only the image tells."""
    pad = arguments["pad"]
    if rank is None:
        return 0 if len(pad) == 2 else None
    place = 2 * (rank - 2)  # padding is listed from the last dimension on
    if len(pad) > place + 2 and any(pad[place + 2 :]):
        raise ValueError(f"pads {pad}, the batch of a value of {rank} dimensions included")
    return int(sum(pad[place : place + 2]))


def _padded_form(read: Forms, arguments: Arguments) -> Form:
    channels, rank = read[0]
    more = _pads_channels(arguments, rank)
    return Form(None if channels is None or more is None else channels + more, rank)


def _pad(padded: Tensor, pad: list[int], mode: str = "constant", value: float | None = None) -> Tensor:
    _pads_channels({"pad": pad}, padded.dim())
    return F.pad(padded, pad, mode, value)


SPATIAL: dict[str, NodeOperation] = {
    "interpolate": NodeOperation(
        apply=lambda value, **arguments: F.interpolate(value, **arguments),
        arguments={
            "size": optional(sizes(1, 1, 2, high=FARTHEST)),
            "scale_factor": optional(
                lambda value: all(map(_is_factor, value if isinstance(value, list | tuple) else [value]))
            ),
            "mode": one_of(*MODES),
            "align_corners": optional(is_flag),
            "recompute_scale_factor": optional(is_flag),
            "antialias": is_flag,
        },
        problem=_lacks_a_size,
        by_channel=_always,
        paths=_interpolation_paths,
    ),
    "pad": NodeOperation(
        apply=_pad,
        arguments={
            "pad": _is_padding,
            "mode": one_of("constant", "reflect", "replicate", "circular"),
            "value": optional(is_number),
        },
        required=("pad",),
        form=_padded_form,
        by_channel=lambda arguments, rank: rank is not None and not any(arguments["pad"][2 * (rank - 2) :]),
        constant=lambda arguments: bool(arguments.get("value")),
        paths=lambda events, pad, mode="constant", value=None: _pad(events, pad, mode),
    ),
}


LINEAR_OPS: dict[str, NodeOperation] = {**AVERAGES, **SUMS, **SPATIAL, **MOVES}
