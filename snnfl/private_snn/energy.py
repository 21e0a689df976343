"""Energy of a published network beside its ANN's: by the paper's model, read in two ways, and by ours.

The paper (Kim et al. 2022, Table 5, after Panda, Aketi & Roy 2020) multiplies each layer's multiply-accumulates by the
"spike rate", 0.9 pJ each, against 4.6 pJ of the ANN's. It calls the rate "the average number of spikes across time".
If that is a neuron's spikes in all ``T`` steps, the model counts operations; if it is that number divided
by ``T``, energy lacks the factor ``T``. Both are computed. Ours (:mod:`snnfl.metrics.energy`) follows each spike to
its synapses, counts borders exactly, and adds memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snnfl.metrics.energy import AC_PICOJOULES, IMAGE, MAC_PICOJOULES, SPIKES, SpikeCount, count_layers
from snnfl.private_snn.conversion import spike_counts
from snnfl.private_snn.network import PublishedNetwork


@dataclass(frozen=True, kw_only=True)
class EnergyRatios:
    """How many times the energy of the spiking network its ANN takes, and what it follows from.

    Attributes:
        spikes_per_neuron: In all steps, mean over the neurons.
        rate: The same for each step.
        paper: Of the paper's model, with spikes of all steps.
        paper_per_step: Of the paper's model, with spikes of one step: ``T`` times as many.
        compute: Ours, of arithmetic.
        total: Ours, of arithmetic and memory.
    """

    spikes_per_neuron: float
    rate: float
    paper: float
    paper_per_step: float
    compute: float
    total: float


def energy_ratios(network: PublishedNetwork, images: Tensor, generator: torch.Generator | None) -> EnergyRatios:
    """Measure a network's spikes on some images, and compare its energy with the ANN's.

    Args:
        network: The network.
        images: Shape ``[N, *input_shape]``.
        generator: Draws spikes.
    """
    spikes, shapes = spike_counts(network, images, generator)
    layers = count_layers(
        network.graph,
        network.parameters,
        spikes,
        shapes,
        network.steps,
        SPIKES if network.graph.input in spikes else IMAGE,
    )
    count = SpikeCount(steps=network.steps, layers=tuple(layers))
    neurons = [node.name for node in network.graph.spikes]
    fired = sum(float(spikes[name].sum()) for name in neurons) / sum(spikes[name].numel() for name in neurons)
    ann, paper = _paper(network, spikes, count)
    return EnergyRatios(
        spikes_per_neuron=fired,
        rate=fired / network.steps,
        paper=ann / paper,
        paper_per_step=ann / paper * network.steps,
        compute=count.ann_energy.compute / count.energy.compute,
        total=count.ann_energy.total / count.energy.total,
    )


def _paper(network: PublishedNetwork, spikes: dict[str, Tensor], count: SpikeCount) -> tuple[float, float]:
    """Return picojoules of the ANN and of the network: each layer's operations times the mean spikes of its input."""
    macs = {layer.layer: layer.ann_macs for layer in count.layers}
    ann = snn = 0.0
    behind = network.graph.trains_behind
    for node in network.graph.affines:
        source = node.inputs[0]
        sources = {source} if source in spikes else behind[source] or {network.graph.input}
        read = [spikes[name].mean().item() for name in sources if name in spikes]
        ann += MAC_PICOJOULES * macs[node.name]
        per_input = AC_PICOJOULES * sum(read) / len(read) if read else MAC_PICOJOULES  # a constant image: once
        snn += per_input * macs[node.name]
    return ann, snn
