"""What converts: a table of the calls of PyTorch, and how the node of the spiking graph is made from each.

A row of :data:`OPERATIONS` names everything that computes an operation (modules, functions, methods of a tensor), its
arguments, and what makes the node (:mod:`snnfl.spiking.builders`). What a call of PyTorch spells in terms of others,
such as ``chunk``, is in :mod:`snnfl.spiking.spellings`.
"""

from __future__ import annotations

import inspect
import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from snnfl.quantisation import QCFS
from snnfl.spiking import builders
from snnfl.spiking.builders import Build
from snnfl.spiking.calls import Options
from snnfl.spiking.ways_out import Refusal


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A row of the table.

    Attributes:
        build: Makes a node of a call; ``None`` is an operation that changes nothing.
        targets: Types of modules, functions, and names of methods.
        arguments: Names of the arguments in order, those that are tensors of the network first. A module has
            attributes of the other names.
        tensors: How many arguments are tensors, or lists of tensors.
        arrays: Names of arguments that are parameters or statistics of a layer.
        constants: Whether numbers and constant tensors may stand in place of a tensor of the network.
        view: Whether the result may share memory with the input.
        variadic: Whether the last argument may be given as many.
        more: How many dimensions the result has more, where negative ones count from the end of that.
    """

    build: Build
    targets: tuple[Any, ...]
    arguments: tuple[str, ...] = ("input",)
    tensors: int = 1
    arrays: tuple[str, ...] = ()
    constants: bool = False
    view: bool = False
    variadic: bool = False
    more: int = 0

    def of_module(self, module: nn.Module) -> Options:
        """Read the options of a module from its attributes, less those that are ``None``."""
        found = {name: getattr(module, name, None) for name in self.arguments[self.tensors :]}
        return {name: value for name, value in found.items() if value is not None}

    def of_call(self, node: fx.Node) -> tuple[list[Any], Options]:
        """Tell the tensors of a call of a function or method from its options, less those that are ``None``.

        Raises:
            Refusal: For an argument that the table doesn't know.
        """
        args, last = node.args, len(self.arguments) - 1
        if self.variadic and len(args) > last and not isinstance(args[last], list | tuple):
            args = (*args[:last], args[last:])
        surplus = [*args[len(self.arguments) :], *(node.kwargs.keys() - set(self.arguments))]
        if surplus:
            raise Refusal(f"argument {surplus[0]!r} does not convert; leave it out")
        bound: Options = dict(zip(self.arguments, args, strict=False)) | node.kwargs
        tensors: list[Any] = []
        for name in self.arguments[: self.tensors]:
            value = bound.pop(name, None)
            tensors += value if isinstance(value, list | tuple) else [value]
        return tensors, {name: value for name, value in bound.items() if value is not None}


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
_TRANSPOSED = ("stride", "padding", "output_padding", "groups", "dilation")
_WINDOW = ("kernel_size", "stride", "padding")
_AVERAGE = ("input", *_WINDOW, "ceil_mode", "count_include_pad", "divisor_override")
_MAXIMUM = ("input", *_WINDOW, "dilation", "ceil_mode", "return_indices")
_ADAPTIVE = ("input", "output_size", "return_indices")
_DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_TRANSPOSED_DEFAULTS = {key: {**_DEFAULTS, "output_padding": 0}[key] for key in _TRANSPOSED}
_SCALING = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor")

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        build=builders.layer("linear"), targets=(nn.Linear,), arguments=("input", "bias"), arrays=("weight", "bias")
    ),
    Operation(
        build=builders.layer_function("linear"),
        targets=(F.linear,),
        arguments=("input", "weight", "bias"),
        arrays=("weight", "bias"),
    ),
    *(
        Operation(
            build=builders.layer(op, *keys),
            targets=(module,),
            arguments=("input", *keys, "padding_mode", "bias"),
            arrays=("weight", "bias"),
        )
        for op, keys, module in (
            ("conv1d", _CONVOLUTION, nn.Conv1d),
            ("conv2d", _CONVOLUTION, nn.Conv2d),
            ("conv_transpose1d", _TRANSPOSED, nn.ConvTranspose1d),
            ("conv_transpose2d", _TRANSPOSED, nn.ConvTranspose2d),
        )
    ),
    *(
        Operation(
            build=builders.layer_function(op, **defaults),
            targets=(function,),
            arguments=("input", "weight", "bias", *keys),
            arrays=("weight", "bias"),
        )
        for op, keys, defaults, function in (
            ("conv1d", _CONVOLUTION, _DEFAULTS, F.conv1d),
            ("conv2d", _CONVOLUTION, _DEFAULTS, F.conv2d),
            ("conv_transpose1d", _TRANSPOSED, _TRANSPOSED_DEFAULTS, F.conv_transpose1d),
            ("conv_transpose2d", _TRANSPOSED, _TRANSPOSED_DEFAULTS, F.conv_transpose2d),
        )
    ),
    Operation(
        build=builders.batch_norm,
        targets=(nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm),
        arguments=("input", "eps", "running_var", "training"),
        arrays=("weight", "bias", "running_mean", "running_var"),
    ),
    Operation(
        build=builders.batch_norm_function,
        targets=(F.batch_norm,),
        arguments=("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
        arrays=("running_mean", "running_var", "weight", "bias"),
    ),
    Operation(
        build=builders.relu,
        targets=(nn.ReLU, F.relu, torch.relu, torch.relu_, "relu", "relu_"),
        arguments=("input", "inplace"),
    ),
    Operation(build=builders.qcfs, targets=(QCFS,), arguments=("input", "levels", "threshold"), arrays=("threshold",)),
    Operation(build=builders.relu6, targets=(nn.ReLU6, F.relu6), arguments=("input", "inplace")),
    Operation(
        build=builders.hardtanh, targets=(nn.Hardtanh, F.hardtanh), arguments=("input", "min_val", "max_val", "inplace")
    ),
    Operation(
        build=builders.clamp, targets=(torch.clamp, torch.clamp_, "clamp", "clamp_"), arguments=("input", "min", "max")
    ),
    Operation(
        build=builders.dropout,
        targets=(
            *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout),
            *(F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout),
        ),
        arguments=("input", "p", "training", "inplace"),
        view=True,
    ),
    Operation(build=builders.identity, targets=(nn.Identity,), view=True),
    Operation(build=builders.identity, targets=("contiguous",), arguments=("input", "memory_format"), view=True),
    Operation(build=builders.identity, targets=("detach", torch.detach), view=True),
    Operation(build=builders.identity, targets=("clone", torch.clone), arguments=("input", "memory_format")),
    Operation(build=builders.retyped, targets=("to",), arguments=("input", "dtype"), view=True),
    *(
        Operation(build=build(op), targets=targets, arguments=arguments)
        for op, build, arguments, targets in (
            ("avg_pool1d", builders.average_pool, _AVERAGE, (nn.AvgPool1d, F.avg_pool1d)),
            ("avg_pool2d", builders.average_pool, _AVERAGE, (nn.AvgPool2d, F.avg_pool2d)),
            ("adaptive_avg_pool1d", builders.average_pool, _ADAPTIVE, (nn.AdaptiveAvgPool1d, F.adaptive_avg_pool1d)),
            ("adaptive_avg_pool2d", builders.average_pool, _ADAPTIVE, (nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d)),
            ("max_pool1d", builders.max_pool, _MAXIMUM, (nn.MaxPool1d, F.max_pool1d, torch.max_pool1d)),
            ("max_pool2d", builders.max_pool, _MAXIMUM, (nn.MaxPool2d, F.max_pool2d, torch.max_pool2d)),
            ("adaptive_max_pool1d", builders.max_pool, _ADAPTIVE, (nn.AdaptiveMaxPool1d, F.adaptive_max_pool1d)),
            ("adaptive_max_pool2d", builders.max_pool, _ADAPTIVE, (nn.AdaptiveMaxPool2d, F.adaptive_max_pool2d)),
        )
    ),
    Operation(build=builders.mean, targets=(torch.mean, "mean"), arguments=("input", "dim", "keepdim")),
    Operation(
        build=builders.add,
        targets=(operator.add, operator.iadd, torch.add, "add", "add_"),
        arguments=("input", "other", "alpha"),
        tensors=2,
        constants=True,
    ),
    Operation(
        build=builders.multiply,
        targets=(operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply"),
        arguments=("input", "other"),
        tensors=2,
        constants=True,
    ),
    Operation(
        build=builders.concatenate, targets=(torch.cat, torch.concat, torch.concatenate), arguments=("tensors", "dim")
    ),
    Operation(
        build=builders.flatten,
        targets=(nn.Flatten, torch.flatten, "flatten"),
        arguments=("input", "start_dim", "end_dim"),
        view=True,
    ),
    Operation(
        build=builders.reshape,
        targets=("view", "reshape", torch.reshape),
        arguments=("input", "shape"),
        view=True,
        variadic=True,
    ),
    Operation(
        build=builders.unflatten, targets=(nn.Unflatten,), arguments=("input", "dim", "unflattened_size"), view=True
    ),
    Operation(
        build=builders.unflatten, targets=(torch.unflatten, "unflatten"), arguments=("input", "dim", "sizes"), view=True
    ),
    Operation(
        build=builders.permute,
        targets=("permute", torch.permute),
        arguments=("input", "dims"),
        view=True,
        variadic=True,
    ),
    Operation(build=builders.sliced, targets=(operator.getitem,), arguments=("input", "index"), view=True),
    Operation(build=builders.squeeze, targets=(torch.squeeze, "squeeze"), arguments=("input", "dim"), view=True),
    Operation(
        build=builders.unsqueeze, targets=(torch.unsqueeze, "unsqueeze"), arguments=("input", "dim"), view=True, more=1
    ),
    Operation(build=builders.pad, targets=(F.pad,), arguments=("input", "pad", "mode", "value")),
    *(
        Operation(build=builders.pad_module(mode), targets=targets, arguments=("input", "padding", "value"))
        for mode, targets in (
            ("constant", (nn.ZeroPad1d, nn.ZeroPad2d, nn.ConstantPad1d, nn.ConstantPad2d)),
            ("reflect", (nn.ReflectionPad1d, nn.ReflectionPad2d)),
            ("replicate", (nn.ReplicationPad1d, nn.ReplicationPad2d)),
            ("circular", (nn.CircularPad1d, nn.CircularPad2d)),
        )
    ),
    Operation(build=builders.interpolate, targets=(nn.Upsample,), arguments=("input", *_SCALING)),
    Operation(build=builders.interpolate, targets=(F.interpolate,), arguments=("input", *_SCALING, "antialias")),
    Operation(
        build=builders.linear_map("pixel_shuffle"),
        targets=(nn.PixelShuffle, F.pixel_shuffle),
        arguments=("input", "upscale_factor"),
    ),
    Operation(
        build=builders.linear_map("pixel_unshuffle"),
        targets=(nn.PixelUnshuffle, F.pixel_unshuffle),
        arguments=("input", "downscale_factor"),
    ),
    Operation(
        build=builders.linear_map("channel_shuffle"),
        targets=(nn.ChannelShuffle, F.channel_shuffle),
        arguments=("input", "groups"),
    ),
)

BY_TARGET: dict[Any, Operation] = {target: row for row in OPERATIONS for target in row.targets}


def operation_of(module: nn.Module) -> Operation | None:
    """Find the row of a module that computes what its type, or one that it is derived from, computes by itself.

    A module with a forward of its own isn't one, nor one whose arrays are computed by a parametrization, a property or
    a hook: what they compute shows when their forward is traced.
    """
    kind = next((kind for kind in type(module).__mro__ if kind in BY_TARGET), None)
    if kind is None:
        return None
    row = BY_TARGET[kind]
    for name in ("forward", "_conv_forward"):
        if getattr(getattr(module, name, None), "__func__", None) is not getattr(kind, name, None):
            return None
    options = (*row.arguments[row.tensors :], *row.arrays)
    if any(isinstance(inspect.getattr_static(type(module), name, None), property) for name in options):
        return None
    own = {**module._parameters, **module._buffers}
    return None if any(name not in own for name in row.arrays) else row


def arrays_by_path(model: nn.Module) -> dict[int, list[str]]:
    """Name the parameters and buffers of a model by their identity; one that is shared has several names."""
    found: dict[int, list[str]] = {}
    named: list[tuple[str, Tensor]] = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    for name, array in named:
        found.setdefault(id(array), []).append(name)
    return found
