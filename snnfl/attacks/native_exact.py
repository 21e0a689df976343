"""What a natively trained spiking network tells through its first layer, if that is linear: images, rates, events."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from snnfl.attacks.event_differences import find_differences
from snnfl.attacks.event_order import Replay, in_order, smooth_order
from snnfl.attacks.event_sums import counts_of
from snnfl.attacks.events import Frames, find_frames, grouped, rounding_noise
from snnfl.attacks.label_evidence import Evidence
from snnfl.attacks.labels import batch_labels, single_label
from snnfl.attacks.networks import Arrays, last_linear
from snnfl.attacks.problem import decay_of, inexact, local_training, seen_gradient
from snnfl.attacks.reconstruction import Reconstruction
from snnfl.attacks.registry import Budget, register
from snnfl.models import SpikingModel
from snnfl.threat import ServerView, ThreatModelError
from snnfl.training import is_statistic

NEEDS = ("architecture", "loss", "images", "batch_size", "epochs", "learning_rate", "biases")

SUM_ERROR = 3e-7
"""Of a weighted sum of counts whose first weight is 1, from float32 weights."""

REPEATS = 3
"""How often the order of a batch's frames is searched anew with the probabilities that the last one gives."""


def first_layer(view: ServerView) -> str | None:
    """Name the first layer of a spiking network if it is linear on the samples themselves, or return ``None``."""
    kinds = nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d
    name, layer = next((pair for pair in view.model.named_modules() if isinstance(pair[1], kinds)), ("", None))
    size = math.prod(view.input_shape[1:] if view.sequence else view.input_shape)
    return name if isinstance(layer, nn.Linear) and layer.in_features == size else None


