"""Spikes, synaptic operations and energy of a spiking network, beside those of its ANN.

**Accumulations (AC).** Each spike costs one accumulation per synapse that it passes: per output of the next
affine layer that it reaches. Averaging in between belongs to the synapses, whose weights absorb it: a spike costs one
accumulation per path through the windows that hold it. A spike that reaches a neuron without an affine layer, over a
shortcut or a pooling layer that spikes, costs one per path, too, and one that a max pooling counts costs one. Borders
are counted exactly: a spike has fewer synapses there. Biases, membrane updates and comparisons are not counted, as
usual (Merolla et al. 2014, "synaptic operations").

**Multiply-accumulates (MAC).** Layers that read the analog image cost ``outputs * inputs per output``, a transposed
convolution ``inputs * outputs per input``, once per image and not per time step: the image is constant in time, so its
current is computed once, as ``simulate`` does. Layers that read real values which vary in time, behind another affine
layer without neurons in between, cost it at every step. Inputs that are padding count, as in every published number of
MACs.

**Energy.** 4.6 pJ per MAC and 0.9 pJ per AC: 32-bit floating point in 45 nm (Horowitz 2014, ISSCC, figure 1.1.9). With
memory: each operation reads its weight, each output its bias whenever it is computed, and each neuron reads and writes
its potential at every step, and a max pooling its sums: those of spikes with each spike, others at every step; at 3.12
pJ per bit, nothing being cached. These are the model and the constants of
spikingjelly 2.0's ``SimpleEnergyProfiler``. The ANN's activations and the spikes' routing are outside of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Final, Literal

import torch
from torch import Tensor

from snnfl.spiking.graph import Affine, LinearMap, MaxPool, Spike, SpikingGraph
from snnfl.spiking.linear_maps import LINEAR_OPS
from snnfl.spiking.network import SpikingNetwork
from snnfl.spiking.node_operations import AFFINE_OPS
from snnfl.spiking.values import analog_value

MAC_PICOJOULES = 4.6
AC_PICOJOULES = 0.9
WORD_PICOJOULES = 3.12 * 32

IMAGES_AT_ONCE = 16
"""Images whose spikes are held at once: a large network has millions of neurons."""

IMAGE: Final = "image"
SPIKES: Final = "spikes"
ANALOG: Final = "analog"
"""What a value is made of: the constant image, spikes, or real values that vary in time."""


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Energy of one image in picojoules: of arithmetic, and of reading and writing memory."""

    compute: float
    memory: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.compute + self.memory


@dataclass(frozen=True, kw_only=True)
class LayerCount:
    """What one layer does for one image in all time steps, on average over the images.

    Attributes:
        layer: Name of the layer.
        neurons: Its neurons; 0 for an affine layer.
        spikes: Spikes that they emit.
        rate: Spikes per neuron and time step.
        acs: Accumulations.
        macs: Multiply-accumulates.
        words: 32-bit words that it reads from memory or writes.
        ann_macs: Multiply-accumulates of the same layer in the ANN.
        ann_words: 32-bit words that it reads there.
    """

    layer: str
    neurons: int = 0
    spikes: float = 0.0
    rate: float = 0.0
    acs: float = 0.0
    macs: int = 0
    words: float = 0.0
    ann_macs: int = 0
    ann_words: int = 0


@dataclass(frozen=True, kw_only=True)
class SpikeCount:
    """Counts of every layer, in order, for one image in ``steps`` time steps."""

    steps: int
    layers: tuple[LayerCount, ...]

    @cached_property
    def total(self) -> LayerCount:
        """Sums over the layers; the rate is that of all neurons."""
        rows = self.rows()
        sums = {key: sum(row[key] for row in rows) for key in rows[0] if key != "layer"}
        return LayerCount(**{**sums, "layer": "total", "rate": sums["spikes"] / (sums["neurons"] * self.steps)})

    @property
    def energy(self) -> Energy:
        """Energy of the spiking network."""
        total = self.total
        compute = MAC_PICOJOULES * total.macs + AC_PICOJOULES * total.acs
        return Energy(compute=compute, memory=WORD_PICOJOULES * total.words)

    @property
    def ann_energy(self) -> Energy:
        """Energy of the ANN."""
        total = self.total
        return Energy(compute=MAC_PICOJOULES * total.ann_macs, memory=WORD_PICOJOULES * total.ann_words)

    def rows(self) -> list[dict[str, Any]]:
        """Return a dictionary per layer, for a table."""
        return [asdict(layer) for layer in self.layers]


