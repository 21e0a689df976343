"""From a trained ANN, and images that nobody has to own, to the spiking network that is encrypted and published."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from snnfl.config import ConversionConfig, PublishingConfig
from snnfl.conversion import convert_state
from snnfl.private_snn.network import CHUNK_STEPS, PublishedNetwork, encoded, walk
from snnfl.private_snn.synthesis import Bounds
from snnfl.spiking.graph import Affine, LinearMap, MaxPool, Parameters, Spike, SpikingGraph
from snnfl.spiking.in_time import in_fast_layout
from snnfl.spiking.values import value_shadows

IMAGES_AT_ONCE = 64
"""Images that are simulated at once, each with draws of its own."""


@torch.no_grad()
def convert(
    graph: SpikingGraph,
    parameters: Parameters,
    images: Tensor,
    bounds: Bounds,
    config: PublishingConfig,
    generator: torch.Generator,
) -> PublishedNetwork:
    """Convert an ANN on some images (Algorithm 2, step 1): weights and biases stay what they are, unless calibrated.

    Args:
        graph: Structure of the ANN.
        parameters: Its weights and biases, batch normalisation folded into them.
        images: Synthetic ones, or real ones as control, ``[N, *input_shape]``; the first ``config.images`` are used.
        bounds: Of the pixels; the largest magnitude is what ``poisson`` encodes by a spike at each step.
        config: Steps, thresholds, leak, encoding.
        generator: Draws spikes, on the images' device.

    Returns:
        The network, with parameters of its own.

    Raises:
        ValueError: If images don't fit.
    """
    chosen = images[: config.images]
    network = PublishedNetwork(
        graph=graph,
        parameters={name: array.detach().clone() for name, array in parameters.items()},
        steps=config.steps,
        input_shape=tuple(images.shape[1:]),
        encoding=config.encoding,
        input_scale=bounds.scale if config.encoding == "poisson" else 1.0,
    )
    network.check(chosen)
    if config.thresholds == "mmse":
        return _by_mmse(network, chosen, config)
    return _by_maximum(network, chosen, config, generator)


def _by_maximum(
    network: PublishedNetwork, images: Tensor, config: PublishingConfig, generator: torch.Generator
) -> PublishedNetwork:
    """Set each threshold to its layer's largest current, first layer first (Sengupta et al. 2019; the paper).

    Of each layer the network before it is simulated anew, with other draws: for ``L`` layers that is ``L/2``
    simulations, but no spike train is kept.
    """
    like = next(iter(network.parameters.values()))
    found = dict(network.parameters)
    for node in network.graph.spikes:
        largest = largest_current(network.holding(found), node, images, generator)
        found[f"{node.name}.threshold"] = like.new_tensor([largest if largest > 0 else 1.0])  # else it never fires
        found[f"{node.name}.leak"] = like.new_tensor([config.leak])
    return network.holding(found)


@torch.no_grad()
def largest_current(network: PublishedNetwork, node: Spike, images: Tensor, generator: torch.Generator) -> float:
    """Return the largest current that reaches a layer of neurons, over images, neurons and time steps.

    Args:
        network: Whose layers before this one have thresholds and leaks.
        node: The layer.
        images: Shape ``[N, *input_shape]``.
        generator: Draws spikes.
    """
    graph, largest = network.graph, -math.inf
    before = graph.nodes[: graph.nodes.index(node)]
    for part in torch.split(images, IMAGES_AT_ONCE):
        samples, potentials = in_fast_layout(part) / network.input_scale, dict[str, Tensor]()
        for start in range(0, network.steps, CHUNK_STEPS):
            steps = min(CHUNK_STEPS, network.steps - start)
            current = encoded(network, samples, steps, generator)
            values = walk(network, before, current, steps, potentials)
            largest = max(largest, *(float(value.max()) for name, value in values if name == node.inputs[0]))
    return largest


def _by_mmse(network: PublishedNetwork, images: Tensor, config: PublishingConfig) -> PublishedNetwork:
    """Convert as S-clients do for few steps: a threshold per channel, half of it at the start, calibrated biases."""
    how = ConversionConfig(steps=config.steps, thresholds="channel_mmse", initial_potential="half")
    graph, state = unfolded(network.graph, network.parameters)
    converted = convert_state(graph, state, images, how)
    found = dict(converted.parameters)
    for node in graph.spikes:
        found[f"{node.name}.leak"] = found[f"{node.name}.threshold"].new_tensor([config.leak])
        found[f"{node.name}.potential"] = converted.resting_potential(node.name)
    return network.holding(found)


def unfolded(graph: SpikingGraph, parameters: Parameters) -> tuple[SpikingGraph, dict[str, Tensor]]:
    """Take folded weights and biases for an ANN's own, of a structure without batch normalisation: fold's inverse."""
    nodes = tuple(replace(node, norm=None) if isinstance(node, Affine) else node for node in graph.nodes)
    weights = {f"{node.name}.weight": node.as_in_ann(parameters[f"{node.name}.weight"]) for node in graph.affines}
    biases = {f"{node.name}.bias": parameters[f"{node.name}.bias"] for node in graph.affines}
    return replace(graph, nodes=nodes), {**weights, **biases}


def affine_parameters(graph: SpikingGraph, parameters: Parameters) -> dict[str, Tensor]:
    """Return the weights and biases among a network's arrays: those of its ANN."""
    names = [f"{node.name}.{kind}" for node in graph.affines for kind in ("weight", "bias")]
    return {name: parameters[name] for name in names}


@torch.no_grad()
def spike_counts(
    network: PublishedNetwork, images: Tensor, generator: torch.Generator | None
) -> tuple[dict[str, Tensor], dict[str, torch.Size]]:
    """Count the spikes of each neuron in all steps, mean over images; of ``poisson`` those of the input, too.

    So are those that a maximum over spikes lets pass.

    Args:
        network: The network.
        images: Shape ``[N, *input_shape]``.
        generator: Draws spikes.

    Returns:
        Counts by value, ``[1, C, *space]``, float64, and the shape of every value of one image.
    """
    totals: dict[str, Tensor] = {}
    counted = _trains(network.graph)
    if network.encoding == "poisson":
        counted.add(network.graph.input)
    for part in torch.split(images, IMAGES_AT_ONCE):
        samples, potentials = in_fast_layout(part) / network.input_scale, dict[str, Tensor]()
        for start in range(0, network.steps, CHUNK_STEPS):
            steps = min(CHUNK_STEPS, network.steps - start)
            current = encoded(network, samples, steps, generator)
            body = [node for node in network.graph.nodes if node.name not in network.graph.tail]
            for name, value in walk(network, body, current, steps, potentials):
                if name in counted:
                    count = (value != 0).double().sum((0, 1), keepdim=True)[0].cpu()
                    totals[name] = totals[name] + count if name in totals else count
    shadows: Mapping[str, Tensor] = value_shadows(network.graph, network.parameters, images[:1])
    return {name: total / len(images) for name, total in totals.items()}, {k: v.shape for k, v in shadows.items()}


def _trains(graph: SpikingGraph) -> set[str]:
    """Return the values that are spikes of one neuron each: those of neurons, joined ones, and what maxima let pass."""
    found = set[str]()
    for node in graph.nodes:
        passes = isinstance(node, MaxPool) or (isinstance(node, LinearMap) and node.op == "concatenate")
        if isinstance(node, Spike) or (passes and found.issuperset(node.inputs)):
            found.add(node.name)
    return found
