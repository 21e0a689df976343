"""The maps of a spiking graph that move values to other places, or leave some out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from snnfl.spiking.checks import is_count, is_dimension, is_size, some
from snnfl.spiking.node_operations import Arguments, Form, Forms, NodeOperation


def _dense(value: Tensor, like: Tensor) -> Tensor:
    """Return a part of a tensor in memory without gaps, laid out as the whole."""
    last = like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    return value.contiguous(memory_format=torch.channels_last) if last and value.dim() == 4 else value.contiguous()


def _behind_the_batch(value: Tensor, dim: int) -> int:
    if dim % value.dim() == 0:
        raise ValueError(f"dimension {dim} of {list(value.shape)} is that of the batch")
    return dim


def _flat_form(read: Forms, arguments: Arguments) -> Form:
    start, end, (channels, rank) = arguments["start_dim"], arguments.get("end_dim", -1), read[0]
    rank = start + 1 if end == -1 else None if rank is None else rank - (end - start)
    return Form(channels if start > 1 else None, rank)


def _reshaped_form(read: Forms, arguments: Arguments) -> Form:
    shape = arguments["shape"]
    return Form(shape[0] if shape[0] > 0 else None, 1 + len(shape))


def _is_shape(value: Any) -> bool:
    return some(lambda size: is_size(size, -1) and size != 0)(value) and value.count(-1) <= 1


def _is_order(value: Any) -> bool:
    return some(lambda dim: is_size(dim, 0))(value) and value[0] == 0 and sorted(value) == [*range(len(value))]


def _is_entry(value: Any) -> bool:
    """Accept an index, or start, stop and step of a slice."""
    if isinstance(value, list):
        low = (-(2**31), -(2**31), 1)
        return len(value) == 3 and all(
            part is None or is_size(part, least) for part, least in zip(value, low, strict=True)
        )
    return is_size(value, -(2**31))


def _slice(value: Tensor, index: Sequence[Any]) -> Tensor:
    places = (slice(*entry) if isinstance(entry, list) else entry for entry in index)
    return _dense(value[(slice(None), *places)], value)


def _sliced_form(read: Forms, arguments: Arguments) -> Form:
    channels, rank = read[0]
    first, *_ = index = arguments["index"]
    known = isinstance(first, list) and channels is not None
    return Form(
        len(range(*slice(*first).indices(channels or 0))) if known else None,
        None if rank is None else rank - sum(not isinstance(entry, list) for entry in index),
    )


def _squeeze(value: Tensor, dim: list[int]) -> Tensor:
    return value.squeeze([_behind_the_batch(value, each) for each in dim])


def _unsqueeze(value: Tensor, dim: int) -> Tensor:
    result = value.unsqueeze(dim)
    _behind_the_batch(result, dim)
    return result


def _shuffled_form(read: Forms, arguments: Arguments) -> Form:
    channels, factor = read[0].channels, arguments["upscale_factor"] ** 2
    return Form(None if channels is None else channels // factor, 4)


def _unshuffled_form(read: Forms, arguments: Arguments) -> Form:
    channels, factor = read[0].channels, arguments["downscale_factor"] ** 2
    return Form(None if channels is None else channels * factor, 4)


def _is_small(value: Any) -> bool:
    return is_size(value, 1, 1024)


MOVES: dict[str, NodeOperation] = {
    "flatten": NodeOperation(
        apply=torch.flatten,
        arguments={"start_dim": lambda value: is_size(value, 1, 8), "end_dim": is_dimension},
        required=("start_dim",),
        form=_flat_form,
        by_channel=lambda arguments, rank: arguments["start_dim"] > 1,
    ),
    "reshape": NodeOperation(
        apply=lambda value, shape: value.reshape(len(value), *shape),
        arguments={"shape": _is_shape},
        required=("shape",),
        form=_reshaped_form,
    ),
    "permute": NodeOperation(
        apply=lambda value, dims: value.permute(dims),
        arguments={"dims": _is_order},
        required=("dims",),
        form=lambda read, arguments: Form(
            read[0].channels if arguments["dims"][1:2] == [1] else None, len(arguments["dims"])
        ),
        by_channel=lambda arguments, rank: arguments["dims"][1:2] == [1],
    ),
    "slice": NodeOperation(
        apply=_slice,
        arguments={"index": some(_is_entry)},
        required=("index",),
        form=_sliced_form,
        by_channel=lambda arguments, rank: arguments["index"][0] in ([None] * 3, [0, None, None], [None, None, 1]),
    ),
    "squeeze": NodeOperation(
        apply=_squeeze,
        arguments={"dim": some(is_dimension)},
        required=("dim",),
        form=lambda read, arguments: Form(read[0].channels if all(dim > 1 for dim in arguments["dim"]) else None),
        by_channel=lambda arguments, rank: all(dim > 1 for dim in arguments["dim"]),
    ),
    "unsqueeze": NodeOperation(
        apply=_unsqueeze,
        arguments={"dim": is_dimension},
        required=("dim",),
        form=lambda read, arguments: Form(
            read[0].channels if arguments["dim"] > 1 else 1 if arguments["dim"] == 1 else None,
            None if read[0].rank is None else read[0].rank + 1,
        ),
        by_channel=lambda arguments, rank: arguments["dim"] > 1,
    ),
    "pixel_shuffle": NodeOperation(
        apply=F.pixel_shuffle,
        arguments={"upscale_factor": _is_small},
        required=("upscale_factor",),
        form=_shuffled_form,
    ),
    "pixel_unshuffle": NodeOperation(
        apply=F.pixel_unshuffle,
        arguments={"downscale_factor": _is_small},
        required=("downscale_factor",),
        form=_unshuffled_form,
    ),
    "channel_shuffle": NodeOperation(
        apply=F.channel_shuffle,
        arguments={"groups": is_count},
        required=("groups",),
    ),
}
