"""Sequences of any numbers, as sound and sensors give, from a spiking network's first and last layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from snnfl.attacks.event_order import Replay
from snnfl.attacks.events import rounding_noise
from snnfl.attacks.labels import single_label
from snnfl.attacks.native_exact import NEEDS, first_layer, gradients, norms
from snnfl.attacks.native_features import discounts
from snnfl.attacks.networks import Arrays, last_linear
from snnfl.attacks.reconstruction import Reconstruction
from snnfl.attacks.registry import Budget, register
from snnfl.attacks.spike_trains import MOST_STEPS, RELATIVE, Layer, sequence_of, step_weights, trains_of
from snnfl.models import SpikingModel, SpikingNeurons
from snnfl.neurons.dynamics import to_zero
from snnfl.neurons.surrogates import SurrogateSpike
from snnfl.threat import ServerView, ThreatModelError


def _neurons(model: SpikingModel) -> SpikingNeurons | None:
    """Return the neurons between two linear layers, if a network is no more than that."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    found = list(model.neurons.values())
    return found[0] if len(linear) == 2 and len(found) == 1 else None


def _untold(view: ServerView) -> str | None:
    """Say why no spike trains can be told, or return ``None``."""
    model = view.model
    if not isinstance(model, SpikingModel) or first_layer(view) is None:
        return "the first layer isn't linear on the sample itself"
    if not view.sequence or model.encoding != "direct":
        return "reconstructs sequences that flow into the network as they are"
    neurons = _neurons(model)
    if neurons is None or norms(view) != (None, False) or neurons.kind != "lif":
        return "takes two linear layers with leaky neurons (lif) between them, and no batch normalisation"
    if not neurons.delayed or not discounts(model):
        return "takes neurons that are reset with the next step, and potentials to be read out"
    if f"{first_layer(view)}.bias" not in view.exchange.sent or f"{last_linear(model)}.bias" not in view.exchange.sent:
        return "takes biases in both layers"
    if model.steps > MOST_STEPS:
        return f"lists the sums of half the steps, which takes at most {MOST_STEPS} steps, not {model.steps}"
    return None if view.knowledge.images == view.knowledge.steps == 1 else "takes one step on one sequence"


@register(
    "sequence_recovery",
    source="spikes by subset sums (Horowitz & Sahni 1974) of the last layer's rates, then their inputs; this project",
    needs=NEEDS,
    against="native",
    requires=_untold,
)
def sequence_recovery(views: Sequence[ServerView], budget: Budget, generator: torch.Generator) -> list[Reconstruction]:
    """Read the hidden layer's spike trains off the last layer's gradient, and find the sequence that makes them.

    Where no neuron's train is known, the sequence is zero (:mod:`snnfl.attacks.spike_trains`).
    """
    return [_sequence(view) for view in views]


def _sequence(view: ServerView) -> Reconstruction:
    found, miss = gradients(view), 1.0
    first = str(first_layer(view))
    samples = torch.zeros(view.input_shape[0], view.exchange.sent[f"{first}.weight"].shape[1])
    layer, known = _layer(view, found, first)
    if bool(known.any()):
        wanted = torch.cat([found[f"{first}.weight"], found[f"{first}.bias"][:, None]], 1).double().nan_to_num()
        inputs, miss = sequence_of(layer, wanted[known])
        samples = inputs.float().nan_to_num(0, 0, 0)
        miss = miss if miss == miss else 1.0
    label = single_label(found[f"{last_linear(view.model)}.weight"])
    samples = samples.view(1, *view.input_shape)
    return Reconstruction(images=samples, labels=label[None], objective=miss, curve=((0, miss),), trail=(samples,))


def _layer(view: ServerView, found: Arrays, first: str) -> tuple[Layer, Tensor]:
    """Return the first layer, of those neurons whose trains the last layer's gradient tells, and which these are."""
    sent, last, model = view.exchange.sent, last_linear(view.model), view.model
    if not isinstance(model, SpikingModel):
        raise ThreatModelError("no spiking network")
    neuron = next(iter(Replay(model, sent, first).model.neurons.values())).neuron
    if not isinstance(neuron.spike, SurrogateSpike):
        raise ThreatModelError("takes a surrogate gradient of the registry")
    weights, spike = step_weights(model), neuron.spike
    errors = found[f"{last}.bias"].double() / weights.sum()
    sums = errors @ found[f"{last}.weight"].double() / errors.square().sum().clamp_min(1e-300)
    sums = sums.nan_to_num()
    noise = rounding_noise(sent[f"{last}.weight"], view.knowledge.learning_rate or 1.0)
    noise = noise / float(errors.norm().clamp_min(1e-300))
    trains, known = trains_of(sums, weights, 6 * noise + RELATIVE * float(sums.abs().max()))
    slopes = errors @ sent[f"{last}.weight"].double()[:, known]
    return (
        Layer(
            weight=sent[f"{first}.weight"].double()[known],
            bias=sent[f"{first}.bias"].double()[known],
            leak=float(neuron.leak if neuron.leak is not None else 1.0),
            threshold=float(neuron.threshold),
            to_zero=neuron.reset is to_zero,
            derivative=lambda distance: spike.derivative(distance, spike.slope),
            trains=trains[:, known],
            slopes=weights[:, None] * slopes,
        ),
        known,
    )
