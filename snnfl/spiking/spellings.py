"""Calls of PyTorch that others spell: each is written, while a forward is traced, in terms of those that convert."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from snnfl.spiking.ways_out import Refusal

Value: TypeAlias = Any
"""A proxy: PyTorch types what it computes with as tensors, and its methods not at all."""

Size: TypeAlias = Callable[[Value, int], int]
"""Tells the size of a value along a dimension."""

Spelling: TypeAlias = Callable[..., Any]


def _along(x: Value, dim: int, index: Any) -> Value:
    if dim < 0:
        dim += x.dim()
    return x[(*[slice(None)] * dim, index)]


def _split(size: Size, x: Value, split_size: int | Sequence[int], dim: int = 0) -> tuple[Value, ...]:
    if isinstance(split_size, int):
        whole = size(x, dim)
        split_size = [min(split_size, whole - start) for start in range(0, whole, split_size)]
    starts = [sum(split_size[:number]) for number in range(len(split_size))]
    return tuple(_along(x, dim, slice(start, start + length)) for start, length in zip(starts, split_size, strict=True))


def _split_with_sizes(size: Size, x: Value, split_sizes: Sequence[int], dim: int = 0) -> tuple[Value, ...]:
    return _split(size, x, split_sizes, dim)


def _chunk(size: Size, x: Value, chunks: int, dim: int = 0) -> tuple[Value, ...]:
    return _split(size, x, -(-size(x, dim) // chunks), dim)


def _unbind(size: Size, x: Value, dim: int = 0) -> tuple[Value, ...]:
    return tuple(_along(x, dim, number) for number in range(size(x, dim)))


def _narrow(size: Size, x: Value, dim: int, start: int, length: int) -> Value:
    return _along(x, dim, slice(start, start + length))


def _select(size: Size, x: Value, dim: int, index: int) -> Value:
    return _along(x, dim, index)


def _getitem(size: Size, x: Value, index: Any) -> Any:
    """Take the new axes out of an index and make them afterwards."""
    entries = [*index] if isinstance(index, tuple) else [index]
    if not any(entry is None for entry in entries):
        return NotImplemented
    if any(entry is Ellipsis for entry in entries):
        place = next(number for number, entry in enumerate(entries) if entry is Ellipsis)
        rest = x.dim() - sum(entry is not None and entry is not Ellipsis for entry in entries)
        entries[place : place + 1] = [slice(None)] * rest
    result = x[tuple(entry for entry in entries if entry is not None)]
    kept = [entry for entry in entries if not isinstance(entry, int)]
    for place in (number for number, entry in enumerate(kept) if entry is None):
        result = result.unsqueeze(place)
    return result


def _stack(size: Size, tensors: Sequence[Value], dim: int = 0) -> Any:
    return torch.cat([each.unsqueeze(dim) for each in tensors], dim)


def _transpose(size: Size, x: Value, dim0: int, dim1: int) -> Any:
    order = [*range(x.dim())]
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return x.permute(order)


def _movedim(size: Size, x: Value, source: int, destination: int) -> Any:
    order = [*range(x.dim())]
    order.insert(destination % len(order), order.pop(source))
    return x.permute(order)


def _negative(size: Size, x: Value) -> Any:
    return x * -1


def _subtract(size: Size, left: Value, right: Value, alpha: float = 1) -> Any:
    if not isinstance(right, fx.Proxy):
        return left + right * -alpha
    return left.add(right, alpha=-alpha) if isinstance(left, fx.Proxy) else _negative(size, right) * alpha + left


def _subtract_from(size: Size, right: Any, left: Any) -> Any:
    return _subtract(size, left, right)


def _subtract_in_place(size: Size, left: Any, right: Any, alpha: float = 1) -> Any:
    return left.add_(right, alpha=-alpha)


def _inverse(right: Any) -> Any:
    if isinstance(right, fx.Proxy):
        raise Refusal(
            "divides by an activation; use convolutions and linear layers: a quotient is not linear in spikes"
        )
    return 1 / right


def _divide(size: Size, left: Any, right: Any) -> Any:
    return left * _inverse(right)


def _divide_in_place(size: Size, left: Any, right: Any) -> Any:
    return left.mul_(_inverse(right))


def _to(size: Size, x: Value, *args: Any, **kwargs: Any) -> Any:
    """Keep what could change a value: its type. Where it lies is the model's own affair."""
    given = [*args, *kwargs.values()]
    known = (bool, str, torch.device, torch.memory_format, torch.dtype, Tensor, fx.Proxy, type(None))
    if strange := [each for each in given if not isinstance(each, known)]:
        raise Refusal(f"argument {strange[0]!r} does not convert; leave it out")
    types = [each if isinstance(each, torch.dtype) else getattr(each, "dtype", None) for each in given]
    dtype = next((each for each in types if each is not None), None)
    if len(given) == 1 and given[0] is dtype:
        return NotImplemented
    return x.contiguous() if dtype is None else x.to(dtype)


def _retyped(dtype: torch.dtype) -> Spelling:
    return lambda size, x, **kwargs: x.to(dtype)


def _type_as(size: Size, x: Value, other: Any) -> Any:
    return x.to(other.dtype)


SPELLINGS: dict[Any, Spelling] = {
    **dict.fromkeys(("split", torch.split), _split),
    **dict.fromkeys(("split_with_sizes", torch.split_with_sizes), _split_with_sizes),
    **dict.fromkeys(("chunk", torch.chunk), _chunk),
    **dict.fromkeys(("unbind", torch.unbind), _unbind),
    **dict.fromkeys(("narrow", torch.narrow), _narrow),
    **dict.fromkeys(("select", torch.select), _select),
    operator.getitem: _getitem,
    torch.stack: _stack,
    **dict.fromkeys(("transpose", "swapaxes", torch.transpose, torch.swapaxes), _transpose),
    **dict.fromkeys(("movedim", torch.movedim), _movedim),
    **dict.fromkeys((operator.neg, "neg", torch.neg), _negative),
    **dict.fromkeys((operator.sub, "sub", torch.sub, torch.subtract), _subtract),
    **dict.fromkeys(("rsub", "__rsub__", torch.rsub), _subtract_from),
    **dict.fromkeys((operator.isub, "sub_"), _subtract_in_place),
    **dict.fromkeys((operator.truediv, "div", torch.div, torch.divide, torch.true_divide), _divide),
    **dict.fromkeys((operator.itruediv, "div_"), _divide_in_place),
    "to": _to,
    "float": _retyped(torch.float32),
    "double": _retyped(torch.float64),
    "half": _retyped(torch.float16),
    "bfloat16": _retyped(torch.bfloat16),
    "type_as": _type_as,
}
"""What each call is in terms of others, given a :data:`Size` and its arguments; ``NotImplemented`` is itself."""
