"""From a PyTorch module to a spiking graph, by ``torch.fx``.

Every call in the traced forward becomes a node of the graph by the table in :mod:`snnfl.spiking.operations`, or a
:class:`ConversionError` that names the call, its line and what to use instead. Batch normalisation is then folded and
max pooling moved in front of the neurons.
"""

from __future__ import annotations

import operator
import re
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import fx, nn

from snnfl.spiking.graph import Affine, GraphNode, MaxPool, SpikingGraph
from snnfl.spiking.operations import BATCH, BY_TARGET, ConversionError, Operation, average_of, operation_of, way_out
from snnfl.spiking.rewrite import fold_norms, needed, pool_before_spikes, stray_maximum

MaxPooling: TypeAlias = Literal["error", "average", "pre_spike"]


def trace(model: nn.Module, *, max_pooling: MaxPooling = "error") -> SpikingGraph:
    """Trace a model, as it is in evaluation mode, into a spiking graph; the model isn't changed.

    Args:
        model: A module of one tensor argument that ``torch.fx`` can trace.
        max_pooling: What becomes of max pooling, for the maximum of spike trains is not the spike train of the maximum.
            ``"error"`` refuses it; ``"average"`` takes the average over the same windows, which the model should be
            trained with; ``"pre_spike"`` takes the maximum of the current in front of the neurons at each time step,
            an approximation (:class:`~snnfl.spiking.graph.MaxPool`; ``pre_spike_maxpool`` of spikingjelly).

    Returns:
        Its graph, with each batch normalisation folded into the affine layer before it, where nothing else reads that
        layer, and dropout removed. Nodes are named after the modules of the model.

    Raises:
        ConversionError: Naming the first operation that doesn't convert, its line in the model's source and the way
            out.
    """
    modes = {module: module.training for module in model.modules()}
    recorder = _Recorder()
    try:
        traced = recorder.trace(model.eval())
    except Exception as error:  # whatever the model's forward raises on a proxy
        frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConversionError(
            f"{type(model).__name__}{_place(frames)}: torch.fx cannot trace it ({reason}); "
            "write its forward without control flow that depends on data"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    return _Walk(model, traced, max_pooling).graph()


class _Recorder(fx.Tracer):
    """Keeps each call's line, and ``x += y`` as what it is: a change of ``x`` that other names of ``x`` see too."""

    record_stack_traces = True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


class _Proxy(fx.Proxy):
    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})