def norms(view: ServerView) -> tuple[str | None, bool]:
    """Return which batch normalisation follows the first layer, and whether there are further ones behind."""
    named = list(view.model.named_modules())
    places = [place for place, (_, module) in enumerate(named) if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    first = next((place for place, (name, _) in enumerate(named) if name == first_layer(view)), -1)
    own = named[first + 1][0] if first + 1 in places else None
    return own, len(places) > (own is not None)


def _unreadable(view: ServerView) -> str | None:
    """Say why the first layer's gradient doesn't tell its inputs, or return ``None``."""
    if first_layer(view) is None or not isinstance(view.model, SpikingModel):
        return "the first layer isn't linear on the sample itself"
    norm, others = norms(view)
    if norm is not None and view.knowledge.norm_mode is None:
        return "needs norm_mode, for batch normalisation follows the first layer"
    if (
        (norm is not None or others)
        and view.knowledge.norm_mode == "eval"
        and not any(map(is_statistic, view.exchange.sent))
    ):
        return "needs the running statistics that batch normalisation ran with, which the threat model denies"
    return None


def gradients(view: ServerView) -> Arrays:
    """Return the observed update as a gradient, without the weight decay in it."""
    local = local_training(view)
    seen = seen_gradient(view, local.learning_rate)
    decay = decay_of(view, seen, local, view.knowledge.steps or 1)
    return {name: array - decay * view.exchange.sent[name] for name, array in seen.items()}


def _single(view: ServerView) -> str | None:
    if (reason := _unreadable(view)) is not None:
        return reason
    if norms(view)[0] is not None and view.knowledge.norm_mode != "eval":
        return "batch normalisation follows the first layer: its gradient is without the mean over time"
    if f"{first_layer(view)}.bias" not in view.exchange.sent:
        return "the first layer has no bias, whose gradient says how bright the image is"
    if view.sequence:
        return "reconstructs samples without time, these are sequences; event_recovery takes counts of events"
    if view.model.encoding not in ("direct", "poisson"):
        return f"reads direct and poisson encoding, the network has {view.model.encoding}"
    if view.knowledge.images == 1:
        return None
    return "reconstructs one image, the round had more or an unknown number; image_recovery takes batches"


@register(
    "native_closed_form",
    source="Geiping et al. 2020, proposition 3.1, summed over time steps",
    needs=NEEDS,
    against="native",
    requires=_single,
)
def native_closed_form(views: Sequence[ServerView], budget: Budget, generator: torch.Generator) -> list[Reconstruction]:
    """Divide the first layer's weight gradient by its bias gradient.

    ``dL/dW = sum_t d_t x_t^T`` and ``dL/db = sum_t d_t``. Under direct coding all ``x_t`` are the image, so it is
    ``sum_i db_i dW_i / sum_i db_i^2`` exactly, whatever the surrogate gradient and however many steps on it. Under
    Poisson coding that is a weighted mean of the spikes over time, whose expectation is the image, clipped to -1..1.
    """
    return [_image(view) for view in views]


def _image(view: ServerView) -> Reconstruction:
    found, layer = gradients(view), first_layer(view)
    weight, bias = found[f"{layer}.weight"].double(), found[f"{layer}.bias"].double()
    scale = bias.abs().max().clamp_min(1e-300)
    share = bias / scale
    image = (share @ (weight / scale)) / share.square().sum().clamp_min(1e-300)
    size = float(torch.linalg.matrix_norm(weight / scale))
    miss = float(torch.linalg.matrix_norm(weight / scale - torch.outer(share, image))) / size if size else 1.0
    label = single_label(found[f"{last_linear(view.model)}.weight"])
    return _reconstruction(view, image.view(1, *view.input_shape), label[None], miss)


def _recordings(view: ServerView) -> str | None:
    if (reason := _unreadable(view)) is not None:
        return reason
    if not view.sequence:
        return (
            "reconstructs event recordings, these samples have no time; native_closed_form takes one image, "
            "image_recovery batches"
        )
    if view.model.encoding != "direct":
        return f"reads counts of events as they are, the network encodes them ({view.model.encoding})"
    if bool((view.mean != 0).any()):
        return "reads counts of events, and these inputs are shifted by a mean"
    rank = (view.knowledge.images or 0) * view.input_shape[0]
    outputs = len(view.exchange.sent[f"{first_layer(view)}.weight"])
    if rank > outputs:
        return f"{rank} time steps of all samples don't fit in a first layer of {outputs} outputs"
    if (reason := inexact(view)) is not None:
        return reason
    norm, _ = norms(view)
    if norm is None or view.knowledge.norm_mode == "eval":
        return None
    if f"{norm}.weight" not in view.exchange.sent:
        return "batch normalisation without gamma and beta follows the first layer, which would tell its means"
    if (view.knowledge.images or 0) > (view.knowledge.batch_size or 0):
        return "batch normalisation follows the first layer, with statistics of several batches"
    return None


@register(
    "event_recovery",
    source="separable factorisation of the first layer's gradient (Gillis & Vavasis 2014), order by replay",
    needs=NEEDS,
    against="native",
    requires=_recordings,
)
def event_recovery(views: Sequence[ServerView], budget: Budget, generator: torch.Generator) -> list[Reconstruction]:
    """Take the first layer's gradient apart into the frames of events, and put them in order.

    ``dL/dW = sum_t d_t x_t^T`` has a row space of which the frames are the only sparse basis of counts
    (:mod:`snnfl.attacks.events`). Which frames are of one sample, the signs of ``d_t`` tell; their order in time the
    network's own gradient, replayed (:mod:`snnfl.attacks.event_order`), where the client took one step, and else that
    neighbouring frames are alike. Frames that aren't found are empty.
    """
    return [_events(view) for view in views]


def _events(view: ServerView) -> Reconstruction:
    layer, found, model = first_layer(view), gradients(view), view.model
    if layer is None or not isinstance(model, SpikingModel):
        raise ThreatModelError("the first layer isn't linear on the sample itself")
    count, steps = view.knowledge.images or 1, view.input_shape[0]
    noise = rounding_noise(view.exchange.sent[f"{layer}.weight"], view.knowledge.learning_rate or 1.0)
    norm, others = norms(view)
    batch_statistics = view.knowledge.norm_mode == "train"
    of_batch = norm is not None and batch_statistics
    replay = Replay(model, view.exchange.sent, layer, norm, batch_statistics=batch_statistics)
    if of_batch:
        summed = _summed(view, replay, count * steps)
        frames = find_differences(
            found[f"{layer}.weight"], noise=noise, most=count * steps, weight=replay.weight, summed=summed
        )
        replay.normalise(frames.frames, count * steps)
    else:
        frames = find_frames(found[f"{layer}.weight"], noise=noise, most=count * steps)
    if norm is not None:
        own = {name: found[f"{norm}.{name}"] for name in ("weight", "bias")}
        frames = replay.behind_norm(frames, own, of_batch / (count * steps))
    elif count == 1 and frames.rank == 1 and view.knowledge.steps == 1:
        frames = _decoded(replay, found, layer, last_linear(model), steps) or frames
    groups = _with_room(grouped(frames.coefficients, count), steps)
    orders = [group[smooth_order(frames.frames[group], frames.coefficients[:, group])] for group in groups]
    labels = _labels(view, found, replay, frames, orders)
    if view.knowledge.steps == 1 and not (others and batch_statistics):
        orders, labels = _replayed(view, found, replay, frames, orders, labels)
    recordings = torch.zeros(count, steps, frames.frames.shape[1])
    for place, order in enumerate(orders):
        recordings[place, : len(order)] = frames.frames[order].float()
    return _reconstruction(view, recordings.view(count, *view.input_shape), labels, frames.residual)


def _with_room(groups: Sequence[Tensor], steps: int) -> list[Tensor]:
    """Move frames of samples that have too many to those that have room: better in a wrong place than lost."""
    spare, placed = torch.cat([group[steps:] for group in groups]), list[Tensor]()
    for group in groups:
        room = max(0, steps - len(group))
        placed.append(torch.cat([group[:steps], spare[:room]]))
        spare = spare[room:]
    return placed


def _decoded(replay: Replay, found: Arrays, layer: str, last: str, steps: int) -> Frames | None:
    """Return the frames of a recording whose ``d_t`` are multiples of one vector, whatever the input, or ``None``.

    So it is where the surrogate gradient is 1 everywhere. The gradient is one weighted sum of the frames then, in which
    the network tells the weights.
    """
    if f"{last}.bias" not in found:
        return None
    silent = replay.currents(torch.zeros(steps, 1, replay.weight.shape[1]))
    slopes = replay.slope(silent, f"{last}.bias", found[f"{last}.bias"])
    rows = replay.gradients(silent, slopes[None])[:, 0].double()
    vector = rows[0] / torch.linalg.vector_norm(rows[0]).clamp_min(1e-300)
    weights = rows @ vector
    if float((rows - torch.outer(weights, vector)).abs().max()) > 1e-5 * float(rows.abs().max()) or weights[-1] <= 0:
        return None
    weight, bias = found[f"{layer}.weight"].double(), found.get(f"{layer}.bias", rows.sum(0)).double()
    weights = weights / weights[0]
    sums = (bias @ weight) / (bias @ bias) * weights.sum()
    counts = counts_of(sums, weights, SUM_ERROR)
    left = weight - torch.outer(bias, weights @ counts) / weights.sum()
    residual = float(torch.linalg.matrix_norm(left) / torch.linalg.matrix_norm(weight))
    return Frames(frames=counts, coefficients=rows.T, rank=1, residual=residual)


def _summed(view: ServerView, replay: Replay, number: int) -> Tensor | None:
    """Return ``sum_f W x_f`` over a batch's frames, from the running mean that the client sent, or ``None``."""
    norm, _ = norms(view)
    name, layer = f"{norm}.running_mean", replay.norm
    sent, received = view.exchange.sent.get(name), view.exchange.received.get(name)
    if view.knowledge.norm_statistics != "known" or view.knowledge.steps != 1 or layer is None or not layer.momentum:
        return None
    if sent is None or received is None:
        return None
    mean = sent.double() + (received.double() - sent.double()) / layer.momentum
    return number * (mean - (0.0 if replay.bias is None else replay.bias.double()))


def _currents(replay: Replay, frames: Frames, orders: Sequence[Tensor], steps: int) -> Tensor:
    """Return the first layer's outputs for samples whose frames are in some order, ``[T, N, outputs]``."""
    samples = frames.frames.new_zeros(steps, len(orders), frames.frames.shape[1])
    for place, order in enumerate(orders):
        samples[: len(order), place] = frames.frames[order]
    return replay.currents(samples)


@torch.no_grad()
def _labels(view: ServerView, found: Arrays, replay: Replay, frames: Frames, orders: Sequence[Tensor]) -> Tensor:
    """Return the labels of the samples, in no order: from the last layer and the probabilities of what was found."""
    if view.labels is not None:
        return view.labels
    last, count = last_linear(view.model), len(orders)
    if count == 1 or f"{last}.bias" not in found:
        return single_label(found[f"{last}.weight"]).repeat(count)
    currents = _currents(replay, frames, orders, view.input_shape[0])
    with torch.enable_grad():
        gradient = replay.slope(currents, f"{last}.bias", found[f"{last}.bias"]) / (view.knowledge.steps or 1)
    probabilities = replay.logits(currents).softmax(1).mean(0)
    expected = probabilities.repeat(len(probabilities), 1)  # of the batch itself, whatever its classes
    return batch_labels(Evidence(gradient=gradient, expected=expected), count)


def _replayed(
    view: ServerView, found: Arrays, replay: Replay, frames: Frames, orders: list[Tensor], labels: Tensor
) -> tuple[list[Tensor], Tensor]:
    """Return the orders that the network's own gradient tells, and the label of each sample."""
    last, steps, count = last_linear(view.model), view.input_shape[0], len(orders)
    neurons = next(iter(replay.model.neurons.values()))
    leak = neurons.neuron.leak
    decay = 1.0 if leak is None else float(leak)
    own = [int(label) for label in labels]
    candidates = labels.unique()  # type: ignore[no-untyped-call]
    for _ in range(REPEATS if count > 1 else 1):
        before = [order.tolist() for order in orders]
        currents = _currents(replay, frames, orders, steps)
        with torch.no_grad():
            probabilities = replay.logits(currents).softmax(1)
        for place, order in enumerate(orders):
            if not len(order):
                continue
            wanted = nn.functional.one_hot(candidates, probabilities.shape[1])
            slopes = (probabilities[place] - wanted) / count
            if count == 1 and f"{last}.bias" in found:
                slopes = replay.slope(currents, f"{last}.bias", found[f"{last}.bias"])[None]
            rank, which, _ = in_order(replay, frames.frames[order], frames.coefficients[:, order], slopes, decay, steps)
            orders[place], own[place] = order[rank], int(candidates[which])
        if before == [order.tolist() for order in orders]:
            break
    return orders, torch.tensor(own)


def _reconstruction(view: ServerView, samples: Tensor, labels: Tensor, miss: float) -> Reconstruction:
    found = samples.nan_to_num(0, 0, 0).float()
    return Reconstruction(images=found, labels=labels, objective=miss, curve=((0, miss),), trail=(found,))
