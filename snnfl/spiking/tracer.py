"""Tracing a model's forward: ``torch.fx`` with what shapes, parameters and changes in place are.

Parameters are no proxies but their tensors. So whatever the model computes of them alone, such as a weight that is
quantised, normalised or adapted, is computed while its forward is traced, and shows as what it is: a constant.
"""

from __future__ import annotations

import copy
import operator
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, SupportsIndex

import torch
from torch import Tensor, fx, nn

from snnfl.spiking.operations import BY_TARGET, operation_of
from snnfl.spiking.spellings import SPELLINGS
from snnfl.spiking.ways_out import ConversionError, Refusal

_call = nn.Module.__call__
"""What tracing replaces."""


class Listener(Protocol):
    """Learns of each call as it is recorded."""

    dtype: torch.dtype
    device: torch.device
    constants: Mapping[fx.Node, Tensor]

    def begin(self, node: fx.Node) -> None:
        """Take the image."""

    def visit(self, node: fx.Node) -> None:
        """Make of a call what it is.

        Raises:
            ConversionError: If it doesn't convert.
        """

    def rank(self, node: fx.Node) -> int | None:
        """Count the dimensions of what a call returned; ``None`` if only the image tells."""

    def size(self, node: fx.Node, dim: int) -> int | None:
        """Tell a size of what a call returned, never that of the batch; ``None`` if only the image tells."""

    def mistake(self, call: fx.Node | str, reason: str) -> ConversionError:
        """Return the error of a call, or a function by name, with the line that is being traced."""


DECISION = (
    "this is control flow that depends on data, but a spiking network computes the same for every image: take it out "
    "of the forward"
)


