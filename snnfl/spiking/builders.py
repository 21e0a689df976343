"""How a node of the spiking graph is made from a call of PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from snnfl.spiking.calls import BATCH, Call, Computed, Made, Options
from snnfl.spiking.graph import Affine, LinearMap, MaxPool, Spike
from snnfl.spiking.node_operations import AFFINE_OPS
from snnfl.spiking.ways_out import Refusal

Build: TypeAlias = Callable[[Call], Made]


# Layers with weights.


def layer(op: str, *keys: str) -> Build:
    """Make the layer of a module, of some of its arguments."""

    def build(call: Call) -> Affine:
        options = call.options
        if options.get("padding_mode", "zeros") != "zeros":
            raise Refusal(
                f"padding_mode={options['padding_mode']!r} does not convert; use zero padding, or a padding layer "
                "before the convolution"
            )
        arguments = {key: options[key] for key in keys}
        return Affine(name=call.name, inputs=call.inputs, op=op, arguments=arguments, has_bias="bias" in options)

    return build


def layer_function(op: str, **defaults: Any) -> Build:
    """Make the layer of a function, of a module's own arrays or of computed ones."""

    def per_axis(key: str, value: Any) -> Any:
        if key == "groups" or isinstance(value, str):
            return value
        return tuple(value) if isinstance(value, list | tuple) else (value,) * AFFINE_OPS[op].axes

    def build(call: Call) -> Affine | Computed:
        options = defaults | call.options
        weight, bias = options["weight"], options.get("bias")
        arguments = {key: per_axis(key, options[key]) for key in defaults}
        node = Affine(name=call.owner or call.name, inputs=call.inputs, op=op, arguments=arguments, has_bias=False)
        if call.owner is not None:
            return replace(node, has_bias=bias is not None)
        outputs = len(node.outputs_first(weight))
        return Computed(node=node, weight=weight, bias=weight.new_zeros(outputs) if bias is None else bias)

    return build


def batch_norm(call: Call) -> Affine:
    """Make a batch normalisation of a module."""
    if "running_var" not in call.options:
        raise Refusal("batch normalisation needs running statistics to be folded; track_running_stats=True")
    if call.options["training"]:
        raise Refusal("normalises by the batch's statistics in evaluation mode, too; use its running ones")
    return _norm(call.name, call)


def batch_norm_function(call: Call) -> Affine | Computed:
    """Make a batch normalisation of a function, of a module's own arrays or of computed ones."""
    options: Options = {"eps": 1e-5, "training": False} | call.options
    if "running_var" not in options or options["training"]:
        raise Refusal("normalises by the batch's statistics in evaluation mode, too; use its running ones")
    if call.owner is not None:
        return _norm(call.owner, call)
    mean: Tensor = options["running_mean"]
    var: Tensor = options["running_var"]
    factor = options.get("weight", torch.ones_like(var)) / torch.sqrt(var + options["eps"])
    return _scaled(call, factor, options.get("bias", torch.zeros_like(mean)) - mean * factor)


def _norm(name: str, call: Call) -> Affine:
    epsilon = call.options.get("eps", 1e-5)
    return Affine(name=name, inputs=call.inputs, op="scale", norm=name, epsilon=epsilon, has_bias=False)


def _scaled(call: Call, weight: Tensor, bias: Tensor) -> Computed:
    node = Affine(name=call.name, inputs=call.inputs, op="scale", has_bias=False)
    return Computed(node=node, weight=weight, bias=bias)


# Numbers and constants.


def _is_number(term: object) -> bool:
    return isinstance(term, int | float) and math.isfinite(term)


