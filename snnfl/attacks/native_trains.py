"""Batches of pictures, and of sequences of any numbers, from a spiking network's first and last layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from snnfl.attacks.event_order import Replay
from snnfl.attacks.events import rounding_noise
from snnfl.attacks.labels import in_order, infer_labels, solved
from snnfl.attacks.native_exact import NEEDS, first_layer, norms
from snnfl.attacks.native_features import discounts, gain
from snnfl.attacks.networks import last_linear
from snnfl.attacks.problem import Problem, inexact, problem_of
from snnfl.attacks.reconstruction import Reconstruction
from snnfl.attacks.registry import Budget, register
from snnfl.attacks.sparse_features import MOST_IMAGES, Solved
from snnfl.attacks.spike_trains import (
    MOST_CONSTANT,
    MOST_STEPS,
    RELATIVE,
    Layer,
    constant_trains,
    inputs_of,
    step_weights,
    surest_trains,
)
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
    if model.encoding != "direct":
        return f"takes samples that flow into the network as they are, this one encodes them ({model.encoding})"
    neurons = _neurons(model)
    kinds = ("lif",) if view.sequence else ("lif", "if")
    if neurons is None or norms(view) != (None, False) or neurons.kind not in kinds:
        return f"takes two linear layers with {' or '.join(kinds)} between them, and no batch normalisation"
    if not neurons.delayed or not discounts(model):
        return "takes neurons that are reset with the next step, and potentials to be read out"
    if f"{first_layer(view)}.bias" not in view.exchange.sent or f"{last_linear(model)}.bias" not in view.exchange.sent:
        return "takes biases in both layers"
    if view.sequence and model.steps > MOST_STEPS:
        return f"lists the sums of half the steps, which takes at most {MOST_STEPS} steps, not {model.steps}"
    if model.steps > MOST_CONSTANT:
        return f"lists what trains one current can make, which takes at most {MOST_CONSTANT} steps, not {model.steps}"
    if view.knowledge.steps != 1:
        return f"takes one step, and the client took {view.knowledge.steps}"
    return _untold_batch(view) or inexact(view)


def _untold_batch(view: ServerView) -> str | None:
    """Say why the last layer's gradient doesn't tell a batch's samples apart, or return ``None``."""
    known, images = view.knowledge, view.knowledge.images
    if images is None or images == 1:
        return None
    most = min(*view.exchange.sent[f"{last_linear(view.model)}.weight"].shape, MOST_IMAGES + 1) - 1
    if images > most:
        return f"tells at most {most} samples apart in this last layer, fewer than classes; the client has {images}"
    return None if known.scaled else "tells samples apart by the length of the update, and clients shorten theirs"


def _no_sequences(view: ServerView) -> str | None:
    if not view.sequence:
        return "reconstructs sequences, these samples have no time; take image_recovery"
    return _untold(view)


def _no_images(view: ServerView) -> str | None:
    if view.sequence:
        return (
            "reconstructs samples without time, these are sequences; event_recovery takes counts of events, "
            "sequence_recovery any numbers"
        )
    return _untold(view)


@register(
    "sequence_recovery",
    source="spikes by subset sums (Horowitz & Sahni 1974) of the last layer's rates, then their inputs; this project",
    needs=NEEDS,
    against="native",
    requires=_no_sequences,
)
def sequence_recovery(views: Sequence[ServerView], budget: Budget, generator: torch.Generator) -> list[Reconstruction]:
    """Read the hidden layer's spike trains off the last layer's gradient, and find the sequences that make them.

    Where no neuron's train is known, a sequence is zero (:mod:`snnfl.attacks.spike_trains`).
    """
    return [_samples(view, generator) for view in views]


@register(
    "image_recovery",
    source="spikes by the last layer's rates, of those that one current can make, then the images; this project",
    needs=NEEDS,
    against="native",
    requires=_no_images,
)
def image_recovery(views: Sequence[ServerView], budget: Budget, generator: torch.Generator) -> list[Reconstruction]:
    """Read the hidden layer's spike trains off the last layer's gradient, and find the batch of images that makes them.

    A batch's images whose features the last layer's gradient doesn't tell are grey
    (:mod:`snnfl.attacks.sparse_features`), and without them the others are found by their spikes alone.
    """
    return [_samples(view, generator) for view in views]


