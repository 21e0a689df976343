"""What an S-update's thresholds, which are functions of private images, say of these.

Whoever knows the network that a client converted computes its thresholds on any images. Of clients with no more images
than calibrate, these are the images that they trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.func import vmap

from snnfl.attacks.local import CONVERTED
from snnfl.attacks.problem import Problem, Thresholds
from snnfl.config import ConversionConfig
from snnfl.conversion.folding import unexplained_biases
from snnfl.conversion.thresholds import GRID, best_candidate
from snnfl.spiking import Spike, SpikingGraph
from snnfl.spiking.values import analog_value
from snnfl.threat import ServerView, ThreatModelError

CALIBRATION_WEIGHTS = (0.0, 0.01, 0.1, 1.0)
"""Weights of the thresholds' distance beside a cosine distance that are tried; zero leaves the thresholds out."""


KINDS = ("weight", "bias")


def differentiable_thresholds(
    activation: Tensor, steps: int, config: ConversionConfig, *, ceiling: float | None = None
) -> Tensor:
    """Return what :func:`~snnfl.conversion.thresholds.find_thresholds` finds, as ``torch.func`` can differentiate it.

    The MMSE threshold is one of the multiples ``1 - 0.01 i`` of the largest activation; which one is constant almost
    everywhere. So its derivative is that multiple of the largest activation's, and no approximation is needed.

    Args:
        activation: Of one layer, ``[N, C, *space]``, not negative.
        steps: Simulation length T.
        config: The kind of threshold and its options.
        ceiling: What no activation exceeds, of a clipped ReLU.

    Returns:
        Shape ``[1]``, or ``[C]`` for ``channel_mmse``.
    """
    found = _of_active(activation, steps, config)
    silent = found == 0
    alone = torch.full_like(found, min(1.0, ceiling or 1.0))
    return torch.where(silent, torch.where(silent.all(), alone, found.amax().expand_as(found)), found)


def _of_active(activation: Tensor, steps: int, config: ConversionConfig) -> Tensor:
    """Return the thresholds, zero where no activation is positive."""
    per_channel = config.thresholds == "channel_mmse"
    rows = activation.transpose(0, 1).flatten(1) if per_channel else activation.reshape(1, -1)
    largest = rows.amax(1)
    if config.thresholds == "percentile":
        level = _percentile(rows, config.percentile)
        return torch.where(level > 0, level, largest)
    if config.thresholds == "layer_max":
        return largest
    factors = 1 - 0.01 * torch.arange(config.candidates, dtype=rows.dtype, device=rows.device)
    return largest * factors[_best(rows.detach(), steps, config.candidates)]


def _best(rows: Tensor, steps: int, candidates: int) -> Tensor:
    """Return which of the candidates has the smallest mean squared error, of each row."""
    bins, largest = GRID * steps, rows.amax(1, keepdim=True).double()
    values = rows / torch.where(largest > 0, largest, torch.ones_like(largest)) * bins  # float64
    values = values.nan_to_num(0.0, 0.0, 0.0).clamp(0, bins)  # of hostile weights
    empty = torch.zeros(len(rows), bins + 1, dtype=torch.float64, device=rows.device)
    sums = [empty.scatter_add(1, values.long(), what) for what in (torch.ones_like(values), values)]
    count, total = (each.flip(1).cumsum(1).flip(1) for each in sums)
    best: Tensor = vmap(partial(best_candidate, candidates=candidates, steps=steps))(count, total)
    return best


def _percentile(rows: Tensor, percentile: float) -> Tensor:
    position = (rows.shape[1] - 1) * percentile / 100
    ordered, low = rows.sort(dim=1).values, int(position)
    high = min(low + 1, rows.shape[1] - 1)
    return ordered[:, low] + (ordered[:, high] - ordered[:, low]) * (position - low)