def _per_channel(call: Call, constant: Tensor) -> Tensor:
    """Write a constant of the model as one number per channel of the value that it meets.

    Raises:
        Refusal: If it varies otherwise, or it isn't known how it meets the value.
    """
    channels, rank = call.forms[0]
    if channels is None or rank is None:
        raise Refusal(
            f"takes a constant of shape {list(constant.shape)} to a value whose channels only the image tells; give "
            "trace the input_shape"
        )
    aligned = [1] * (rank - constant.dim()) + [*constant.shape]
    if len(aligned) != rank or any(size != 1 for place, size in enumerate(aligned) if place != 1):
        raise Refusal(
            f"takes a constant of shape {list(constant.shape)}, no number per channel; make it the weight of a layer"
        )
    return constant.detach().reshape(-1).expand(max(channels, aligned[1])).clone()


def add(call: Call) -> Made:
    """Make a sum of two values, or of a value and a constant."""
    (left, right), alpha = call.terms, call.options.get("alpha", 1)
    if not _is_number(alpha):
        raise Refusal(f"alpha={alpha} does not convert; use a number")
    if isinstance(left, str) and isinstance(right, str):
        return LinearMap(
            name=call.name, inputs=call.inputs, op="add", arguments={} if alpha == 1 else {"alpha": float(alpha)}
        )
    if not isinstance(left, str) and alpha != 1:
        raise Refusal(f"adds {alpha} times a value to a constant; multiply the value, then add")
    constant = left if isinstance(right, str) else right
    if isinstance(constant, Tensor):
        shift = _per_channel(call, constant * alpha)
        return _scaled(call, torch.ones_like(shift), shift)
    return _number(call, "shift", constant if alpha == 1 else cast("float", constant) * alpha, nothing=0)


def multiply(call: Call) -> Made:
    """Make a product of a value and a constant."""
    left, right = call.terms
    if isinstance(left, str) and isinstance(right, str):
        raise Refusal(
            "multiplies two activations; use convolutions and linear layers: their product is not linear in either's "
            "spikes"
        )
    constant = left if isinstance(right, str) else right
    if isinstance(constant, Tensor):
        factor = _per_channel(call, constant)
        return _scaled(call, factor, torch.zeros_like(factor))
    return _number(call, "multiply", constant, nothing=1)


def _number(call: Call, op: str, number: Any, *, nothing: int) -> LinearMap | None:
    if not _is_number(number):
        raise Refusal(f"takes {number}; use a finite number")
    if number == nothing:
        return None
    return LinearMap(name=call.name, inputs=call.inputs, op=op, arguments={"by": float(number)})


# Activations.


def relu(call: Call) -> Spike:
    """Make neurons of a ReLU."""
    return Spike(name=call.name, inputs=call.inputs)


def relu6(call: Call) -> Spike:
    """Make neurons of a ReLU6."""
    return Spike(name=call.name, inputs=call.inputs, ceiling=6.0)


def qcfs(call: Call) -> Spike:
    """Make neurons of a quantised activation, which bring their threshold along."""
    if call.owner != call.name:
        raise Refusal("is called twice; give each call a layer of its own, which learns its threshold")
    return Spike(name=call.name, inputs=call.inputs, levels=call.options["levels"])


def hardtanh(call: Call) -> Spike:
    """Make neurons of what clips to an interval, if that begins at zero."""
    low, high = call.options.get("min_val", -1.0), call.options.get("max_val", 1.0)
    if low != 0:
        raise Refusal(f"clips to {low:g} and {high:g}, and a rate is never negative; use nn.Hardtanh(0, {high:g})")
    return Spike(name=call.name, inputs=call.inputs, ceiling=float(high))


def clamp(call: Call) -> Spike:
    """Make neurons of what clips, if at zero from below."""
    low, high = call.options.get("min"), call.options.get("max")
    if low != 0 or not isinstance(high, int | float | None):
        raise Refusal(f"clamps to {low} and {high}; a rate lies between 0 and a number: use clamp(min=0)")
    return Spike(name=call.name, inputs=call.inputs, ceiling=None if high is None else float(high))


# What changes nothing.


def identity(call: Call) -> None:
    """Make nothing."""
    return None


def dropout(call: Call) -> None:
    """Make nothing of what drops in training alone."""
    if call.options.get("training", True) and call.options.get("p", 0.5) != 0:
        raise Refusal("drops at random in evaluation mode, too; pass training=self.training")