class Tracer(fx.Tracer):
    """Records a forward, and tells a listener of each call before the forward goes on.

    The listener is told nothing after a call that it refuses. The forward goes on all the same, to show whether the
    refused value decides what it does: then that is what the error says, and not that a comparison doesn't convert.
    """

    def __init__(self, listener: Listener) -> None:
        super().__init__()
        self.listener = listener
        self.constants: dict[fx.Node, Tensor] = {}
        listener.constants = self.constants
        self.batch: fx.Proxy | None = None
        self._apart = False
        self._refused: ConversionError | None = None
        self._of_refused = set[fx.Node]()

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Record the forward of a module.

        Raises:
            ConversionError: For the first call that the listener refuses.
        """
        try:
            graph = super().trace(root, concrete_args)
        except Exception:
            if self._refused is not None:
                raise self._refused from None
            raise
        if self._refused is not None:
            raise self._refused
        return graph

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Record a call with the lines that led to it."""
        node = super().create_node(*args, **kwargs)
        # What `record_stack_traces` would do, but that imports torch's compiler, more than a second of CPU, and reads
        # the text of each line of a stack that is deep in a notebook, which nobody asks for.
        frames = [
            f'File "{frame.f_code.co_filename}", line {line}\n' for frame, line in traceback.walk_stack(sys._getframe())
        ]
        node.stack_trace = "".join(reversed(frames))
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return what stands for a call's result while the forward runs."""
        return _Proxy(node, self)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """Give the forward the parameters themselves."""
        return attr_val

    def create_arg(self, a: Any) -> Any:
        """Note a tensor of the model among a call's arguments as a constant."""
        if isinstance(a, Tensor):
            node = next((node for node, array in self.constants.items() if array is a), None)
            if node is None:
                node = self.create_node("get_attr", "constant", (), {})
                self.constants[node] = a
            return node
        if isinstance(a, _Shape):
            return super().create_arg(tuple(a))
        return super().create_arg(a)

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any | None = None,
        proxy_factory_fn: Callable[[fx.Node], fx.Proxy] | None = None,
    ) -> Any:
        """Record a call, or what spells it, and tell the listener."""
        if kind == "placeholder" and self.batch is not None:  # any other argument is not given
            return _NoKeywords() if target.startswith("**") else _NoArguments() if target[0] == "*" else args[0]
        if kind in ("call_function", "call_method") and target in SPELLINGS and self._refused is None:
            try:
                spelled = SPELLINGS[target](self._size, *args, **kwargs)
            except Refusal as reason:
                raise self.listener.mistake(str(getattr(target, "__name__", target)), str(reason)) from None
            if spelled is not NotImplemented:
                return spelled
        proxy = super().create_proxy(kind, target, args, kwargs, name, type_expr, proxy_factory_fn)
        if kind == "placeholder" and self.batch is None:
            self.listener.begin(proxy.node)
            self.batch = super().create_proxy("call_method", "size", (proxy, 0), {})
            self.listener.visit(self.batch.node)
        elif kind != "placeholder":
            self._tell(proxy.node)
        return proxy

    def _tell(self, node: fx.Node) -> None:
        """Tell the listener of a call, or note that it computes with one that was refused."""
        if self._refused is None:
            try:
                self.listener.visit(node)
            except ConversionError as error:
                self._refused, self._of_refused = error, {node}
        elif not self._of_refused.isdisjoint(node.all_input_nodes):
            self._of_refused.add(node)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run a module's forward, record it as one call, or let it compute what no value takes part in."""
        if _holds_proxy((args, kwargs)):
            return super().call_module(m, forward, args, kwargs)
        if self._apart:
            return forward(*args, **kwargs)
        # It computes something of parameters alone, and may note it in itself, as what observes a range does.
        self._apart = True
        try:
            return _call(copy.deepcopy(m), *args, **kwargs)
        finally:
            self._apart = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Tell whether a module is one that the table knows, or one of PyTorch's that has no row, to be refused."""
        if operation_of(m) is not None:
            return True
        known = any(kind in BY_TARGET for kind in type(m).__mro__)
        return not known and super().is_leaf_module(m, module_qualified_name)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Refuse control flow that depends on a value."""
        raise self._decision(obj, "decides what the forward does")

    def iter(self, obj: fx.Proxy) -> Any:
        """Refuse a loop over a value, but not its assignment to several names."""
        try:
            return super().iter(obj)
        except fx.proxy.TraceError:
            raise self._decision(obj, "is iterated over") from None

    def _decision(self, obj: fx.Proxy, what: str) -> ConversionError:
        """Return the error of control flow by a value, but that of an earlier call if the value has no part in it."""
        if self._refused is None or obj.node in self._of_refused:
            self._refused = self.listener.mistake(obj.node, f"{what}; {DECISION}")
        return self._refused

    def _size(self, x: fx.Proxy, dim: int) -> int:
        rank = self.listener.rank(x.node)
        place = dim + rank if dim < 0 and rank is not None else dim
        size = None if place < 1 else self.listener.size(x.node, place)
        if size is None:
            raise Refusal(
                f"depends on the size of {x.node} along dimension {dim}, which "
                + ("is the batch's" if place == 0 else "only the image tells; give trace the input_shape")
            )
        return size


class _NoArguments(tuple[Any, ...]):
    """An empty ``*args``, of a type of its own: ``torch.fx`` would take a tuple apart."""


class _NoKeywords(dict[str, Any]):
    """An empty ``**kwargs``, likewise."""


class _Proxy(fx.Proxy):
    """A value that tells what is known of its shape, and is changed in place as what it stands for is."""

    tracer: Tracer

    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        raise self.tracer.listener.mistake(self.node, "is assigned to by index; join its parts by torch.cat instead")

    def __len__(self) -> int:
        raise self.tracer.listener.mistake(self.node, "has a len() that only the batch tells; write x.shape[0]")

    @property
    def dtype(self) -> torch.dtype:
        return self.tracer.listener.dtype

    @property
    def device(self) -> torch.device:
        return self.tracer.listener.device

    @property
    def ndim(self) -> int:
        return self.dim()

    def dim(self) -> int:
        rank = self.tracer.listener.rank(self.node)
        if rank is None:
            raise self.tracer.listener.mistake(
                self.node, "has dimensions that only the image tells; give trace the input_shape"
            )
        return rank

    @property
    def shape(self) -> Any:
        return self.size()

    def size(self, dim: int | None = None) -> Any:
        rank = self.tracer.listener.rank(self.node)
        if rank is None:
            return self.tracer.create_proxy("call_method", "size", (self, *(() if dim is None else (dim,))), {})
        shape = _Shape(self, rank)
        return shape if dim is None else shape[dim]


class _Shape(tuple[Any, ...]):
    """A shape whose sizes are looked up when they are read: a graph is only bound to the image by those that are."""

    def __new__(cls, value: _Proxy, rank: int) -> _Shape:
        made = super().__new__(cls, range(rank))
        made.value = value
        return made

    value: _Proxy

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        places = super().__getitem__(index)
        return self._read(places) if isinstance(places, int) else tuple(map(self._read, places))

    def __iter__(self) -> Iterator[Any]:
        return iter(self[:])

    def __eq__(self, other: object) -> bool:
        return tuple(self) == (tuple(other) if isinstance(other, tuple) else other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def _read(self, place: int) -> Any:
        tracer = self.value.tracer
        if place == 0:
            return tracer.batch
        size = tracer.listener.size(self.value.node, place)
        if size is None:
            return tracer.create_proxy("call_method", "size", (self.value, place), {})
        return size


def _holds_proxy(value: Any) -> bool:
    if isinstance(value, list | tuple | dict):
        return any(map(_holds_proxy, value.values() if isinstance(value, dict) else value))
    return isinstance(value, fx.Proxy)