def thresholds_network(graph: SpikingGraph, config: ConversionConfig) -> Thresholds:
    """Return ``(arrays, images) -> the thresholds of each layer``, of a network that a client converts.

    Its folded arrays are those called :data:`~snnfl.attacks.local.CONVERTED`. A silent channel's threshold is zero.
    """

    def thresholds(arrays: Mapping[str, Tensor], images: Tensor) -> tuple[Tensor, ...]:
        folded = {n.removeprefix(CONVERTED): array for n, array in arrays.items() if n.startswith(CONVERTED)}
        values = (value for _, value in activations(graph, folded, images))
        return tuple(_of_active(value, config.calibration_length, config) for value in values)

    return thresholds


def activations(graph: SpikingGraph, folded: Mapping[str, Tensor], images: Tensor) -> Iterator[tuple[Spike, Tensor]]:
    """Yield what a network's ReLUs make of images, layer by layer: what a conversion finds thresholds of."""
    values, last = {graph.input: images}, graph.spikes[-1].name
    for node in graph.nodes:
        values[node.name] = analog_value(node, values, folded)
        if isinstance(node, Spike):
            yield node, values[node.name]
        if node.name == last:
            return


def converted_network(view: ServerView) -> tuple[SpikingGraph, ConversionConfig, dict[str, Tensor]]:
    """Return structure, options and folded arrays of the network that a client converted.

    Weights are those of the update; so are biases, where they aren't calibrated. A calibrated one is off by its shift,
    but for a layer whose only bias is that of the batch normalisation behind it, which the update tells.

    Raises:
        ThreatModelError: If there is no such network.
    """
    graph, conversion, received = view.format.graph, view.format.conversion, view.exchange.received
    if graph is None or conversion is None:
        raise ThreatModelError("the update is no converted network")
    folded = {f"{n.name}.{kind}": received[f"{n.name}.{kind}"].float() for n in graph.affines for kind in KINDS}
    folded |= {name: received[name].float() for name in graph.learned_thresholds}
    told = [node.name for node in graph.affines if node.norm is not None and not node.has_bias]
    if told and conversion.calibration in ("bias", "bias_potential"):
        left = unexplained_biases(graph, received, biases=False)
        folded |= {f"{name}.bias": folded[f"{name}.bias"] - left[f"{name}.bias"] for name in told}
    return graph, conversion, folded


def with_thresholds(view: ServerView, problem: Problem) -> Problem:
    """Add to a problem that the images' thresholds are to be those of the update, too."""
    graph, conversion, folded = converted_network(view)
    return replace(
        problem,
        arrays={**problem.arrays, **{f"{CONVERTED}{name}": array for name, array in folded.items()}},
        calibration=thresholds_network(graph, conversion),
        told=tuple(view.exchange.received[name].float() for name in view.format.threshold_names),
    )


def lacks_thresholds(view: ServerView) -> str | None:
    """Say why a view's thresholds aren't those of the images that the client trained on, or ``None`` if they are."""
    if view.format.conversion is None or view.format.graph is None or not view.format.threshold_names:
        return "the update has no thresholds"
    if view.format.graph.learned_thresholds:
        return "the thresholds are learned with the weights, and no function of calibration images"
    count, images = view.format.conversion.calibration_images, view.knowledge.images
    if images is not None and images > count:
        return f"the client calibrates with {count} of its {images} images, and nobody knows with which"
    return None


def thresholds_distance(found: Sequence[Tensor], told: Sequence[Tensor]) -> Tensor:
    """Return the mean over layers of ``|theta - theta*|^2 / |theta*|^2``.

    A channel that is silent on the calibration images has the largest threshold of the others, so of those that have
    it only the largest one is compared.
    """
    return torch.stack([_relative(*pair) for pair in zip(found, told, strict=True)]).mean()


def _relative(found: Tensor, told: Tensor) -> Tensor:
    largest = told.amax()
    others = told < largest
    error = torch.where(others, found - told, torch.zeros_like(told)).square().sum() + (found.amax() - largest).square()
    norm = torch.where(others, told, torch.zeros_like(told)).square().sum() + largest.square()
    return error / norm.clamp_min(1e-30)
