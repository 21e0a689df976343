"""From a PyTorch module to a spiking graph, by ``torch.fx``.

Every supported operation is a row of a table. Anything else is a :class:`ConversionError` that names the node and
says what to use instead.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import fx, nn

from snnfl.spiking.graph import Affine, LinearMap, Spike, SpikingGraph


class ConversionError(ValueError):
    """A network that has no spiking counterpart here: names the layer and the way out."""


_RELU = {torch.relu, F.relu, "relu", "relu_"}
_IDENTITY = {F.dropout, F.dropout2d, "contiguous", "clone"}
_ADD = {operator.add, operator.iadd, torch.add, "add", "add_"}
_CONCATENATE = {torch.cat, torch.concat, torch.concatenate}
_RESHAPE = {"view", "reshape", torch.reshape}
_SUPPORTED = (
    "convolution, linear, batch norm after either, ReLU, average pooling, addition, concatenation, flatten, "
    "reshape, dropout and identity"
)
_INSTEAD: dict[type[nn.Module], str] = {
    nn.MaxPool2d: "use nn.AvgPool2d: a maximum of spike trains is not the spike train of the maximum",
    nn.MaxPool1d: "use nn.AvgPool1d: a maximum of spike trains is not the spike train of the maximum",
    nn.GELU: "use nn.ReLU: an integrate-and-fire rate is never negative",
    nn.Sigmoid: "use nn.ReLU: an integrate-and-fire rate is linear in its input",
    nn.Tanh: "use nn.ReLU: an integrate-and-fire rate is never negative",
    nn.LayerNorm: "use batch normalisation, which is affine after training",
    nn.GroupNorm: "use batch normalisation, which is affine after training",
}


def trace(model: nn.Module) -> SpikingGraph:
    """Trace a model into a spiking graph; the model isn't changed.

    Args:
        model: A module of one tensor argument that ``torch.fx`` can trace.

    Returns:
        Its graph, with batch normalisation folded into the affine layer before it and dropout removed. Nodes are
        named after the modules of the model.

    Raises:
        ConversionError: Naming the first operation that doesn't convert.
    """
    try:
        traced = fx.symbolic_trace(model)
    except Exception as error:  # whatever the model's forward raises on a proxy
        raise ConversionError(
            f"{type(model).__name__} cannot be traced by torch.fx ({str(error).splitlines()[0]}); "
            "write its forward without control flow that depends on data"
        ) from error
    return _Tracer(traced, [name for name, _ in model.named_parameters()]).graph()


@dataclass
class _Tracer:
    module: fx.GraphModule
    parameters: list[str]

    def graph(self) -> SpikingGraph:
        self.values: dict[fx.Node, str] = {}
        self.nodes: dict[str, Affine | LinearMap | Spike] = {}
        inputs = [node for node in self.module.graph.nodes if node.op == "placeholder"]
        if len(inputs) != 1:
            raise ConversionError(f"expected a model of one input, found {len(inputs)}")
        for node in self.module.graph.nodes:
            self.visit(node)
        self._check_parameters()
        graph = SpikingGraph(tuple(self.nodes.values()))
        if not graph.spikes:
            raise ConversionError("the model has no ReLU, so no layer of it spikes")
        return graph

    def visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.values[node] = "input"
        elif node.op == "output":
            result = node.args[0]
            if not isinstance(result, fx.Node) or self.values.get(result) != next(reversed(self.nodes), None):
                raise ConversionError("expected a model that returns one tensor, the last one that it computes")
        elif node.op == "call_module":
            self._call_module(node, self.module.get_submodule(str(node.target)))
        elif node.op in ("call_function", "call_method"):
            self._call_function(node, node.target)
        else:
            raise ConversionError(
                f"{node.name}: a tensor of the model's own ({node.target}) has no spiking counterpart"
            )

    def _call_module(self, node: fx.Node, module: nn.Module) -> None:
        name = str(node.target)
        if isinstance(module, nn.ReLU):
            self._emit(node, Spike(name=self._unused(name, node), inputs=self._inputs(node)))
        elif isinstance(module, nn.Identity | nn.Dropout | nn.Dropout1d | nn.Dropout2d):
            self._alias(node)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            self._fold(node, name, module)
        elif (affine := _affine(name, module)) is not None:
            if name in self.nodes:
                raise ConversionError(f"{name} is called twice: give each call a layer of its own")
            self._emit(node, replace(affine, inputs=self._inputs(node)))
        elif (pooling := _pooling(name, module)) is not None:
            self._emit(node, replace(pooling, name=self._unused(name, node), inputs=self._inputs(node)))
        else:
            kind = type(module).__name__
            hint = next((text for base, text in _INSTEAD.items() if isinstance(module, base)), f"use {_SUPPORTED}")
            raise ConversionError(f"{name} ({kind}) does not convert to a spiking layer; {hint}")

    def _call_function(self, node: fx.Node, target: Any) -> None:
        if target in _RELU:
            self._emit(node, Spike(name=node.name, inputs=self._inputs(node)))
        elif target in _IDENTITY:
            self._alias(node)
        elif target in _ADD:
            if len(node.all_input_nodes) != len(node.args) or node.kwargs:
                raise ConversionError(f"{node.name}: only tensors of the network can be added, found {node.args}")
            self._emit(node, LinearMap(name=node.name, inputs=self._inputs(node), op="add"))
        elif target in _CONCATENATE:
            dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
            if dim != 1:
                raise ConversionError(
                    f"{node.name}: concatenation along dimension {dim}; only channels (1) can be joined"
                )
            self._emit(
                node, LinearMap(name=node.name, inputs=self._inputs(node), op="concatenate", arguments={"dim": 1})
            )
        elif target in (torch.flatten, "flatten"):
            self._emit(node, self._flatten(node))
        elif target in _RESHAPE:
            self._emit(node, self._reshape(node))
        elif target in ("size", getattr) or (target is operator.getitem and node.args[0] not in self.values):
            return  # a shape, which a reshape reads from the traced graph itself
        else:
            name = getattr(target, "__name__", target)
            raise ConversionError(f"{node.name} ({name}) does not convert to a spiking layer; use {_SUPPORTED}")

    def _fold(self, node: fx.Node, name: str, module: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        (source,) = self._inputs(node)
        before = self.nodes.get(source)
        read_once = len(node.all_input_nodes[0].users) == 1
        if not isinstance(before, Affine) or before.norm is not None or not read_once:
            raise ConversionError(
                f"{name}: batch normalisation converts only right after a layer that nothing else reads"
            )
        if module.running_var is None or not module.affine:
            raise ConversionError(f"{name}: batch normalisation needs running statistics and affine parameters")
        self.nodes[source] = replace(before, norm=name, epsilon=module.eps)
        self.values[node] = source

    def _flatten(self, node: fx.Node) -> LinearMap:
        start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
        stop = node.args[2] if len(node.args) > 2 else node.kwargs.get("end_dim", -1)
        if start != 1 or stop != -1:
            raise ConversionError(
                f"{node.name}: flatten from {start} to {stop}; only flatten(1), all but the batch, converts"
            )
        return LinearMap(name=node.name, inputs=self._inputs(node), op="flatten", arguments={"start_dim": 1})

    def _reshape(self, node: fx.Node) -> LinearMap:
        shape = node.args[1:] if not isinstance(node.args[1], tuple | list) else node.args[1]
        batch, *rest = cast("tuple[Any, ...]", shape)
        if not all(isinstance(size, int) for size in rest) or (isinstance(batch, int) and batch != -1):
            raise ConversionError(
                f"{node.name}: the first size must be the batch's own, the others numbers; found {shape}"
            )
        source = (self.values[cast(fx.Node, node.args[0])],)
        return LinearMap(name=node.name, inputs=source, op="reshape", arguments={"shape": rest})

    def _inputs(self, node: fx.Node) -> tuple[str, ...]:
        return tuple(self.values[source] for source in node.all_input_nodes if source in self.values)

    def _alias(self, node: fx.Node) -> None:
        (self.values[node],) = self._inputs(node)

    def _emit(self, node: fx.Node, made: Affine | LinearMap | Spike) -> None:
        self.nodes[made.name] = made
        self.values[node] = made.name

    def _unused(self, name: str, node: fx.Node) -> str:
        return name if name not in self.nodes else node.name

    def _check_parameters(self) -> None:
        used = {owner for node in self.nodes.values() if isinstance(node, Affine) for owner in (node.name, node.norm)}
        unused = [name for name in self.parameters if name.rpartition(".")[0] not in used]
        if unused:
            raise ConversionError(f"parameter {unused[0]} belongs to no layer that the forward calls; remove it")


def _affine(name: str, module: nn.Module) -> Affine | None:
    if isinstance(module, nn.Linear):
        return Affine(name=name, inputs=(), op="linear", has_bias=module.bias is not None)
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        if module.padding_mode != "zeros":
            raise ConversionError(f"{name}: padding_mode={module.padding_mode!r}; only zero padding converts")
        arguments = {key: getattr(module, key) for key in ("stride", "padding", "dilation", "groups")}
        op = "conv1d" if isinstance(module, nn.Conv1d) else "conv2d"
        return Affine(name=name, inputs=(), op=op, arguments=arguments, has_bias=module.bias is not None)
    return None


_POOLS: dict[type[nn.Module], tuple[str, tuple[str, ...]]] = {
    nn.AvgPool1d: ("avg_pool1d", ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")),
    nn.AvgPool2d: ("avg_pool2d", ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")),
    nn.AdaptiveAvgPool1d: ("adaptive_avg_pool1d", ("output_size",)),
    nn.AdaptiveAvgPool2d: ("adaptive_avg_pool2d", ("output_size",)),
}


def _pooling(name: str, module: nn.Module) -> LinearMap | None:
    if isinstance(module, nn.Flatten):
        if module.start_dim != 1 or module.end_dim != -1:
            raise ConversionError(f"{name}: only nn.Flatten(1), all but the batch, converts")
        return LinearMap(name=name, inputs=(), op="flatten", arguments={"start_dim": 1})
    op, keys = _POOLS.get(type(module), ("", ()))
    return LinearMap(name=name, inputs=(), op=op, arguments={key: getattr(module, key) for key in keys}) if op else None