def retyped(call: Call) -> None:
    """Make nothing of a conversion to the model's own type."""
    dtype = call.options.get("dtype", call.dtype)
    if dtype != call.dtype:
        raise Refusal(f"turns values into {dtype}, the model's are {call.dtype}; leave them as they are")


# Maps without parameters.


def linear_map(op: str, **defaults: Any) -> Build:
    """Make a map without parameters that takes its arguments as they are."""
    return lambda call: LinearMap(name=call.name, inputs=call.inputs, op=op, arguments=defaults | call.options)


def average_pool(op: str) -> Build:
    """Make an average pooling."""

    def build(call: Call) -> LinearMap:
        if "divisor_override" in call.options:
            raise Refusal("divisor_override does not convert; leave it out")
        return LinearMap(name=call.name, inputs=call.inputs, op=op, arguments=call.options)

    return build


def max_pool(op: str) -> Build:
    """Make a max pooling."""

    def build(call: Call) -> MaxPool:
        if call.options.pop("return_indices", False):
            raise Refusal("return_indices=True does not convert; return the maxima alone")
        return MaxPool(name=call.name, inputs=call.inputs, op=op, arguments=call.options)

    return build


def average_of(pool: MaxPool) -> LinearMap:
    """Replace a maximum by the average over the same windows; padding counts in neither."""
    arguments = dict(pool.arguments)
    if arguments.pop("dilation", 1) not in (1, (1,), (1, 1)):
        raise Refusal("dilated windows have no average pooling; use max_pooling='gated'")
    if not pool.op.startswith("adaptive"):
        arguments["count_include_pad"] = False
    return LinearMap(name=pool.name, inputs=pool.inputs, op=pool.op.replace("max", "avg"), arguments=arguments)


def mean(call: Call) -> LinearMap:
    """Make a mean over space."""
    dims = call.options.get("dim")
    dims = [dims] if isinstance(dims, int) else list(dims or ())
    if not dims or not all(dim in (2, 3, -1, -2) for dim in dims):
        raise Refusal(f"a mean over the dimensions {dims or 'all'} does not convert; use those of space, 2 and 3")
    arguments = {"dim": dims, "keepdim": call.options.get("keepdim", False)}
    return LinearMap(name=call.name, inputs=call.inputs, op="mean", arguments=arguments)


def concatenate(call: Call) -> LinearMap | None:
    """Make a concatenation, but of images."""
    dim = call.options.get("dim", 0)
    if dim < 1:
        raise Refusal(f"a concatenation along dimension {dim} does not convert; join channels, dimension 1")
    if len(call.inputs) == 1:
        return None
    return LinearMap(name=call.name, inputs=call.inputs, op="concatenate", arguments={"dim": dim})


def flatten(call: Call) -> LinearMap:
    """Make a flattening of dimensions behind the batch."""
    start, end = call.options.get("start_dim", 0), call.options.get("end_dim", -1)
    if start < 1 or end == 0 or (end < -1 and call.rank is None):
        raise Refusal(f"a flatten from {start} to {end} does not convert; use flatten(1), all but the batch")
    arguments = {"start_dim": start} | ({} if end == -1 else {"end_dim": end})
    return LinearMap(name=call.name, inputs=call.inputs, op="flatten", arguments=arguments)


def reshape(call: Call) -> LinearMap:
    """Make a reshape that leaves the batch alone."""
    batch, *rest = cast("tuple[Any, ...]", call.options["shape"])
    if batch not in (BATCH, -1) or not rest or not all(isinstance(size, int) for size in rest):
        raise Refusal(
            f"reshapes to {tuple(call.options['shape'])}; the first size must be the batch's own, the others numbers"
        )
    return LinearMap(name=call.name, inputs=call.inputs, op="reshape", arguments={"shape": rest})


