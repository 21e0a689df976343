"""What the converted part of a network feeds into its next layer, replayed from recorded spike trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from snnfl.conversion.sharing import SharedValues
from snnfl.conversion.trains import Train
from snnfl.neurons.events import EventLayer
from snnfl.spiking.events import event_layers
from snnfl.spiking.graph import MaxPool, Spike, SpikingGraph
from snnfl.spiking.in_time import linear_value, over_time
from snnfl.spiking.maximum import Accumulated, gated_maximum


@dataclass
class Replay:
    """The recorded trains, and the values of the layers behind them at any time step.

    Attributes:
        graph: Structure of the network.
        parameters: Folded weights, calibrated biases and thresholds so far; the conversion goes on to change them.
        constants: The image and every value in front of the first spikes.
        shared: Values that several spiking layers are computed from.
        trains: Spike trains by layer, of those that a later layer reads.
    """

    graph: SpikingGraph
    parameters: dict[str, Tensor]
    constants: dict[str, Tensor]
    shared: SharedValues
    trains: dict[str, Train] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._layers: Mapping[str, EventLayer] = event_layers(self.graph, self.parameters)
        self._maxima: dict[str, Accumulated] = {}

    def current(self, source: str, images: slice, start: int, stop: int) -> Tensor:
        """Compute the value ``source`` at the steps ``start..stop``, within a byte of the trains.

        Max poolings remember the steps before: of a network that has any, chunks of the same images must follow one
        another from step 0 on.

        Returns:
            Shape ``[stop - start, n, C, *space]``; a constant value is expanded, not repeated.
        """
        values = {name: value[images] for name, value in self.constants.items()}
        return over_time(self._value(source, images, start, stop, values), source in self.constants, stop - start)

    def share(self, name: str, chunks: Iterable[tuple[slice, int, int]]) -> None:
        """Compute a value for all time steps and keep it; chunks are images, first step and step after the last."""
        target = None
        for images, start, stop in chunks:
            value = self.current(name, images, start, stop)
            target = self.shared.target(name, value[0]) if target is None else target
            target[start:stop, images] = value
        if target is not None:
            self.shared.keep(name, target)

    def keep(self, layer: str, train: Train) -> None:
        """Keep a new train, and of the old trains and values those that are still read."""
        self.shared.forget(layer)
        self._maxima.clear()
        read = read_after(self.graph, layer)
        self.trains = {name: kept for name, kept in {**self.trains, layer: train}.items() if name in read}

    def _value(self, name: str, images: slice, start: int, stop: int, values: dict[str, Tensor]) -> Tensor:
        if name not in values:
            node, kept = self.graph.by_name[name], self.shared.get(name, images, start, stop)
            if kept is not None:
                values[name] = kept
            elif isinstance(node, Spike):
                values[name] = self.trains[name].replay(images, start, stop).flatten(0, 1)
            elif isinstance(node, MaxPool):
                read = over_time(self._value(node.inputs[0], images, start, stop, values), False, stop - start)
                passed, self._maxima[name] = gated_maximum(node, read, self._maxima[name] if start else None)
                values[name] = passed.flatten(0, 1)
            else:
                for source in node.inputs:
                    self._value(source, images, start, stop, values)
                values[name] = linear_value(node, values, self.constants, self.parameters, stop - start, self._layers)
        return values[name]


def read_after(graph: SpikingGraph, layer: str) -> frozenset[str]:
    """Name the spiking layers whose trains a spiking layer after ``layer`` reads."""
    names = [node.name for node in graph.spikes]
    later = graph.spikes[names.index(layer) + 1 :]
    return frozenset().union(*(graph.trains_behind[node.inputs[0]] for node in later))


class CurrentStore:
    """Currents kept between two runs of a layer, in memory that all layers use in turn; what doesn't fit is refused.

    Memory that is mapped anew for each layer would cost more than the convolutions of a narrow network.
    """

    def __init__(self, nbytes: int, like: Tensor) -> None:
        self._memory = torch.empty(nbytes // like.element_size(), dtype=like.dtype, device=like.device)
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._kept: dict[tuple[int, int], Tensor] = {}
        self._used = 0

    def get(self, key: tuple[int, int]) -> Tensor | None:
        """Return what was put under a key, if it fitted."""
        return self._kept.get(key)

    def fits(self, count: int) -> bool:
        """Tell whether there is room for as many numbers."""
        return self._used + count <= len(self._memory)

    def put(self, key: tuple[int, int], current: Tensor) -> None:
        """Copy a current, if there is room."""
        if self.fits(current.numel()):
            dense = torch.empty_like(current, device="meta")  # one image's may be a part of what is kept of several
            kept = self._memory.as_strided(dense.shape, dense.stride(), self._used)
            self._kept[key] = kept.copy_(current)
            self._used += current.numel()