@dataclass
class _Walk:
    """One walk over the traced calls.

    Attributes:
        model: What was traced.
        traced: Its calls, in order.
        max_pooling: As in :func:`trace`.
        values: Name of the value that each call returned.
        memory: First call whose result each call's result shares memory with, which a change in place changes, too.
        sizes: Calls that return no tensor but a shape (``"shape"``), its first entry (:data:`BATCH`) or another number.
        nodes: What was made of them.
        labels: How an error names each node.
    """

    model: nn.Module
    traced: fx.Graph
    max_pooling: MaxPooling
    values: dict[fx.Node, str] = field(default_factory=dict)
    memory: dict[fx.Node, fx.Node] = field(default_factory=dict)
    sizes: dict[fx.Node, str] = field(default_factory=dict)
    nodes: dict[str, GraphNode] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)

    def graph(self) -> SpikingGraph:
        self.modules = dict(self.model.named_modules())
        inputs = [node for node in self.traced.nodes if node.op == "placeholder"]
        if len(inputs) != 1:
            names = ", ".join(str(node.target) for node in inputs)
            raise ConversionError(
                f"expected a model of one input, found {len(inputs)} ({names}); "
                "wrap it in a module that takes the image"
            )
        self.values[inputs[0]] = image = self._unused("input")
        self.memory[inputs[0]] = inputs[0]
        for node in self.traced.nodes:
            try:
                self._visit(node)
            except ConversionError as error:
                raise ConversionError(f"{self._label(node)}: {error}") from None
        nodes = needed([*self.nodes.values()], self.output)
        self._check_parameters(nodes)
        nodes = pool_before_spikes(fold_norms(nodes))
        if (pool := stray_maximum(nodes)) is not None:
            raise ConversionError(
                f"{self.labels[pool.name]}: pre-spike max pooling needs a ReLU right before it that nothing else "
                "reads, or right behind it; use nn.AvgPool2d or max_pooling='average'"
            )
        graph = SpikingGraph(tuple(nodes), input=image)
        if not graph.spikes:
            raise ConversionError("the model has no ReLU, so no layer of it spikes; put nn.ReLU behind its layers")
        return graph

    def _visit(self, node: fx.Node) -> None:
        if node.op == "output":
            result = node.args[0]
            if not isinstance(result, fx.Node) or result not in self.values:
                raise ConversionError(
                    "expected a model that returns one tensor; wrap it in a module that returns the logits"
                )
            self.output = self.values[result]
        elif node.op == "get_attr":
            raise ConversionError("a tensor of the model's own does not convert; make it the weight of a layer")
        elif node.op == "call_module":
            module = self.modules[str(node.target)]
            row = operation_of(module)
            if row is None:
                raise ConversionError(f"does not convert to a spiking layer; {way_out(type(module).__name__)}")
            if node.kwargs:
                raise ConversionError("is called with keywords; give it its tensor alone")
            self._call(node, row, list(node.args), row.of_module(module))
        elif node.op != "placeholder" and not self._is_size(node):
            row = BY_TARGET.get(node.target)
            if row is None:
                raise ConversionError(f"does not convert to a spiking layer; {way_out(_kind(node))}")
            tensors, options = row.of_call(node)
            self._call(node, row, tensors, dict(fx.map_arg(options, self._size)))

    def _call(self, node: fx.Node, row: Operation, tensors: list[Any], options: dict[str, Any]) -> None:
        """Make the node of a call and note what its result is called and shares memory with."""
        inputs = tuple(self._value(tensor) for tensor in tensors)
        in_place = options.pop("inplace", False) or _works_in_place(node)
        made = row.build(self._name(node), inputs, options)
        if isinstance(made, MaxPool):
            made = self._pooled(made)
        if isinstance(made, Affine) and made.name in self.nodes:
            raise ConversionError("is called twice; give each call a layer of its own")
        self.values[node] = inputs[0] if made is None else made.name
        self.memory[node] = self.memory[tensors[0]] if row.view or in_place else node
        if made is not None:
            self.nodes[made.name] = made
            self.labels[made.name] = self._label(node)
            if in_place:
                self._change(tensors[0], node)

    def _change(self, source: fx.Node, result: fx.Node) -> None:
        """Let every name of a value that was changed in place stand for the result; other views of it are lost."""
        before = self.values[source]
        for node in [node for node in self.values if self.memory[node] is self.memory[result]]:
            if self.values[node] == before:
                self.values[node] = self.values[result]
            elif node is not result:
                del self.values[node]

    def _value(self, tensor: Any) -> str:
        if not isinstance(tensor, fx.Node) or tensor in self.sizes:
            raise ConversionError(f"takes {tensor}, no tensor of the network; put constants into the layer before it")
        if tensor not in self.values:
            raise ConversionError(f"reads {tensor}, a view of what was changed in place; change that out of place")
        return self.values[tensor]

    def _is_size(self, node: fx.Node) -> bool:
        """Note a call that returns no tensor but numbers read from a tensor's shape."""
        index = node.args[1:]
        if node.target == "size" or (node.target is getattr and index == ("shape",)):
            self.sizes[node] = {(): "shape", ("shape",): "shape", (0,): BATCH}.get(index, "a size of the image")
        elif node.all_input_nodes and all(source in self.sizes for source in node.all_input_nodes):
            first = node.target is operator.getitem and index == (0,) and self.sizes[node.all_input_nodes[0]] == "shape"
            self.sizes[node] = BATCH if first else "a size of the image"
        return node in self.sizes

    def _size(self, node: fx.Node) -> str:
        if self.sizes.get(node) != BATCH:
            raise ConversionError(f"{node} depends on the image's size; use flatten(1) or adaptive pooling instead")
        return BATCH

    def _pooled(self, pool: MaxPool) -> GraphNode:
        if self.max_pooling == "error":
            raise ConversionError(
                "a maximum of spike trains is not the spike train of the maximum; use nn.AvgPool2d, or trace with "
                "max_pooling='average' or 'pre_spike'"
            )
        return pool if self.max_pooling == "pre_spike" else average_of(pool)

    def _name(self, node: fx.Node) -> str:
        """Name a node after its module; a layer without parameters may be called again, under another name."""
        path = str(node.target)
        if node.op == "call_module" and (path not in self.nodes or isinstance(self.nodes[path], Affine)):
            return path
        return self._unused(node.name)

    def _unused(self, name: str) -> str:
        while name in self.nodes or name in self.modules:
            name += "_"
        return name

    def _label(self, node: fx.Node) -> str:
        kind = type(self.modules[str(node.target)]).__name__ if node.op == "call_module" else _kind(node)
        name = node.target if node.op == "call_module" else node.name
        frames = re.findall(r'File "(.+?)", line (\d+)', node.stack_trace or "")
        return f"{name} ({kind}){_place(frames)}"

    def _check_parameters(self, nodes: Iterable[GraphNode]) -> None:
        layers = [node.name for node in nodes if isinstance(node, Affine)]
        known = {f"{name}.{kind}" for name in layers for kind in ("weight", "bias")}
        unused = [name for name, _ in self.model.named_parameters() if name not in known]
        if unused:
            raise ConversionError(f"parameter {unused[0]} belongs to no layer that the forward calls; remove it")


def _works_in_place(node: fx.Node) -> bool:
    return node.op != "call_module" and (node.target is operator.iadd or _kind(node).endswith("_"))


def _kind(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _place(frames: Iterable[tuple[str, Any]]) -> str:
    """Say where in the model's source a call stands: the innermost line that is neither PyTorch's nor ours."""
    torchs = Path(torch.__file__).parent
    lines = [f", {file}:{line}" for file, line in frames if file != __file__ and not Path(file).is_relative_to(torchs)]
    return lines[-1] if lines else ""
