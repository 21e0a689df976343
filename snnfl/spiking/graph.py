"""The spiking graph: what is left of a network when ReLU becomes an integrate-and-fire layer.

Four kinds of node are enough. An :class:`Affine` layer (convolution or linear, with the batch normalisation
that was folded into it, or one that stands alone) and a parameter-free :class:`LinearMap` (pooling, addition,
concatenation, reshaping) are linear in their input, so they may act on every time step apart or on a sum over time. A
:class:`Spike` layer and the :class:`MaxPool` in front of one are not.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Parameters: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Node:
    """A value of the network: its name and the names of the values that it is computed from."""

    name: str
    inputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Affine(Node):
    """A layer ``W x + b``, whose folded parameters are ``<name>.weight`` and ``<name>.bias``.

    Attributes:
        op: A key of :data:`AFFINE_OPS`. A ``"scale"`` is a batch normalisation that folds into no other layer: name
            and norm are both its own, its weight and bias have one value per channel.
        arguments: Stride, padding, dilation and groups.
        norm: Name of the batch normalisation folded into it, if any.
        epsilon: Of that batch normalisation.
        has_bias: Whether the layer of the ANN had a bias of its own.
    """

    op: str
    arguments: dict[str, Any] = field(default_factory=dict)
    norm: str | None = None
    epsilon: float = 0.0
    has_bias: bool = True

    def apply(self, values: Sequence[Tensor], parameters: Parameters) -> Tensor:
        """Compute ``W x + b`` of a batch.

        Raises:
            ValueError: If a linear layer gets a value that isn't ``[N, features]``: its outputs were no channels.
        """
        if self.op == "linear" and values[0].dim() != 2:
            raise ValueError(f"{self.name}: linear on {list(values[0].shape)}; flatten all but the batch before it")
        weight, bias = parameters[f"{self.name}.weight"], parameters[f"{self.name}.bias"]
        return AFFINE_OPS[self.op](*values, weight, bias, **self.arguments)


@dataclass(frozen=True, kw_only=True)
class LinearMap(Node):
    """A linear map without parameters: ``op`` is a key of :data:`LINEAR_OPS`."""

    op: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def apply(self, values: Sequence[Tensor], parameters: Parameters) -> Tensor:
        """Map batches to a batch."""
        return LINEAR_OPS[self.op](*values, **self.arguments)


@dataclass(frozen=True, kw_only=True)
class Spike(Node):
    """A layer of integrate-and-fire neurons, where the ANN has a ReLU. Its threshold is ``<name>.threshold``.

    Attributes:
        ceiling: Of a clipped ReLU, such as 6 of ReLU6: no activation exceeds it, so neither does a threshold found
            from activations, and a rate code is clipped at its threshold.
    """

    ceiling: float | None = None

    def analog(self, value: Tensor) -> Tensor:
        """Compute the ReLU that the neurons stand for."""
        return F.relu(value) if self.ceiling is None else value.clamp(0, self.ceiling)


@dataclass(frozen=True, kw_only=True)
class MaxPool(Node):
    """A maximum over windows of the current in front of a spiking layer: ``op`` is a key of :data:`MAX_OPS`.

    ``max(relu(x)) = relu(max(x))``, so the analog twin is exact. The spiking network is an approximation: it takes the
    maximum of the current at each time step, which is not linear in time, where the ANN takes that of the mean.
    Only spiking layers, or another maximum, read one; so it is never part of the tail.
    """

    op: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def apply(self, values: Sequence[Tensor], parameters: Parameters) -> Tensor:
        """Map a batch to a batch."""
        return MAX_OPS[self.op](*values, **self.arguments)


GraphNode: TypeAlias = Affine | LinearMap | MaxPool | Spike


def _scale(value: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    axes = [1] * (value.dim() - 2)
    return torch.addcmul(bias.view(-1, *axes), value, weight.view(-1, *axes))


def _mean(value: Tensor, dim: Sequence[int], keepdim: bool = False) -> Tensor:
    if any(each % value.dim() < 2 for each in dim):
        raise ValueError(f"mean over {list(dim)} of {list(value.shape)} isn't over space alone; use dimensions 2 and 3")
    return value.mean([*dim], keepdim)


AFFINE_OPS: dict[str, Callable[..., Tensor]] = {
    "conv1d": F.conv1d,
    "conv2d": F.conv2d,
    "linear": F.linear,
    "scale": _scale,
}

MAX_OPS: dict[str, Callable[..., Tensor]] = {
    "max_pool1d": F.max_pool1d,
    "max_pool2d": F.max_pool2d,
    "adaptive_max_pool1d": F.adaptive_max_pool1d,
    "adaptive_max_pool2d": F.adaptive_max_pool2d,
}

LINEAR_OPS: dict[str, Callable[..., Tensor]] = {
    "avg_pool1d": F.avg_pool1d,
    "avg_pool2d": F.avg_pool2d,
    "adaptive_avg_pool1d": F.adaptive_avg_pool1d,
    "adaptive_avg_pool2d": F.adaptive_avg_pool2d,
    "add": torch.add,
    "concatenate": lambda *values, dim: torch.cat(values, dim=dim),
    "flatten": torch.flatten,
    "mean": _mean,
    "reshape": lambda value, shape: value.reshape(len(value), *shape),
}


def freed_after(nodes: Sequence[GraphNode]) -> dict[str, tuple[str, ...]]:
    """Tell which values no later one of ``nodes`` reads once each of them has been computed."""
    last_reader = {name: node.name for node in nodes for name in node.inputs}
    return {node.name: tuple(n for n, reader in last_reader.items() if reader == node.name) for node in nodes}


@dataclass(frozen=True)
class SpikingGraph:
    """Nodes in topological order; the last one is the output, ``input`` names the image.

    The graph holds structure alone. Parameters travel beside it, so that one graph, traced once, serves the
    server's network and every client's.
    """

    nodes: tuple[GraphNode, ...]
    input: str = "input"

    @property
    def output(self) -> str:
        """Name of the value that the network returns."""
        return self.nodes[-1].name

    @cached_property
    def affines(self) -> tuple[Affine, ...]:
        """Affine layers, in order."""
        return tuple(node for node in self.nodes if isinstance(node, Affine))

    @cached_property
    def spikes(self) -> tuple[Spike, ...]:
        """Spiking layers, in order."""
        return tuple(node for node in self.nodes if isinstance(node, Spike))

    @cached_property
    def by_name(self) -> dict[str, GraphNode]:
        """Nodes by name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def consumers(self) -> dict[str, tuple[Node, ...]]:
        """Nodes that read each value."""
        found: dict[str, list[Node]] = {name: [] for name in (self.input, *self.by_name)}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                found[name].append(node)
        return {name: tuple(readers) for name, readers in found.items()}

    @cached_property
    def freed_after(self) -> dict[str, tuple[str, ...]]:
        """Values that nothing reads after a node has been computed."""
        return freed_after(self.nodes)

    def readout_from(self, known: Container[str]) -> tuple[GraphNode, ...]:
        """Nodes that have to be computed for the output where some values are known, in order."""
        wanted, found = {self.output}, list[GraphNode]()
        for node in reversed(self.nodes):
            if node.name in wanted and node.name not in known:
                wanted.update(node.inputs)
                found.append(node)
        return tuple(reversed(found))

    @cached_property
    def varying(self) -> frozenset[str]:
        """Values that vary in time: spike trains and what is computed from them. The image is constant."""
        found: set[str] = set()
        for node in self.nodes:
            if isinstance(node, Spike) or found.intersection(node.inputs):
                found.add(node.name)
        return frozenset(found)

    @cached_property
    def tail(self) -> frozenset[str]:
        """Values from which no spiking layer follows: linear in the spikes, so computed once on their mean."""
        found: set[str] = set()
        for node in reversed(self.nodes):
            later = self.consumers[node.name]
            if not isinstance(node, Spike) and all(user.name in found for user in later):
                found.add(node.name)
        return frozenset(found)

    @cached_property
    def body(self) -> tuple[GraphNode, ...]:
        """Nodes that have to be computed at every time step: those that vary and have spikes behind them."""
        return tuple(node for node in self.nodes if node.name in self.varying and node.name not in self.tail)

    @cached_property
    def readout_inputs(self) -> tuple[str, ...]:
        """Values in front of the tail, whose mean over time the tail is computed from."""
        if self.output not in self.tail:
            return (self.output,)
        feeds = dict.fromkeys(name for node in self.nodes if node.name in self.tail for name in node.inputs)
        return tuple(name for name in feeds if name not in self.tail)

    @cached_property
    def trains_behind(self) -> dict[str, frozenset[str]]:
        """Spiking layers whose trains each value is computed from, together with the image."""
        found: dict[str, frozenset[str]] = {self.input: frozenset()}
        for node in self.nodes:
            behind = frozenset().union(*(found[name] for name in node.inputs))
            found[node.name] = frozenset({node.name}) if isinstance(node, Spike) else behind
        return found

    def channels(self, name: str, parameters: Parameters) -> int:
        """Count the channels of a value from the weights of the layers behind it.

        Raises:
            ValueError: If a flatten or a reshape lies in between, behind which channels depend on the image's size.
        """
        node = self.by_name.get(name)
        if isinstance(node, Affine):
            return len(parameters[f"{node.name}.weight"])
        if node is None or (isinstance(node, LinearMap) and node.op in ("flatten", "reshape")):
            raise ValueError(f"the channels of {name} depend on the size of the image; use one threshold per layer")
        if isinstance(node, LinearMap) and node.op == "concatenate":
            return sum(self.channels(source, parameters) for source in node.inputs)
        # Of an addition one term suffices; the image's channels are not among the weights.
        return self.channels(max(node.inputs, key=lambda source: source != self.input), parameters)

    def calibration_site(self, name: str) -> Affine | None:
        """Return the affine layer whose bias shifts the value ``name`` by a constant per channel, and nothing else.

        The walk back goes through additions and maxima alone: a bias shift passes them unchanged, and of an addition
        one term suffices. A layer whose value is also read elsewhere doesn't qualify.
        """
        node = self.by_name.get(name)
        if node is None or sum(reader.inputs.count(name) for reader in self.consumers[name]) > 1:
            return None
        if isinstance(node, Affine):
            return node
        if isinstance(node, MaxPool) or (isinstance(node, LinearMap) and node.op == "add"):
            return next((site for term in node.inputs if (site := self.calibration_site(term)) is not None), None)
        return None
