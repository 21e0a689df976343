"""The spiking graph: what is left of a network when ReLU becomes an integrate-and-fire layer.

Four kinds of node are enough. An :class:`Affine` layer (convolution or linear, with the batch normalisation
that was folded into it, or one that stands alone) and a parameter-free :class:`LinearMap` (pooling, addition,
up-sampling, reshaping) are linear in their input, so they may act on every time step apart or on a mean over time. A
:class:`Spike` layer and a :class:`MaxPool` are not.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import torch.nn.functional as F
from torch import Tensor

from snnfl.quantisation import clip_floor_shift
from snnfl.spiking.linear_maps import LINEAR_OPS
from snnfl.spiking.node_operations import AFFINE_OPS, MAX_OPS, Form, swap_channels

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
        return AFFINE_OPS[self.op].apply(*values, weight, bias, **self.arguments)

    def outputs_first(self, weight: Tensor) -> Tensor:
        """Turn a weight of the ANN into one of the spiking network, whose first dimension is that of the outputs.

        They are the same but for a transposed convolution, which PyTorch gives ``[in, out / groups, *kernel]``.
        """
        if not AFFINE_OPS[self.op].transposed:
            return weight
        return swap_channels(weight, self.arguments["groups"]).contiguous()

    def as_in_ann(self, weight: Tensor) -> Tensor:
        """Turn a weight of the spiking network into one of the ANN: the inverse of :meth:`outputs_first`."""
        return self.outputs_first(weight)


@dataclass(frozen=True, kw_only=True)
class LinearMap(Node):
    """A linear map without parameters, or such a one and a constant: ``op`` is a key of :data:`LINEAR_OPS`."""

    op: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def apply(self, values: Sequence[Tensor], parameters: Parameters) -> Tensor:
        """Map batches to a batch."""
        return LINEAR_OPS[self.op].apply(*values, **self.arguments)


@dataclass(frozen=True, kw_only=True)
class Spike(Node):
    """A layer of integrate-and-fire neurons, where the ANN has a ReLU. Its threshold is ``<name>.threshold``.

    Attributes:
        ceiling: Of a clipped ReLU, such as 6 of ReLU6: no activation exceeds it, so neither does a threshold found
            from activations, and a rate code is clipped at its threshold.
        levels: Of an activation that is quantised in training, whose threshold is learned; ``None`` is a ReLU.
    """

    ceiling: float | None = None
    levels: int | None = None

    def analog(self, value: Tensor, parameters: Parameters) -> Tensor:
        """Compute the ReLU, or the quantised activation, that the neurons stand for."""
        if self.levels is not None:
            return clip_floor_shift(value, self.levels, parameters[f"{self.name}.threshold"])
        return F.relu(value) if self.ceiling is None else value.clamp(0, self.ceiling)


@dataclass(frozen=True, kw_only=True)
class MaxPool(Node):
    """A maximum over windows: ``op`` is a key of :data:`MAX_OPS`.

    In time it is :func:`~snnfl.spiking.maximum.gated_maximum`, whose mean over time is the maximum of the means; that
    has a memory, so it is never part of the tail. Where nothing but a maximum reads a spiking layer, it stands in front
    of that layer and there are fewer neurons: ``max(relu(x)) = relu(max(x))``.
    """

    op: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def apply(self, values: Sequence[Tensor], parameters: Parameters) -> Tensor:
        """Map a batch to a batch."""
        return MAX_OPS[self.op].apply(*values, **self.arguments)


GraphNode: TypeAlias = Affine | LinearMap | MaxPool | Spike


def freed_after(nodes: Sequence[GraphNode]) -> dict[str, tuple[str, ...]]:
    """Tell which values no later one of ``nodes`` reads once each of them has been computed."""
    last_reader = {name: node.name for node in nodes for name in node.inputs}
    return {node.name: tuple(n for n, reader in last_reader.items() if reader == node.name) for node in nodes}


@dataclass(frozen=True)
class SpikingGraph:
    """Nodes in topological order; the last one is the output, ``input`` names the image.

    The graph holds structure alone. Parameters travel beside it, so that one graph, traced once, serves the
    server's network and every client's.

    Attributes:
        nodes: The nodes.
        input: Name of the image.
        image_shape: Shape of the only images that the nodes are right for, where the model's forward reads it; else
            ``None``.
    """

    nodes: tuple[GraphNode, ...]
    input: str = "input"
    image_shape: tuple[int, ...] | None = None

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
    def learned_thresholds(self) -> tuple[str, ...]:
        """Names of the thresholds that the ANN has learned, which a conversion takes as they are."""
        return tuple(f"{node.name}.threshold" for node in self.spikes if node.levels is not None)

    @cached_property
    def maxima(self) -> tuple[MaxPool, ...]:
        """Maxima, in order."""
        return tuple(node for node in self.nodes if isinstance(node, MaxPool))

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
        """Values from which no neurons and no maximum follow: linear in the spikes, so computed once on their mean."""
        found: set[str] = set()
        for node in reversed(self.nodes):
            later = self.consumers[node.name]
            if not isinstance(node, Spike | MaxPool) and all(user.name in found for user in later):
                found.add(node.name)
        return frozenset(found)

    @cached_property
    def body(self) -> tuple[GraphNode, ...]:
        """Nodes that have to be computed at every time step: those that vary and aren't in the tail."""
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

    def forms(self, outputs: Mapping[str, int]) -> dict[str, Form]:
        """Tell the channels and dimensions of every value, as far as they don't depend on the image.

        Args:
            outputs: Output channels of every affine layer.

        Raises:
            ValueError: Naming a node whose values don't fit each other.
        """
        found = {self.input: Form()}
        for node in self.nodes:
            try:
                found[node.name] = form_of(node, [found[name] for name in node.inputs], outputs.get(node.name))
            except ValueError as error:
                raise ValueError(f"node {node.name!r} {error}") from None
        return found

    @cached_property
    def has_late_maxima(self) -> bool:
        """Whether the output is computed from the last spikes through a maximum."""
        known = {*self.trains_behind[self.output], *(name for name in self.by_name if name not in self.varying)}
        return any(isinstance(node, MaxPool) for node in self.readout_from(known))

    def channels(self, name: str, parameters: Parameters) -> int:
        """Count the channels of a value from the weights of the layers behind it, their output channels first.

        Raises:
            ValueError: If they depend on the image's size, as behind a flatten.
        """
        outputs = {node.name: len(parameters[f"{node.name}.weight"]) for node in self.affines}
        count = self.forms(outputs)[name].channels
        if count is None:
            raise ValueError(f"the channels of {name} depend on the size of the image; use one threshold per layer")
        return count

    def calibration_site(self, name: str, channels: Mapping[str, int]) -> Affine | None:
        """Return the affine layer whose bias shifts the value ``name`` by a constant per channel, and nothing else.

        The walk back goes through additions and maxima alone: a bias shift passes them unchanged, and of an addition
        one term suffices, if it has the sum's channels: a term of one channel that broadcasts cannot tell them apart.
        A layer whose value is also read elsewhere doesn't qualify.

        Args:
            name: The value.
            channels: Channels of every value, such as :func:`~snnfl.spiking.values.channel_counts` returns.
        """
        node = self.by_name.get(name)
        if node is None or sum(reader.inputs.count(name) for reader in self.consumers[name]) > 1:
            return None
        if isinstance(node, Affine):
            return node
        terms = _shifted_with(node)
        sites = (self.calibration_site(term, channels) for term in terms if channels[term] == channels[name])
        return next((site for site in sites if site is not None), None)


def form_of(node: GraphNode, read: Sequence[Form], outputs: int | None) -> Form:
    """Return the form of a node's value from those of its inputs, and a layer's output channels.

    Raises:
        ValueError: If the inputs don't fit each other.
    """
    if isinstance(node, Spike):
        return read[0]
    if isinstance(node, Affine):
        return Form(outputs, AFFINE_OPS[node.op].rank or read[0].rank)
    return (LINEAR_OPS if isinstance(node, LinearMap) else MAX_OPS)[node.op].form(read, node.arguments)


def _shifted_with(node: Node) -> tuple[str, ...]:
    """Name the inputs of a node whose shift by a constant per channel shifts its value alike."""
    if isinstance(node, MaxPool) or (isinstance(node, LinearMap) and node.op == "shift"):
        return node.inputs
    if isinstance(node, LinearMap) and node.op == "add":
        return node.inputs if node.arguments.get("alpha", 1) == 1 else node.inputs[:1]
    return ()
