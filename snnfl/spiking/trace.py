"""From a PyTorch module to a spiking graph, by ``torch.fx``.

Every call in the traced forward becomes a node of the graph by the table in :mod:`snnfl.spiking.operations`, or a
:class:`ConversionError` that names the call, its line and what to use instead. Batch normalisation is then folded and
max pooling moved in front of the neurons.
"""

from __future__ import annotations

import operator
import re
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import fx, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from snnfl.spiking.graph import Affine, GraphNode, MaxPool, Spike, SpikingGraph
from snnfl.spiking.operations import (
    BATCH,
    BY_TARGET,
    ConversionError,
    Operation,
    average_of,
    dimensions,
    from_the_front,
    operation_of,
    way_out,
)
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
        layer, and dropout removed. Nodes are named after the modules of the model. Layers that evaluation mode doesn't
        use, such as auxiliary heads, are left out.

    Raises:
        ConversionError: Naming the first operation that doesn't convert, its line in the model's source and the way
            out; or a layer with forward hooks, which a graph doesn't show.
    """
    _check_plain(model)
    modes = {module: module.training for module in model.modules()}
    recorder = _Recorder()
    try:
        traced = recorder.trace(model.eval())
    except ConversionError as error:
        raise ConversionError(f"{type(model).__name__}: {error}") from error
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

    def to_bool(self, obj: fx.Proxy) -> bool:
        raise self._mistake(obj, "decides what the forward does")

    def iter(self, obj: fx.Proxy) -> Any:
        try:
            return super().iter(obj)
        except fx.proxy.TraceError:
            raise self._mistake(obj, "is iterated over") from None

    def _mistake(self, obj: fx.Proxy, what: str) -> ConversionError:
        frames = [(frame.filename, frame.lineno) for frame in traceback.extract_stack()]
        called = _called(obj.node, dict(self.root.named_modules()))
        return ConversionError(f"{called}{_place(frames)}: {what}; write it without control flow that depends on data")


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
        ranks: Dimensions of each value, ``None`` where only the image tells them.
    """

    model: nn.Module
    traced: fx.Graph
    max_pooling: MaxPooling
    values: dict[fx.Node, str] = field(default_factory=dict)
    memory: dict[fx.Node, fx.Node] = field(default_factory=dict)
    sizes: dict[fx.Node, str] = field(default_factory=dict)
    nodes: dict[str, GraphNode] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    ranks: dict[str, int | None] = field(default_factory=dict)

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
                raise ConversionError(f"{_label(node, self.modules)}: {error}") from None
        nodes = needed([*self.nodes.values()], self.output)
        self._check_parameters(nodes)
        nodes = pool_before_spikes(fold_norms(nodes))
        if (pool := stray_maximum(nodes)) is not None:
            raise ConversionError(
                f"{self.labels[pool.name]}: pre-spike max pooling needs a ReLU right before it that nothing else "
                f"reads, or right behind it, and {_before(pool, nodes)}; use nn.AvgPool2d or max_pooling='average'"
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
            _check_hooks(module)
            row = operation_of(module)
            if row is None:
                kind = type(module).__name__
                raise ConversionError(f"does not convert to a spiking layer; {way_out(kind, last=_is_last(node))}")
            if node.kwargs:
                raise ConversionError("is called with keywords; give it its tensor alone")
            self._call(node, row, list(node.args), row.of_module(module))
        elif node.op != "placeholder" and not self._is_size(node):
            row = BY_TARGET.get(node.target)
            if row is None:
                kind = _kind(node)
                raise ConversionError(f"does not convert to a spiking layer; {way_out(kind, last=_is_last(node))}")
            tensors, options = row.of_call(node)
            self._call(node, row, tensors, dict(fx.map_arg(options, self._size)))

    def _call(self, node: fx.Node, row: Operation, tensors: list[Any], options: dict[str, Any]) -> None:
        """Make the node of a call and note what its result is called and shares memory with."""
        inputs = tuple(self._value(tensor) for tensor in tensors)
        in_place = options.pop("inplace", False) or _works_in_place(node)
        options = from_the_front(options, next((rank for name in inputs if (rank := self.ranks.get(name))), None))
        made = row.build(self._name(node), inputs, options)
        if isinstance(made, MaxPool):
            made = self._pooled(made)
        if isinstance(made, Affine) and made.name in self.nodes:
            raise ConversionError("is called twice; give each call a layer of its own")
        self.values[node] = inputs[0] if made is None else made.name
        self.memory[node] = self.memory[tensors[0]] if row.view or in_place else node
        if made is not None:
            self.nodes[made.name] = made
            self.labels[made.name] = _label(node, self.modules)
            self.ranks[made.name] = dimensions(made, [self.ranks.get(name) for name in made.inputs])
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

    def _check_parameters(self, nodes: Iterable[GraphNode]) -> None:
        """Check that every layer has no parameters but those that the graph knows."""
        layers = [node.name for node in nodes if isinstance(node, Affine)]
        known = {f"{name}.{kind}" for name in layers for kind in ("weight", "bias")}
        for layer in layers:
            for name, _ in self.modules[layer].named_parameters(layer):
                if name not in known:
                    raise ConversionError(f"{layer}: parameter {name} does not convert; keep weight and bias alone")


def _check_plain(model: nn.Module) -> None:
    """Check that a model is Python that can be traced, and that nothing runs around its own forward."""
    for name, module in model.named_modules():
        label = f"{name or 'the model'} ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise ConversionError(f"{label}: a TorchScript module cannot be traced; give the module it was made from")
        if "_orig_mod" in module._modules:
            raise ConversionError(f"{label}: a compiled module cannot be traced; give its _orig_mod, the plain module")
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise ConversionError(f"{label}: a parallel module cannot be traced; give its .module, the plain module")
    try:
        _check_hooks(model)
    except ConversionError as error:
        raise ConversionError(f"the model ({type(model).__name__}): {error}") from None


def _check_hooks(module: nn.Module) -> None:
    """Check that nothing changes what a layer computes from outside its forward, which the graph wouldn't show."""
    if parametrize.is_parametrized(module):
        (name, *_) = dict(module.named_children())["parametrizations"]._modules
        raise ConversionError(
            f"its {name} is parametrized; call torch.nn.utils.parametrize.remove_parametrizations on it first"
        )
    for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
        kind = next((kind for kind in _REMOVALS if isinstance(hook, kind)), None)
        if kind is None:
            raise ConversionError(f"has a forward hook, {_name_of(hook)}, which a graph does not show; remove it")
        raise ConversionError(f"its weight is computed by a hook; call torch.nn.utils.{_REMOVALS[kind]} first")


_REMOVALS = {
    WeightNorm: "remove_weight_norm(module)",
    SpectralNorm: "remove_spectral_norm(module)",
    prune.BasePruningMethod: "prune.remove(module, 'weight')",
}
"""What makes a hook of PyTorch's own the weight itself."""


def _name_of(hook: Any) -> str:
    return str(getattr(hook, "__name__", type(hook).__name__))


def _before(pool: MaxPool, nodes: Iterable[GraphNode]) -> str:
    """Say what stands in front of a maximum."""
    (read,) = pool.inputs
    source = next((node for node in nodes if node.name == read), None)
    others = [node.name for node in nodes if read in node.inputs and node is not pool]
    kind = "a ReLU" if isinstance(source, Spike) else "the image" if source is None else source.op
    return f"{read} before it is {kind}" + (f", which {others[0]} reads too" if others else "")


def _is_last(node: fx.Node) -> bool:
    return all(reader.op == "output" for reader in node.users)


def _label(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """Name a call and its line in the model's source."""
    frames = re.findall(r'File "(.+?)", line (\d+)', node.stack_trace or "")
    return f"{_called(node, modules)}{_place(frames)}"


def _called(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    if node.op == "call_module":
        return f"{node.target} ({type(modules[str(node.target)]).__name__})"
    return f"{node.name} ({_kind(node)})"


def _works_in_place(node: fx.Node) -> bool:
    return node.op != "call_module" and (node.target is operator.iadd or _kind(node).endswith("_"))


def _kind(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _place(frames: Iterable[tuple[str, Any]]) -> str:
    """Say where in the model's source a call stands: the innermost line that is neither PyTorch's nor ours."""
    torchs = Path(torch.__file__).parent
    lines = [f", {file}:{line}" for file, line in frames if file != __file__ and not Path(file).is_relative_to(torchs)]
    return lines[-1] if lines else ""
