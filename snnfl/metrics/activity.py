"""What a network that is trained as a spiking one does: firing rates, synaptic operations and energy.

Counted as of converted networks (:mod:`snnfl.metrics.energy`), on the same structure: that of the ordinary network with
ReLUs in the place of the neurons, whose layers have the same names. What is particular to trained ones:

* Samples that flow in as a constant current are read once, whatever the number of steps: the first layer costs its
  multiply-accumulates once per sample. Frames of a sequence are read as real values, at every step, however many of
  them are zero. Encodings by spikes (``poisson``, ``latency``, ``delta``) cost an accumulation per spike and synapse.
* A recurrent layer's spike costs an accumulation per neuron of its layer.
* Leaks, resets, adaptation and surrogates are updates of the membrane, which aren't counted; adaptive neurons read and
  write a second state. Output neurons aren't counted.
* A spike is worth 1, and batch normalisation belongs to the weights before it, as after folding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from snnfl.metrics.energy import (
    ANALOG,
    IMAGE,
    IMAGES_AT_ONCE,
    SPIKES,
    LayerCount,
    SpikeCount,
    count_layers,
)
from snnfl.models import SpikingModel, SpikingNeurons
from snnfl.spiking.graph import MaxPool, SpikingGraph
from snnfl.spiking.values import value_shadows

Kind: TypeAlias = Literal["image", "spikes", "analog"]
"""What the input is made of."""

SILENT, SATURATED = 1e-4, 0.95
"""Firing rates below which a layer counts as silent, and above which it says nothing."""


@dataclass(frozen=True, kw_only=True)
class Activity:
    """What a network does for one sample, on average.

    Attributes:
        rates: Spikes per neuron and time step, by layer of neurons.
        count: Spikes, operations and energy of every layer; ``None`` for a network whose structure isn't known.
    """

    rates: Mapping[str, float]
    count: SpikeCount | None


@dataclass(frozen=True, kw_only=True)
class Structure:
    """The ordinary network with ReLUs in the place of the neurons.

    Attributes:
        graph: From :func:`snnfl.spiking.trace`.
        parameters: Folded weights and biases, for their shapes.
    """

    graph: SpikingGraph
    parameters: Mapping[str, Tensor]


@torch.inference_mode()
def measure_activity(model: SpikingModel, samples: Tensor, structure: Structure | None) -> Activity:
    """Count what a model's neurons do; it is measured in the mode that it is in.

    Args:
        model: Stays as it is. A random encoding draws as the model says.
        samples: Normalised, ``[N, *input_shape]``, at least one.
        structure: Of the model; ``None`` if nobody knows it.

    Raises:
        ValueError: If there is no sample.
    """
    if len(samples) == 0:
        raise ValueError("no samples: give at least one")
    spikes, inputs, kind = _spikes(model, samples)
    neurons = model.neurons
    rates = {name: float(spikes[name].mean()) / model.steps for name in neurons}
    if structure is None or not neurons.keys() <= {node.name for node in structure.graph.spikes}:
        return Activity(rates=rates, count=None)
    graph = structure.graph
    step = samples.new_zeros(1, *(samples.shape[2:] if model.sequence else samples.shape[1:]))
    shapes = {name: value.shape for name, value in value_shadows(graph, structure.parameters, step).items()}
    trains = set(neurons) | ({graph.input} if kind == SPIKES else set())
    for node in graph.nodes:  # a maximum of spikes is a spike
        if isinstance(node, MaxPool) and trains.issuperset(node.inputs):
            trains.add(node.name)
    known = {name: count for name, count in {**spikes, graph.input: inputs}.items() if name in trains}
    layers = count_layers(graph, structure.parameters, known, shapes, model.steps, kind)
    found = [_with_adaptation(layer, neurons.get(layer.layer), model.steps) for layer in layers]
    found += [_recurrence(name, layer, known[name]) for name, layer in neurons.items() if layer.recurrent is not None]
    return Activity(rates=rates, count=SpikeCount(steps=model.steps, layers=tuple(found)))


def _spikes(model: SpikingModel, samples: Tensor) -> tuple[dict[str, Tensor], Tensor, Kind]:
    """Count the spikes of one sample, by layer of neurons and max pooling; those of its input, and what that is."""
    totals: dict[str, Tensor] = {}

    def add(name: str, trains: Tensor) -> None:
        count = trains.double().sum((0, 1), keepdim=True)[0].cpu() / len(samples)
        totals[name] = totals[name] + count if name in totals else count

    def of_neurons(name: str, module: SpikingNeurons, args: tuple[Tensor], output: Tensor) -> None:
        add(name, output if module.pool == 1 else module.spikes(args[0]))

    def of_maximum(name: str, module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        add(name, output)

    hooks = []
    for name, module in model.named_modules():
        counting: Callable[..., None] | None = None
        if isinstance(module, SpikingNeurons):
            counting = of_neurons
        elif isinstance(module, nn.MaxPool2d):
            counting = of_maximum
        if counting is not None:
            hooks.append(module.register_forward_hook(partial(counting, name)))
    kind: Kind = SPIKES
    try:
        for part in torch.split(samples, IMAGES_AT_ONCE):
            encoded = model.encode(part)
            if model.encoding == "direct":
                kind = ANALOG if model.sequence else IMAGE
            add("", encoded != 0)
            model.body(encoded)
    finally:
        for hook in hooks:
            hook.remove()
    return totals, totals.pop(""), kind


def _with_adaptation(layer: LayerCount, neurons: SpikingNeurons | None, steps: int) -> LayerCount:
    """Add the words of the second state of adaptive neurons."""
    if neurons is None or neurons.adaptation is None:
        return layer
    return replace(layer, words=layer.words + 2 * layer.neurons * steps)


def _recurrence(name: str, neurons: SpikingNeurons, spikes: Tensor) -> LayerCount:
    """Count what spikes cost that come back to their layer."""
    acs = float(spikes.sum()) * spikes.shape[1]
    return LayerCount(layer=f"{name}.recurrent", acs=acs, words=acs)


def warning_of(layer: str, rate: float, *, normalised: bool) -> str | None:
    """Say what is wrong with a layer's firing rate and what to do, or return ``None``.

    Args:
        layer: Its name.
        rate: Spikes per neuron and time step.
        normalised: Whether the model has normalisation; batch normalisation is no remedy then.

    >>> warning_of("relu2", 0.2, normalised=True) is None
    True
    """
    norm = "" if normalised else ", or set model.batch_norm=true"
    if rate < SILENT:
        often = "hardly ever" if rate else "never"
        return (
            f"{layer} {often} fires (firing rate {100 * rate:.2g} %), so nothing passes it: lower model.threshold, "
            f"raise model.beta, lower training.learning_rate if it fired before{norm}"
        )
    if rate > SATURATED:
        return (
            f"{layer} always fires (firing rate {100 * rate:.3g} %), so it tells nothing apart: raise model.threshold, "
            f"lower model.beta or training.learning_rate{norm}"
        )
    return None