def unflatten(call: Call) -> LinearMap:
    """Make a reshape of flat values."""
    dim, sizes = call.options["dim"], [*call.options["sizes" if "sizes" in call.options else "unflattened_size"]]
    if dim not in (1, -1) or call.rank != 2:
        raise Refusal(f"unflattens dimension {dim} of a value of {call.rank} dimensions; use reshape")
    return LinearMap(name=call.name, inputs=call.inputs, op="reshape", arguments={"shape": sizes})


def permute(call: Call) -> LinearMap | None:
    """Make a permutation of dimensions behind the batch."""
    given = call.options["dims"]
    dims = [dim % len(given) for dim in given]
    if dims[0] != 0:
        raise Refusal(f"permutes dimensions to {list(given)}; leave the first one, the batch, in its place")
    if dims == sorted(dims):
        return None
    return LinearMap(name=call.name, inputs=call.inputs, op="permute", arguments={"dims": dims})


def pad(call: Call) -> LinearMap:
    """Make a padding."""
    options = call.options
    pad, value = options["pad" if "pad" in options else "padding"], options.get("value")
    if value is not None and not _is_number(value):
        raise Refusal(f"pads with {value}; use a finite number")
    arguments = {"pad": [*pad], "mode": options.get("mode", "constant")} | ({"value": value} if value else {})
    return LinearMap(name=call.name, inputs=call.inputs, op="pad", arguments=arguments)


def pad_module(mode: str) -> Build:
    """Make a padding of a module in a mode."""

    def build(call: Call) -> LinearMap:
        call.options["mode"] = mode
        return pad(call)

    return build


def interpolate(call: Call) -> LinearMap:
    """Make an up-sampling, or a down-sampling."""
    arguments = {"mode": "nearest"} | {key: value for key, value in call.options.items() if value is not False}
    return LinearMap(name=call.name, inputs=call.inputs, op="interpolate", arguments=arguments)


def squeeze(call: Call) -> LinearMap:
    """Make a removal of dimensions behind the batch."""
    dim = call.options.get("dim")
    dims = [dim] if isinstance(dim, int) else [*(dim or ())]
    if not dims or 0 in dims:
        raise Refusal(f"squeezes {'every dimension' if not dims else 'the batch'}; name the others' dimensions")
    return LinearMap(name=call.name, inputs=call.inputs, op="squeeze", arguments={"dim": dims})


def unsqueeze(call: Call) -> LinearMap:
    """Make a new dimension behind the batch."""
    dim = call.options["dim"]
    if dim == 0:
        raise Refusal("unsqueezes the batch's dimension; keep it the first one")
    return LinearMap(name=call.name, inputs=call.inputs, op="unsqueeze", arguments={"dim": dim})


def sliced(call: Call) -> LinearMap | None:
    """Make a selection of fixed places, or nothing where that is all."""
    given = call.options["index"]
    index = [*given] if isinstance(given, tuple | list) else [given]
    if Ellipsis in index:
        place = index.index(Ellipsis)
        if place < len(index) - 1 and call.rank is None:
            raise Refusal("has '...' before other indices of a value whose dimensions only the image tells")
        index[place : place + 1] = [slice(None)] * (0 if call.rank is None else call.rank - len(index) + 1)
    entries = [_entry(each) for each in index]
    whole: list[list[None] | list[int | None]] = [[None, None, None], [0, None, None], [None, None, 1], [0, None, 1]]
    if entries and entries[0] not in whole:
        raise Refusal("takes images out of the batch; begin the index with a colon, and index the rest")
    rest = entries[1:]
    while rest and rest[-1] in whole:
        rest.pop()
    return LinearMap(name=call.name, inputs=call.inputs, op="slice", arguments={"index": rest}) if rest else None


def _entry(index: Any) -> int | list[int | None]:
    if isinstance(index, slice):
        parts = [index.start, index.stop, index.step]
        if all(part is None or type(part) is int for part in parts):
            return parts
    elif type(index) is int:
        return index
    raise Refusal(f"is indexed by {index}; use numbers and slices with fixed bounds")