def _samples(view: ServerView, generator: torch.Generator) -> Reconstruction:
    problem = problem_of(view)
    samples, miss = torch.zeros(problem.count, *view.input_shape), 1.0
    told = _told(view, problem, generator)
    if told is not None and view.labels is None and len(told.labels) == problem.count:
        labels = told.labels
    else:
        labels = in_order(infer_labels(view, problem, generator), told, given=view.labels is not None)
    if told is not None:
        layer, wanted = _layer(view, problem, told)
        if len(wanted):
            steps = problem.input_shape[0] if view.sequence else 1
            inputs, left = inputs_of(layer, wanted, inputs=steps, samples=problem.count)
            found = inputs.transpose(0, 1).reshape(-1, *view.input_shape)
            samples[: len(found)] = found.float().nan_to_num(0, 0, 0)
            miss = left if math.isfinite(left) else 1.0
    return Reconstruction(images=samples, labels=labels, objective=miss, curve=((0, miss),), trail=(samples,))


def _told(view: ServerView, problem: Problem, generator: torch.Generator) -> Solved | None:
    """Return errors ``p - e_y`` and sums ``sum_t w_t s_t`` of as many samples as the last layer's gradient tells.

    Of one sample ``dL/dW = e h^T`` and ``dL/db = e w`` with the sum ``w`` of the readout's weights.
    """
    if problem.count > 1:
        found = solved(view, problem, generator)
        return found if found is not None and found.checked else None
    last = last_linear(view.model)
    weight, bias = (problem.finite(f"{last}.{part}") for part in ("weight", "bias"))
    errors = bias[None] / gain(view.model)
    sums = errors @ weight / errors.square().sum().clamp_min(1e-300)
    return Solved(errors=errors, features=sums.nan_to_num(), checked=True)


def _layer(view: ServerView, problem: Problem, told: Solved) -> tuple[Layer, Tensor]:
    """Return the first layer, of those neurons whose trains the sums tell, and its gradient ``[H, features + 1]``."""
    sent, first, last, model = view.exchange.sent, str(first_layer(view)), last_linear(view.model), view.model
    if not isinstance(model, SpikingModel):
        raise ThreatModelError("no spiking network")
    neuron = next(iter(Replay(model, sent, first).model.neurons.values())).neuron
    if not isinstance(neuron.spike, SurrogateSpike):
        raise ThreatModelError("takes a surrogate gradient of the registry")
    weights, spike, shares = step_weights(model), neuron.spike, told.errors / problem.count
    noise = rounding_noise(sent[f"{last}.weight"], view.knowledge.learning_rate or 1.0)
    rounding = [6 * noise / float(share.norm().clamp_min(1e-300)) for share in shares]
    leak, threshold = float(neuron.leak if neuron.leak is not None else 1.0), float(neuron.threshold)
    zeroed = neuron.reset is to_zero
    listed = None if view.sequence else constant_trains(model.steps, leak, threshold, to_zero=zeroed)
    pairs = [
        surest_trains(sums, weights, least + RELATIVE * float(sums.abs().max()), listed)
        for sums, least in zip(told.features, rounding, strict=True)
    ]
    known = torch.stack([known for _, known in pairs]).all(0)
    slopes = shares @ sent[f"{last}.weight"].double()[:, known]
    wanted = torch.cat([problem.finite(f"{first}.weight"), problem.finite(f"{first}.bias")[:, None]], 1)
    return (
        Layer(
            weight=sent[f"{first}.weight"].double()[known],
            bias=sent[f"{first}.bias"].double()[known],
            leak=leak,
            threshold=threshold,
            to_zero=zeroed,
            derivative=lambda distance: spike.derivative(distance, spike.slope),
            trains=torch.stack([trains for trains, _ in pairs], 1)[..., known],
            slopes=weights[:, None, None] * slopes,
        ),
        wanted[known],
    )
