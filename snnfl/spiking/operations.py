"""What converts: a table of operations, and the way out of those that don't.

A row of :data:`OPERATIONS` names everything that computes an operation (modules, functions, methods of a tensor), its
arguments, and how the node of the spiking graph is made from them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import fx, nn

from snnfl.spiking.graph import Affine, GraphNode, LinearMap, MaxPool, Spike


class ConversionError(ValueError):
    """A network that has no spiking counterpart here: names the layer and the way out."""


Options: TypeAlias = dict[str, Any]
Build: TypeAlias = Callable[[str, tuple[str, ...], Options], GraphNode | None]

BATCH = "the size of the batch"
"""Stands in an operation's options for a number that the forward reads from a tensor's shape."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A row of the table.

    Attributes:
        build: Makes a node from its name, its inputs and its options; ``None`` is an operation that changes nothing.
        targets: Types of modules, functions, and names of methods.
        arguments: Names of the arguments in order, those that are tensors of the network first. A module has
            attributes of the other names.
        tensors: How many arguments are tensors, or lists of tensors.
        view: Whether the result may share memory with the input.
        variadic: Whether the last argument may be given as many.
    """

    build: Build
    targets: tuple[Any, ...]
    arguments: tuple[str, ...] = ("input",)
    tensors: int = 1
    view: bool = False
    variadic: bool = False

    def of_module(self, module: nn.Module) -> Options:
        """Read the options of a module from its attributes, less those that are ``None``."""
        found = {name: getattr(module, name, None) for name in self.arguments[self.tensors :]}
        return {name: value for name, value in found.items() if value is not None}

    def of_call(self, node: fx.Node) -> tuple[list[Any], Options]:
        """Tell the tensors of a call of a function or method from its options, less those that are ``None``.

        Raises:
            ConversionError: For an argument that the table doesn't know.
        """
        args, last = node.args, len(self.arguments) - 1
        if self.variadic and len(args) > last and not isinstance(args[last], list | tuple):
            args = (*args[:last], args[last:])
        surplus = [*args[len(self.arguments) :], *(node.kwargs.keys() - set(self.arguments))]
        if surplus:
            raise ConversionError(f"argument {surplus[0]!r} does not convert; leave it out")
        bound: Options = dict(zip(self.arguments, args, strict=False)) | node.kwargs
        tensors: list[Any] = []
        for name in self.arguments[: self.tensors]:
            value = bound.pop(name, None)
            tensors += value if isinstance(value, list | tuple) else [value]
        return tensors, {name: value for name, value in bound.items() if value is not None}


def _affine(op: str, *keys: str) -> Build:
    def build(name: str, inputs: tuple[str, ...], options: Options) -> Affine:
        if options.get("padding_mode", "zeros") != "zeros":
            raise ConversionError(f"padding_mode={options['padding_mode']!r} does not convert; use zero padding")
        has_bias = "bias" in options
        return Affine(name=name, inputs=inputs, op=op, arguments={key: options[key] for key in keys}, has_bias=has_bias)

    return build


def _batch_norm(name: str, inputs: tuple[str, ...], options: Options) -> Affine:
    if "running_var" not in options:
        raise ConversionError("batch normalisation needs running statistics to be folded; track_running_stats=True")
    return Affine(name=name, inputs=inputs, op="scale", norm=name, epsilon=options["eps"], has_bias=False)


def _relu(name: str, inputs: tuple[str, ...], options: Options) -> Spike:
    return Spike(name=name, inputs=inputs)


def _relu6(name: str, inputs: tuple[str, ...], options: Options) -> Spike:
    return Spike(name=name, inputs=inputs, ceiling=6.0)


def _hardtanh(name: str, inputs: tuple[str, ...], options: Options) -> Spike:
    low, high = options.get("min_val", -1.0), options.get("max_val", 1.0)
    if low != 0:
        raise ConversionError(
            f"clips to {low:g} and {high:g}, and a rate is never negative; use nn.Hardtanh(0, {high:g})"
        )
    return Spike(name=name, inputs=inputs, ceiling=float(high))


def _clamp(name: str, inputs: tuple[str, ...], options: Options) -> Spike:
    low, high = options.get("min"), options.get("max")
    if low != 0 or not isinstance(high, int | float | None):
        raise ConversionError(f"clamps to {low} and {high}; a rate lies between 0 and a number: use clamp(min=0)")
    return Spike(name=name, inputs=inputs, ceiling=None if high is None else float(high))


def _identity(name: str, inputs: tuple[str, ...], options: Options) -> None:
    return None


def _linear_map(op: str) -> Build:
    return lambda name, inputs, options: LinearMap(name=name, inputs=inputs, op=op, arguments=options)


def _average_pool(op: str) -> Build:
    def build(name: str, inputs: tuple[str, ...], options: Options) -> LinearMap:
        if "divisor_override" in options:
            raise ConversionError("divisor_override does not convert; leave it out")
        return LinearMap(name=name, inputs=inputs, op=op, arguments=options)

    return build


def _max_pool(op: str) -> Build:
    def build(name: str, inputs: tuple[str, ...], options: Options) -> MaxPool:
        if options.pop("return_indices", False):
            raise ConversionError("return_indices=True does not convert; return the maxima alone")
        return MaxPool(name=name, inputs=inputs, op=op, arguments=options)

    return build


def average_of(pool: MaxPool) -> LinearMap:
    """Replace a maximum by the average over the same windows; padding counts in neither."""
    arguments = dict(pool.arguments)
    if arguments.pop("dilation", 1) not in (1, (1,), (1, 1)):
        raise ConversionError("dilated windows have no average pooling; use max_pooling='pre_spike'")
    if not pool.op.startswith("adaptive"):
        arguments["count_include_pad"] = False
    return LinearMap(name=pool.name, inputs=pool.inputs, op=pool.op.replace("max", "avg"), arguments=arguments)


def _mean(name: str, inputs: tuple[str, ...], options: Options) -> LinearMap:
    dims = options.get("dim")
    dims = [dims] if isinstance(dims, int) else list(dims or ())
    if not dims or not all(dim in (2, 3, -1, -2) for dim in dims):
        raise ConversionError(
            f"a mean over the dimensions {dims or 'all'} does not convert; use those of space, 2 and 3"
        )
    arguments = {"dim": dims, "keepdim": options.get("keepdim", False)}
    return LinearMap(name=name, inputs=inputs, op="mean", arguments=arguments)


def _concatenate(name: str, inputs: tuple[str, ...], options: Options) -> LinearMap | None:
    dim = options.get("dim", 0)
    if dim != 1:
        raise ConversionError(f"a concatenation along dimension {dim} does not convert; join channels, dimension 1")
    return LinearMap(name=name, inputs=inputs, op="concatenate", arguments={"dim": 1}) if len(inputs) > 1 else None


def _flatten(name: str, inputs: tuple[str, ...], options: Options) -> LinearMap:
    start, end = options.get("start_dim", 0), options.get("end_dim", -1)
    if start != 1 or end not in (-1, 3):  # no value here has more than four dimensions
        raise ConversionError(f"a flatten from {start} to {end} does not convert; use flatten(1), all but the batch")
    return LinearMap(name=name, inputs=inputs, op="flatten", arguments={"start_dim": 1})


def _reshape(name: str, inputs: tuple[str, ...], options: Options) -> LinearMap:
    batch, *rest = cast("tuple[Any, ...]", options["shape"])
    if batch not in (BATCH, -1) or not all(isinstance(size, int) for size in rest):
        raise ConversionError(
            f"reshapes to {tuple(options['shape'])}; the first size must be the batch's own, the others numbers"
        )
    return LinearMap(name=name, inputs=inputs, op="reshape", arguments={"shape": rest})


def dimensions(node: GraphNode, read: Sequence[int | None]) -> int | None:
    """Count the dimensions of a node's value from those of its inputs; ``None`` where only the image tells them."""
    known = next((count for count in read if count is not None), None)
    if isinstance(node, Spike) or node.op in ("scale", "add", "concatenate"):
        return known
    if node.op == "reshape":
        return 1 + len(node.arguments["shape"])
    if node.op == "mean":
        return known if known is None or node.arguments["keepdim"] else known - len(node.arguments["dim"])
    return {"1d": 3, "2d": 4}.get(node.op[-2:], 2)  # else linear and flatten


