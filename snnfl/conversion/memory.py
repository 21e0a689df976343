"""The memory of a conversion: what it will hold at each layer, worked out before the first is converted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from snnfl.config import ConversionConfig
from snnfl.conversion.replay import read_after
from snnfl.conversion.sharing import Sharing, share
from snnfl.conversion.thresholds import search_bytes
from snnfl.conversion.trains import STEPS
from snnfl.spiking.graph import GraphNode, MaxPool, Spike, SpikingGraph, freed_after
from snnfl.spiking.network import CHUNK_BYTES


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """How the memory is divided.

    Attributes:
        chunks: Images and time steps that are computed at once in front of each spiking layer.
        sharing: Values that several spiking layers are computed from.
        shared_images: How many images they are kept for; of the others they are computed again.
        stored: Bytes left for currents between two runs of a layer; what doesn't fit is computed again.
    """

    chunks: Mapping[str, tuple[int, int]]
    sharing: Sharing
    shared_images: int
    stored: int


def plan_memory(
    graph: SpikingGraph, sizes: Mapping[str, int], *, images: int, itemsize: int, config: ConversionConfig
) -> MemoryPlan:
    """Divide ``config.max_bytes`` among activations, spike trains, chunks and stored currents.

    The model isn't counted, nor the columns that PyTorch makes of a single small image in front of a convolution:
    20,480 numbers times the size of the kernel at most, 0.7 MB for one of 3x3.

    Args:
        graph: Structure of the network.
        sizes: Bytes of each value of one image, from :func:`~snnfl.spiking.values.value_bytes`.
        images: Number of calibration images.
        itemsize: Bytes of an activation.
        config: Steps, calibration and ceiling.

    Returns:
        The plan: what the rest leaves goes to shared values first, then to stored currents.

    Raises:
        ValueError: If the ceiling is too low, saying how much is needed.
    """
    account = _Account(graph, sizes, images, itemsize, config)
    chunks, needed, most, peak = dict[str, tuple[int, int]](), dict[str, int](), 0, 0
    for held, node in account.held():
        most = max(most, held)
        if isinstance(node, Spike):
            chunks[node.name], converting = account.chunk(node, held)
            needed[node.name], most = max(most, converting), 0
        peak = max(peak, most, *needed.values())
    if config.calibration in ("bias", "bias_potential"):
        peak = max(peak, account.readout())
    if peak > config.max_bytes:
        raise ValueError(
            f"max_bytes={config.max_bytes}: the conversion of {images} images in {config.calibration_length} time "
            f"steps needs at least {peak} bytes; raise it, or give fewer images or steps"
        )
    sharing = share(graph)
    count, shared = account.shared(sharing, needed)
    stored = 0
    if config.calibration in ("bias", "potential", "bias_potential"):  # which run a layer more than once
        widest = max(sizes[node.inputs[0]] for node in graph.spikes)
        stored = min(config.max_bytes - max(peak, shared), widest * images * config.calibration_length)
    return MemoryPlan(chunks=chunks, sharing=sharing, shared_images=count, stored=stored)


@dataclass(frozen=True)
class _Account:
    """The bytes of everything that a conversion holds, layer by layer, as :mod:`snnfl.conversion.convert` goes."""

    graph: SpikingGraph
    sizes: Mapping[str, int]
    images: int
    itemsize: int
    config: ConversionConfig

    def held(self) -> Iterator[tuple[int, GraphNode]]:
        """Yield each node with the bytes of activations, constants, trains and means while it is converted."""
        graph, sizes, constant = self.graph, self.sizes, self._constants()
        alive, trains, means = set[str](), frozenset[str](), 0
        for node in graph.nodes:
            alive.add(node.name)
            if isinstance(node, Spike) and node.name in graph.trains_behind[graph.output]:
                means += self._spans * sizes[node.name]
            floats = constant + means + sum(sizes[name] for name in alive)
            yield self.images * floats + sum(self._train(name) for name in trains), node
            alive.difference_update(graph.freed_after[node.name])
            if isinstance(node, Spike):
                trains = (trains | {node.name}) & read_after(graph, node.name)

    def readout(self) -> int:
        """Return the bytes of everything while the readout is calibrated: what it reads, and its values."""
        graph, sizes = self.graph, self.sizes
        means = graph.trains_behind[graph.output]
        nodes = graph.readout_from({*means, *(name for name in graph.by_name if name not in graph.varying)})
        freed, alive, most = freed_after(nodes), set[str](), 0
        for node in nodes:
            alive.add(node.name)
            most = max(most, sum(sizes[name] for name in alive))
            alive.difference_update(freed[node.name])
        kept = self._spans * sum(sizes[name] for name in means)
        return self.images * (self._constants() + kept + sizes[graph.output] + most)

    def chunk(self, layer: Spike, held: int) -> tuple[tuple[int, int], int]:
        """Choose a layer's images and time steps per chunk; return the bytes of its conversion with them too."""
        size = self.images * self.sizes[layer.name]
        search = held + search_bytes(size, self.itemsize, self.config)
        held += self._train(layer.name)
        unit, widest = self._values(layer.inputs[0])
        if self.config.calibration == "time_bias":  # all images at each step, their potentials before and after
            chunk, held = (self.images, 1), held + 3 * size
        else:
            room = max(1, (self.config.max_bytes - held) // unit)
            count = max(1, min(self.images, CHUNK_BYTES // (STEPS * widest), room // STEPS))
            chunk = (count, next(length for length in (STEPS, 4, 2, 1) if length * count <= room))
        return chunk, max(search, held + math.prod(chunk) * unit)

    def shared(self, sharing: Sharing, needed: Mapping[str, int]) -> tuple[int, int]:
        """Count the images that shared values fit for beside what else each layer needs.

        Returns:
            The images, and the bytes of everything at the worst layer.
        """
        sizes = {layer: size * self.config.calibration_length for layer, size in sharing.peaks(self.sizes).items()}
        fitting = [(self.config.max_bytes - needed[layer]) // size for layer, size in sizes.items() if size]
        count = min([self.images, *fitting]) if fitting else 0
        if self.config.calibration == "time_bias" and count < self.images:  # takes all images at once
            count = 0
        return count, max(needed[layer] + count * size for layer, size in sizes.items())

    @property
    def _spans(self) -> int:
        """Means over time that are kept of each train that the readout reads."""
        return 2 if self.graph.has_late_maxima and self.config.readout == "second_half" else 1

    def _constants(self) -> int:
        """Return the bytes of an image and of its values in front of the first spikes."""
        graph = self.graph
        return self.sizes[graph.input] + sum(self.sizes[n.name] for n in graph.nodes if n.name not in graph.varying)

    def _train(self, layer: str) -> int:
        length = self.config.calibration_length
        rows = length if self.config.counts else -(-length // STEPS)
        return self.images * self.sizes[layer] // self.itemsize * rows

    def _values(self, source: str) -> tuple[int, int]:
        """Return the bytes of all values from the trains to ``source``, and of the widest, per image and time step."""
        found, waiting = set[str](), [source]
        while waiting:
            name = waiting.pop()
            node = self.graph.by_name.get(name)
            if name not in found and node is not None and not isinstance(node, Spike) and name in self.graph.varying:
                waiting += node.inputs
            found.add(name)
        # A current is copied with what is added to it, made dense, and gives bytes and the potential; neurons that
        # count hold the counts, too.
        sizes = [self.sizes[name] for name in found]
        maxima = sum(self._remembered(pool) for pool in self.graph.maxima if pool.name in found)
        return sum(sizes) + (4 + 2 * self.config.counts) * self.sizes[source] + maxima, max(sizes)

    def _remembered(self, pool: MaxPool) -> int:
        """Return the bytes of a maximum's double-precision sums, and of a copy of what it reads, per image and step."""
        return 8 // self.itemsize * 2 * (self.sizes[pool.inputs[0]] + self.sizes[pool.name])