def count_spikes(network: SpikingNetwork, images: Tensor, *, steps: int) -> SpikeCount:
    """Simulate a network and count what each of its layers does.

    Args:
        network: The spiking network; its simulation isn't changed.
        images: Shape ``[N, ...]``, at least one.
        steps: Simulation length T.

    Returns:
        Counts of every affine and spiking layer, per image; ``steps`` with those of a rehearsal.

    Raises:
        ValueError: If there is no image.
    """
    if len(images) == 0:
        raise ValueError("no images: give at least one")
    values = {network.graph.input: images[:1]}
    for node in network.graph.nodes:
        values[node.name] = analog_value(node, values, network.parameters)
    shapes = {name: value.shape for name, value in values.items()}
    spikes = {name: count / len(images) for name, count in _spikes(network, images, steps, shapes).items()}
    if rehearsal := network.rehearsal(steps):
        before = _spikes(replace(network, correction="none", correction_steps=None), images, rehearsal, shapes)
        spikes = {name: count + before[name] / len(images) for name, count in spikes.items()}
    total = steps + rehearsal
    return SpikeCount(steps=total, layers=tuple(count_layers(network.graph, network.parameters, spikes, shapes, total)))


def _spikes(network: SpikingNetwork, images: Tensor, steps: int, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Count the spikes of each neuron over all images and steps.

    A readout of all spikes is put behind the network: its output is their mean over time. So this is the simulation of
    :meth:`SpikingNetwork.simulate`, which has nothing to do for those who don't count.
    """
    levels = _levels(network, shapes)
    emitters = [node.name for node in network.graph.nodes if isinstance(node, Spike | MaxPool) and node.name in levels]
    sizes = [shapes[name].numel() for name in emitters]
    flat = [
        LinearMap(name=f"{name}, flat", inputs=(name,), op="flatten", arguments={"start_dim": 1}) for name in emitters
    ]
    names = tuple(node.name for node in flat)
    readout = LinearMap(name="all spikes", inputs=names, op="concatenate", arguments={"dim": 1})
    probe = replace(network, graph=replace(network.graph, nodes=(*network.graph.nodes, *flat, readout)), readout="all")
    amplitudes = [
        levels[name].repeat_interleave(size // len(levels[name])) for name, size in zip(emitters, sizes, strict=True)
    ]
    worth = torch.cat(amplitudes).double()
    count = _by_step if network.counts else _by_mean
    counts = torch.stack([count(probe, part, steps, worth) for part in torch.split(images, IMAGES_AT_ONCE)]).sum(0)
    per_layer = torch.split(counts.cpu(), sizes)
    return {name: count.view(shapes[name]) for name, count in zip(emitters, per_layer, strict=True)}


def _by_mean(probe: SpikingNetwork, images: Tensor, steps: int, worth: Tensor) -> Tensor:
    """Count the spikes of neurons that take none back, from their mean over time."""
    return (probe.simulate(images, steps=steps)[steps] * steps / worth).round().sum(0)


def _by_step(probe: SpikingNetwork, images: Tensor, steps: int, worth: Tensor) -> Tensor:
    """Count spikes step by step, where what is taken back would cancel what was fired."""
    state, total = probe.start(images, steps=steps), torch.zeros_like(worth)
    for _ in range(steps):
        state, step = probe.step(state, images)
        total += (step.output / worth).round().abs().sum(0)
    return total


def _levels(network: SpikingNetwork, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Tell what a spike is worth, channel by channel, of every value that is a train of spikes."""
    levels: dict[str, Tensor] = {}
    for node in network.graph.nodes:
        if isinstance(node, Spike):
            levels[node.name] = network.thresholds[node.name].expand(shapes[node.name][1])
        elif all(name in levels for name in node.inputs):
            if isinstance(node, MaxPool):
                levels[node.name] = levels[node.inputs[0]]
            elif isinstance(node, LinearMap) and node.op == "concatenate" and node.arguments["dim"] == 1:
                levels[node.name] = torch.cat([levels[name] for name in node.inputs])
    return levels


def count_layers(
    graph: SpikingGraph,
    parameters: Mapping[str, Tensor],
    spikes: Mapping[str, Tensor],
    shapes: Mapping[str, torch.Size],
    steps: int,
    inputs: Literal["image", "spikes", "analog"] = IMAGE,
) -> Iterator[LayerCount]:
    """Follow the spikes from neuron to synapse, in one walk for all time steps: every count is linear in the spikes.

    Args:
        graph: Structure of the network.
        parameters: Its weights, whose shapes count.
        spikes: Of one image in all steps, by layer of neurons or max pooling, ``[1, C, *space]``; of input that is
            spikes by its name, too. Neurons that aren't named don't fire: they are ReLUs.
        shapes: Of every value of one image.
        steps: Simulation length T.
        inputs: What the input is made of: a constant image, spikes, or real values that vary in time.
    """
    nothing = torch.zeros((), dtype=torch.float64)
    events = {graph.input: spikes.get(graph.input, nothing.expand(shapes[graph.input]))}
    kinds: dict[str, frozenset[str]] = {graph.input: frozenset({inputs})}
    for node in graph.nodes:
        read = [events[name] for name in node.inputs]
        kind = frozenset[str]().union(*(kinds[name] for name in node.inputs))
        events[node.name] = nothing.expand(shapes[node.name])
        kinds[node.name] = kind if kind == {IMAGE} else frozenset({ANALOG})
        if isinstance(node, LinearMap):
            operation = LINEAR_OPS[node.op]
            events[node.name] = (operation.paths or operation.apply)(*read, **node.arguments)
            kinds[node.name] = kind
        elif isinstance(node, Affine):
            weight = parameters[f"{node.name}.weight"]
            yield _affine(node, weight, read[0], kind, shapes[node.name], steps)
        elif isinstance(node, Spike) and node.name not in spikes:
            yield LayerCount(layer=node.name)
        elif isinstance(node, Spike):
            events[node.name], kinds[node.name] = spikes[node.name], frozenset({SPIKES})
            yield _neurons(node.name, spikes[node.name], float(read[0].sum()), steps)
        elif node.name in spikes:
            events[node.name], kinds[node.name] = spikes[node.name], frozenset({SPIKES})
            yield LayerCount(layer=node.name, acs=float(read[0].sum()), words=2 * float(read[0].sum()))
        else:
            sums = read[0].numel() + events[node.name].numel()
            yield LayerCount(layer=node.name, words=2 * sums * steps if ANALOG in kinds[node.name] else 0)


def _affine(
    node: Affine, weight: Tensor, events: Tensor, kind: frozenset[str], shape: torch.Size, steps: int
) -> LayerCount:
    dense, outputs = AFFINE_OPS[node.op].dense(weight, events.shape, shape), shape.numel()
    macs = dense * steps if ANALOG in kind else dense * (IMAGE in kind)
    acs = 0.0 if ANALOG in kind else _synapses(node, weight, events)
    words = acs + macs + outputs * (1 if kind == {IMAGE} else steps)
    return LayerCount(layer=node.name, acs=acs, macs=macs, words=words, ann_macs=dense, ann_words=dense + outputs)


def _neurons(name: str, spikes: Tensor, acs: float, steps: int) -> LayerCount:
    neurons, total = spikes.numel(), float(spikes.sum())
    return LayerCount(
        layer=name,
        neurons=neurons,
        spikes=total,
        rate=total / (neurons * steps),
        acs=acs,
        words=acs + 2 * neurons * steps,
    )


def _synapses(node: Affine, weight: Tensor, events: Tensor) -> float:
    """Count the outputs that events reach: the layer with weights of one; its outputs, group by group, are alike."""
    if node.op == "scale":
        return float(events.sum())
    groups: int = node.arguments.get("groups", 1)
    ones = torch.ones(groups, *weight.shape[1:], dtype=torch.float64)
    reached = AFFINE_OPS[node.op].apply(events, ones, torch.zeros(groups, dtype=torch.float64), **node.arguments)
    return float(reached.sum()) * (len(weight) // groups)