def from_the_front(options: Options, count: int | None) -> Options:
    """Count the dimensions among an operation's options from the first one, if their number is known."""
    if count is None:
        return options

    def counted(dim: Any) -> Any:
        return dim + count if isinstance(dim, int) and -count <= dim < 0 else dim

    found = {**options}
    for key in found.keys() & {"dim", "start_dim", "end_dim"}:
        found[key] = (
            [counted(dim) for dim in found[key]] if isinstance(found[key], list | tuple) else counted(found[key])
        )
    if found.get("end_dim") == count - 1:
        found["end_dim"] = -1
    return found


_CONVOLUTION = ("stride", "padding", "dilation", "groups")
_WINDOW = ("kernel_size", "stride", "padding")
_AVERAGE = ("input", *_WINDOW, "ceil_mode", "count_include_pad", "divisor_override")
_MAXIMUM = ("input", *_WINDOW, "dilation", "ceil_mode", "return_indices")
_ADAPTIVE = ("input", "output_size", "return_indices")

OPERATIONS: tuple[Operation, ...] = (
    Operation(build=_affine("linear"), targets=(nn.Linear,), arguments=("input", "bias")),
    *(
        Operation(
            build=_affine(op, *_CONVOLUTION),
            targets=(module,),
            arguments=("input", *_CONVOLUTION, "padding_mode", "bias"),
        )
        for op, module in (("conv1d", nn.Conv1d), ("conv2d", nn.Conv2d))
    ),
    Operation(
        build=_batch_norm,
        targets=(nn.BatchNorm1d, nn.BatchNorm2d),
        arguments=("input", "eps", "running_var"),
    ),
    Operation(
        build=_relu,
        targets=(nn.ReLU, F.relu, torch.relu, torch.relu_, "relu", "relu_"),
        arguments=("input", "inplace"),
    ),
    Operation(build=_relu6, targets=(nn.ReLU6, F.relu6), arguments=("input", "inplace")),
    Operation(build=_hardtanh, targets=(nn.Hardtanh, F.hardtanh), arguments=("input", "min_val", "max_val", "inplace")),
    Operation(build=_clamp, targets=(torch.clamp, torch.clamp_, "clamp", "clamp_"), arguments=("input", "min", "max")),
    Operation(
        build=_identity,
        targets=(nn.Dropout, nn.Dropout1d, nn.Dropout2d, F.dropout, F.dropout1d, F.dropout2d),
        arguments=("input", "p", "training", "inplace"),
        view=True,
    ),
    Operation(build=_identity, targets=(nn.Identity, "contiguous"), view=True),
    Operation(build=_identity, targets=("clone", torch.clone)),
    *(
        Operation(build=build(op), targets=targets, arguments=arguments)
        for op, build, arguments, targets in (
            ("avg_pool1d", _average_pool, _AVERAGE, (nn.AvgPool1d, F.avg_pool1d)),
            ("avg_pool2d", _average_pool, _AVERAGE, (nn.AvgPool2d, F.avg_pool2d)),
            ("adaptive_avg_pool1d", _average_pool, _ADAPTIVE, (nn.AdaptiveAvgPool1d, F.adaptive_avg_pool1d)),
            ("adaptive_avg_pool2d", _average_pool, _ADAPTIVE, (nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d)),
            ("max_pool1d", _max_pool, _MAXIMUM, (nn.MaxPool1d, F.max_pool1d, torch.max_pool1d)),
            ("max_pool2d", _max_pool, _MAXIMUM, (nn.MaxPool2d, F.max_pool2d, torch.max_pool2d)),
            ("adaptive_max_pool1d", _max_pool, _ADAPTIVE, (nn.AdaptiveMaxPool1d, F.adaptive_max_pool1d)),
            ("adaptive_max_pool2d", _max_pool, _ADAPTIVE, (nn.AdaptiveMaxPool2d, F.adaptive_max_pool2d)),
        )
    ),
    Operation(build=_mean, targets=(torch.mean, "mean"), arguments=("input", "dim", "keepdim")),
    Operation(
        build=_linear_map("add"),
        targets=(operator.add, operator.iadd, torch.add, "add", "add_"),
        arguments=("input", "other"),
        tensors=2,
    ),
    Operation(build=_concatenate, targets=(torch.cat, torch.concat, torch.concatenate), arguments=("tensors", "dim")),
    Operation(
        build=_flatten,
        targets=(nn.Flatten, torch.flatten, "flatten"),
        arguments=("input", "start_dim", "end_dim"),
        view=True,
    ),
    Operation(
        build=_reshape,
        targets=("view", "reshape", torch.reshape),
        arguments=("input", "shape"),
        view=True,
        variadic=True,
    ),
)

