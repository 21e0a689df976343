"""Values that several spiking layers are computed from: computed once and kept, not once for each of them.

Between two spiking layers values are computed from the trains in front. What one layer alone reads, as in a plain
network or a residual one whose ReLU comes last, is never needed again. In DenseNet, or a residual network whose ReLU
comes first, a layer reads sums or concatenations of everything before it: computed anew for each layer, the cost of a
conversion would grow with the square of the depth.

What is kept stays right, for nothing behind it changes: a bias that reaches more than one spiking layer is never
calibrated (:meth:`~snnfl.spiking.graph.SpikingGraph.calibration_site`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from snnfl.spiking.graph import Affine, Spike, SpikingGraph


@dataclass(frozen=True)
class Sharing:
    """The values to keep, and when each is computed and forgotten.

    Attributes:
        before: What is computed and kept before each spiking layer is converted, in order.
        forgotten: What nothing reads once a value is computed, or a spiking layer converted.
    """

    before: Mapping[str, tuple[str, ...]]
    forgotten: Mapping[str, tuple[str, ...]]

    def peaks(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Compute the most that is held at once while each spiking layer is prepared and converted.

        Args:
            sizes: Bytes of each value of one image at one time step.

        Returns:
            Bytes per image and time step, by layer.
        """
        peaks, held = {}, set[str]()
        for layer, names in self.before.items():
            peaks[layer] = sum(sizes[name] for name in held)
            for name in names:
                old = self.forgotten[name]
                fresh = 0 if any(sizes[other] == sizes[name] for other in old) else sizes[name]
                peaks[layer] = max(peaks[layer], sum(sizes[other] for other in held) + fresh)
                held = (held | {name}) - {*old}
            held -= {*self.forgotten[layer]}
        return peaks


def share(graph: SpikingGraph) -> Sharing:
    """Choose the values to keep.

    They are those that at least two spiking layers are computed from without neurons in between, if a convolution or a
    linear layer lies behind them and they aren't merely a term of one other value.
    """
    chosen, kept = _chosen(graph), set[str]()
    before: dict[str, tuple[str, ...]] = {}
    last_reader: dict[str, str] = {}
    for layer in graph.spikes:
        met = _walk(graph, layer.inputs, kept)
        before[layer.name] = tuple(n.name for n in graph.nodes if n.name in met and n.name in chosen - kept)
        for name in (*before[layer.name], layer.name):
            for read in _walk(graph, graph.by_name[name].inputs, kept) & kept:
                last_reader[read] = name
            kept.update({name} & chosen)
    readers = [name for layer, names in before.items() for name in (*names, layer)]
    return Sharing(before, {name: tuple(n for n, last in last_reader.items() if last == name) for name in readers})


@dataclass
class SharedValues:
    """The kept values of the first images over all time steps.

    Attributes:
        sharing: Which are kept, and how long.
        images: How many of the calibration images they are kept for; of the others they are computed again.
        steps: Time steps.
    """

    sharing: Sharing
    images: int
    steps: int
    _memory: dict[str, Tensor] = field(default_factory=dict)
    _values: dict[str, Tensor] = field(default_factory=dict)

    def get(self, name: str, images: slice, start: int, stop: int) -> Tensor | None:
        """Return a value at the steps ``start..stop``, ``[(stop - start) * n, C, *space]``, if it is kept."""
        if name not in self._values or images.stop > self.images:
            return None
        return self._values[name][start:stop, images].flatten(0, 1)

    def target(self, name: str, value: Tensor) -> Tensor:
        """Return where a value will be kept: in memory of its own, or that of one which nothing reads thereafter.

        The second is safe, for at each image and step a value is read before what is computed from it is written.

        Args:
            name: The value.
            value: Some images of it, ``[n, C, *space]``, for shape and layout.

        Returns:
            Shape ``[steps, images, C, *space]``.
        """
        layout = torch.empty_like(value[:1].expand(self.steps, self.images, *value.shape[1:]), device="meta")
        old = [self._memory[other] for other in self.sharing.forgotten[name]]
        memory = next((each for each in old if each.numel() == layout.numel()), None)
        self._memory[name] = value.new_empty(layout.numel()) if memory is None else memory
        return self._memory[name].as_strided(layout.shape, layout.stride())

    def keep(self, name: str, value: Tensor) -> None:
        """Keep a value that :meth:`target` made room for and that has been written since."""
        self._values[name] = value
        self.forget(name)

    def forget(self, reader: str) -> None:
        """Forget what nothing reads after a value was computed or a layer converted."""
        for name in self.sharing.forgotten[reader]:
            self._memory.pop(name, None)
            self._values.pop(name, None)


def _chosen(graph: SpikingGraph) -> frozenset[str]:
    # The spiking layers that are computed from each value without neurons in between.
    reach: dict[str, frozenset[str]] = {}
    for node in reversed(graph.nodes):
        after = graph.consumers[node.name]
        reach[node.name] = frozenset[str]().union(
            *({reader.name} if isinstance(reader, Spike) else reach[reader.name] for reader in after)
        )
    chosen = set[str]()
    for node in graph.body:
        readers = [each for each in graph.consumers[node.name] if isinstance(each, Spike) or reach[each.name]]
        if not isinstance(node, Spike) and len(reach[node.name]) > 1 and len(readers) > 1:
            between = (graph.by_name[name] for name in _walk(graph, [node.name], chosen) - chosen)
            if any(isinstance(each, Affine) and each.op != "scale" for each in between):
                chosen.add(node.name)
    return frozenset(chosen)


def _walk(graph: SpikingGraph, starts: Sequence[str], stops: Collection[str]) -> set[str]:
    """Collect the varying values between trains and ``starts``, these included; none behind one of ``stops``."""
    found, waiting = set[str](), [*starts]
    while waiting:
        name = waiting.pop()
        node = graph.by_name.get(name)
        if node is not None and name in graph.varying and not isinstance(node, Spike) and name not in found:
            found.add(name)
            waiting += () if name in stops else node.inputs
    return found
