"""From the calls of a traced forward to the nodes of a spiking graph, one call at a time."""

from __future__ import annotations

import operator
import re
import traceback
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import dropwhile
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from snnfl.spiking.builders import average_of
from snnfl.spiking.calls import BATCH, Call, Computed
from snnfl.spiking.graph import Affine, GraphNode, MaxPool, Parameters, Spike, form_of
from snnfl.spiking.node_operations import Form
from snnfl.spiking.operations import BY_TARGET, Operation, arrays_by_path, from_the_front, operation_of
from snnfl.spiking.values import hollow
from snnfl.spiking.ways_out import ConversionError, Refusal, way_out

MaxPooling: TypeAlias = Literal["gated", "average"]

KNOWN_NAMES = {target.__name__ for target in BY_TARGET if isinstance(target, type)}

TORCHS, OURS = Path(torch.__file__).parent, Path(__file__).parent

SHAPE = "shape"
SIZE = "a size of the image"


class Walk:
    """What is known of a forward up to the call that is being traced.

    Attributes:
        model: What is traced.
        max_pooling: As in :func:`~snnfl.spiking.trace.trace`.
        input_shape: Shape of an image, if known.
        constants: Tensors of the model that calls take; the tracer notes them.
        state: Arrays of the model by name, and those that it computes.
        values: Name of the value that each call returned.
        memory: First call whose result each call's result shares memory with, which a change in place changes, too.
        sizes: Calls that return no tensor but a shape (:data:`SHAPE`), its first entry (:data:`~.calls.BATCH`) or
            another number.
        nodes: What was made of them, by name.
        labels: How an error names each node.
        forms: Channels and dimensions of each value.
        shadows: Each value without its numbers, of two images of the given shape; none where it isn't known.
        bound: Whether the forward read a size that only images of the given shape have.
    """

    def __init__(self, model: nn.Module, max_pooling: MaxPooling, input_shape: Sequence[int] | None) -> None:
        self.model, self.max_pooling = model, max_pooling
        self.input_shape = None if input_shape is None else tuple(input_shape)
        self.modules = dict(model.named_modules())
        self.paths = arrays_by_path(model)
        self.state: dict[str, Tensor] = model.state_dict()
        reals = (array for array in self.state.values() if array.is_floating_point())
        like = next(reals, torch.empty(0))
        self.dtype, self.device = like.dtype, like.device
        self.constants: Mapping[fx.Node, Tensor] = {}
        self.values: dict[fx.Node, str] = {}
        self.memory: dict[fx.Node, fx.Node] = {}
        self.sizes: dict[fx.Node, str] = {}
        self.nodes: dict[str, GraphNode] = {}
        self.labels: dict[str, str] = {}
        self.forms: dict[str, Form] = {}
        self.shadows: dict[str, Tensor] = {}
        self.bound = False
        self.image = self._unused("input")

    def begin(self, node: fx.Node) -> None:
        """Take the image."""
        self.values[node], self.memory[node] = self.image, node
        self.forms[self.image] = Form()
        if self.input_shape is not None:
            self.forms[self.image] = Form(None, 1 + len(self.input_shape))
            self.shadows[self.image] = hollow(
                (2, *self.input_shape), torch.empty(0, dtype=self.dtype, device=self.device)
            )

    def visit(self, node: fx.Node) -> None:
        """Make of a call what it is.

        Raises:
            ConversionError: If it doesn't convert.
        """
        try:
            self._visit(node)
        except Refusal as reason:
            raise ConversionError(f"{self._label(node)}: {reason}") from None

    def end(self, result: Any) -> str:
        """Return the name of what the forward returns."""
        if not isinstance(result, fx.Node) or result not in self.values:
            raise ConversionError(
                "output (output): expected a model that returns one tensor; wrap it in a module that returns the logits"
            )
        return self.values[result]

    def rank(self, node: fx.Node) -> int | None:
        """Count the dimensions of what a call returned; ``None`` if only the image tells."""
        return self.forms[self.values[node]].rank if node in self.values else None

    def size(self, node: fx.Node, dim: int) -> int | None:
        """Tell a size of what a call returned, never that of the batch; ``None`` if only the image tells."""
        name = self.values.get(node)
        if name is None:
            return None
        if dim == 1 and (channels := self.forms[name].channels) is not None:
            return channels
        if name not in self.shadows:
            return None
        self.bound = True
        return self.shadows[name].shape[dim]

    def mistake(self, call: fx.Node | str, reason: str) -> ConversionError:
        """Return the error of a call, or a function by name, with the line that is being traced."""
        called = f"{call} ({call})" if isinstance(call, str) else self._called(call)
        frames = [(frame.filename, frame.lineno) for frame in traceback.extract_stack()]
        if isinstance(call, fx.Node) and call in self.sizes:
            reason = f"{reason.partition(';')[0]}, and only the image's shape tells it; give trace the input_shape"
        return ConversionError(f"{type(self.model).__name__}: {called}{place(frames)}: {reason}")

    def _visit(self, node: fx.Node) -> None:
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            row = self._row(module, node)
            if node.kwargs or len(node.args) != 1:
                raise Refusal("is called with keywords, or more than its tensor; give it its tensor alone")
            self._call(node, row, list(node.args), row.of_module(module))
        elif not self._is_size(node):
            row_of_call = BY_TARGET.get(node.target)
            if row_of_call is None:
                raise Refusal(f"does not convert to a spiking layer; {way_out(_kind(node))}")
            tensors, options = row_of_call.of_call(node)
            self._call(node, row_of_call, tensors, dict(fx.map_arg(options, self._option)))

    def _row(self, module: nn.Module, node: fx.Node) -> Operation:
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
            raise Refusal("is not initialised; call the model once on an image, as lazy layers need")
        check_hooks(module)
        row = operation_of(module)
        if row is None:
            kind = type(module).__name__
            namesake = f", being of {type(module).__module__}," if kind in KNOWN_NAMES else ""
            raise Refusal(f"does not convert to a spiking layer{namesake}; {way_out(kind)}")
        return row

    def _call(self, node: fx.Node, row: Operation, tensors: list[Any], options: dict[str, Any]) -> None:
        """Make the node of a call and note what its result is called and shares memory with."""
        terms = tuple(self._term(tensor, row) for tensor in tensors)
        inputs = [term for term in terms if isinstance(term, str)]
        in_place = options.pop("inplace", False) or _works_in_place(node)
        forms = tuple(self.forms[name] for name in inputs)
        rank = next((form.rank for form in forms if form.rank is not None), None)
        call = Call(
            name=self._name(node),
            terms=terms,
            options=from_the_front(options, None if rank is None else rank + row.more),
            forms=self._known(inputs),
            owner=self._owner(row, options),
            dtype=self.dtype,
        )
        made = row.build(call)
        if isinstance(made, Computed):
            self.state |= {f"{made.node.name}.weight": made.weight, f"{made.node.name}.bias": made.bias}
            made = made.node
        if isinstance(made, MaxPool) and self.max_pooling == "average":
            made = average_of(made)
        if isinstance(made, Affine) and made.name in self.nodes:
            raise Refusal("is called twice; give each call a layer of its own")
        first = next(tensor for tensor in tensors if tensor in self.values)
        self.values[node] = inputs[0] if made is None else made.name
        self.memory[node] = self.memory[first] if row.view or in_place else node
        if made is not None:
            self._keep(made, self._label(node))
            if in_place:
                self._change(first, node)

    def _keep(self, made: GraphNode, label: str) -> None:
        self.nodes[made.name], self.labels[made.name] = made, label
        parameters = self._arrays(made)
        outputs = len(parameters[f"{made.name}.weight"]) if isinstance(made, Affine) else None
        try:
            form = form_of(made, [self.forms[name] for name in made.inputs], outputs)
        except ValueError as reason:
            raise Refusal(str(reason)) from None
        if all(name in self.shadows for name in made.inputs):
            try:
                shadow = _shadow(made, [self.shadows[name] for name in made.inputs], parameters)
            except (RuntimeError, ValueError, IndexError):  # the image doesn't fit, as whoever simulates it will say
                pass
            else:
                self.shadows[made.name] = hollow(shadow.shape, shadow)
                form = Form(form.channels, shadow.dim())
        self.forms[made.name] = form

    def _arrays(self, made: GraphNode) -> Parameters:
        """Return weight and bias of a layer, whose numbers don't matter, and their output channels first."""
        if not isinstance(made, Affine):
            return {}
        kind = "weight" if made.norm is None else "running_var"
        weight = made.outputs_first(self.state[f"{made.name}.{kind}"])
        return {f"{made.name}.weight": weight, f"{made.name}.bias": weight.new_zeros(len(weight))}

    def _known(self, inputs: Sequence[str]) -> tuple[Form, ...]:
        """Return the forms of values, with channels that only images of the given shape have."""
        found = []
        for name in inputs:
            channels, rank = self.forms[name]
            if channels is None and name in self.shadows and rank is not None and rank > 1:
                channels = self.shadows[name].shape[1]
            found.append(Form(channels, rank))
        return tuple(found)

    def _owner(self, row: Operation, options: Mapping[str, Any]) -> str | None:
        """Return the module whose own arrays a function takes, by their names; ``None`` if there is none."""
        arrays = {name: options[name] for name in row.arrays if isinstance(options.get(name), Tensor)}
        owners = [
            {path.rpartition(".")[0] for path in self.paths.get(id(array), ()) if path.rpartition(".")[2] == name}
            for name, array in arrays.items()
        ]
        common = sorted(set.intersection(*owners)) if owners else []
        for path in common:
            others = (getattr(self.modules[path], name, None) for name in row.arrays if name not in arrays)
            if path and all(f"{path}.{name}" in self.state for name in arrays) and all(o is None for o in others):
                return path
        return None

    def _change(self, source: fx.Node, result: fx.Node) -> None:
        """Let every name of a value that was changed in place stand for the result; other views of it are lost."""
        before = self.values[source]
        for node in [node for node in self.values if self.memory[node] is self.memory[result]]:
            if self.values[node] == before:
                self.values[node] = self.values[result]
            elif node is not result:
                del self.values[node]

    def _term(self, tensor: Any, row: Operation) -> str | float | Tensor:
        if row.constants and isinstance(tensor, int | float) and not isinstance(tensor, bool):
            return tensor
        if row.constants and isinstance(tensor, fx.Node) and tensor in self.constants:
            return self.constants[tensor]
        if not isinstance(tensor, fx.Node) or tensor in self.sizes or tensor in self.constants:
            raise Refusal(f"takes {tensor}, no tensor of the network; put constants into the layer before it")
        if tensor not in self.values:
            raise Refusal(f"reads {tensor}, a view of what was changed in place; change that out of place")
        return self.values[tensor]

    def _is_size(self, node: fx.Node) -> bool:
        """Note a call that returns no tensor but numbers read from a tensor's shape, or nothing."""
        index = node.args[1:]
        if node.target == "size":
            self.sizes[node] = SHAPE if index == () else BATCH if index == (0,) else SIZE
        elif node.target is torch._assert:
            self.sizes[node] = SIZE
        elif node.all_input_nodes and all(source in self.sizes for source in node.all_input_nodes):
            first = node.target is operator.getitem and index == (0,) and self.sizes[node.all_input_nodes[0]] == SHAPE
            self.sizes[node] = BATCH if first else SIZE
        return node in self.sizes

    def _option(self, node: fx.Node) -> Any:
        if node in self.constants:
            return self.constants[node]
        if node in self.values:
            raise Refusal(f"takes {node} as an option; give it numbers that no image decides")
        if self.sizes.get(node) != BATCH:
            raise Refusal(
                f"{node} depends on the image's size or on the batch's; give trace the input_shape, or use flatten(1) "
                "or adaptive pooling"
            )
        return BATCH

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
        """Name a call and its line in the model's source."""
        frames = re.findall(r'File "(.+?)", line (\d+)', node.stack_trace or "")
        return f"{self._called(node)}{place(frames)}"

    def _called(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"{node.target} ({type(self.modules[str(node.target)]).__name__})"
        return f"{node.name} ({_kind(node)})"


def _shadow(node: GraphNode, inputs: list[Tensor], parameters: Parameters) -> Tensor:
    result = inputs[0] if isinstance(node, Spike) else node.apply(inputs, parameters)
    if result.dim() < 1 or len(result) != len(inputs[0]):
        raise ValueError("images and other dimensions are mixed")
    return result


def _works_in_place(node: fx.Node) -> bool:
    in_place = (operator.iadd, operator.imul)
    return node.op != "call_module" and (node.target in in_place or _kind(node).endswith("_"))


def _kind(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def place(frames: Iterable[tuple[str, Any]]) -> str:
    """Say where in the model's source a call stands: the innermost line that is neither PyTorch's nor ours.

    Modules of PyTorch's, such as ``nn.Sequential``, have none: what stands before our own first line has called us.
    """
    within = dropwhile(lambda frame: not _stands_in(frame[0], OURS), frames)
    lines = [f", {file}:{line}" for file, line in within if not _stands_in(file, TORCHS) and not _stands_in(file, OURS)]
    return lines[-1] if lines else ""


@lru_cache(maxsize=4096)
def _stands_in(file: str, folder: Path) -> bool:
    """Tell whether a file is in a folder: each call has the same frames above it, and paths are slow to compare."""
    return Path(file).is_relative_to(folder)


COMPUTING_HOOKS = (WeightNorm, SpectralNorm, prune.BasePruningMethod)
"""Hooks of PyTorch's own that compute a weight of parameters before the forward, which shows when it is traced."""


def check_hooks(module: nn.Module) -> None:
    """Check that nothing changes what a layer computes from outside its forward, which the graph wouldn't show.

    Raises:
        Refusal: Naming the hook.
    """
    for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
        if not isinstance(hook, COMPUTING_HOOKS):
            name = getattr(hook, "__name__", type(hook).__name__)
            raise Refusal(f"has a forward hook, {name}, which a graph does not show; remove it")