BY_TARGET: dict[Any, Operation] = {target: row for row in OPERATIONS for target in row.targets}

_SIGN = "use nn.ReLU: an integrate-and-fire rate is never negative"
_RATE = "use nn.ReLU: an integrate-and-fire rate is linear in its input"
_NORM = "use batch normalisation, which is affine after training"
_PRODUCT = "use convolutions and linear layers: a product of two activations is not linear in either's spikes"
_RECURRENT = "use convolutions and linear layers: its gates multiply activations, which is not linear in their spikes"
_INPUT = (
    "give the network its whole input; of torchvision's networks with transform_input=True set model.transform_input "
    "to False, and normalise the images before"
)
_CONSTANT = "put constants into the layer or batch normalisation before it"

_WAYS_OUT = {
    **dict.fromkeys(("gelu", "silu", "elu", "celu", "selu", "mish", "hardswish", "leakyrelu", "prelu", "tanh"), _SIGN),
    **dict.fromkeys(("sigmoid", "hardsigmoid", "softplus"), _RATE),
    **dict.fromkeys(("layernorm", "groupnorm", "instancenorm1d", "instancenorm2d"), _NORM),
    **dict.fromkeys(
        ("multiheadattention", "scaleddotproductattention", "softmax", "logsoftmax", "matmul", "bmm", "einsum"),
        _PRODUCT,
    ),
    **dict.fromkeys(
        (
            "transformer",
            *(f"transformer{part}{layer}" for part in ("encoder", "decoder") for layer in ("", "layer")),
        ),
        _PRODUCT,
    ),
    "getitem": _INPUT,
    **dict.fromkeys(("lstm", "gru", "rnn"), _RECURRENT),
    **dict.fromkeys(("mul", "truediv", "div", "sub"), _CONSTANT),
    **dict.fromkeys(("squeeze", "unsqueeze"), "use flatten(1) or reshape"),
}

_SUPPORTED = (
    "use what converts: convolution, linear, batch norm, ReLU, ReLU6, pooling, addition, concatenation, flatten, "
    "reshape, dropout and identity"
)


def operation_of(module: nn.Module) -> Operation | None:
    """Find the row of a module by its type or one that this is derived from."""
    return next((BY_TARGET[kind] for kind in type(module).__mro__ if kind in BY_TARGET), None)


def way_out(kind: str, *, last: bool = False) -> str:
    """Say what to use instead of a type of module or a function, and of the network's ``last`` one."""
    if last and kind.lower().replace("_", "") in ("softmax", "logsoftmax"):
        return "drop it: the largest logit is the largest probability"
    return _WAYS_OUT.get(kind.lower().replace("_", ""), _SUPPORTED)
