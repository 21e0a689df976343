"""What thresholds say of a client's calibration images without any image being reconstructed.

A threshold of :mod:`snnfl.conversion.thresholds` is a multiple of one activation, the largest of its layer or channel
over all calibration images. So the image that has it can be recognised, and no non-member may exceed it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, vmap

from snnfl.attacks.calibration import activations, converted_network, differentiable_thresholds
from snnfl.attacks.networks import soft_cross_entropy
from snnfl.attacks.problem import Problem
from snnfl.threat import ServerView, ThreatModelError

SETS = 100
"""Sets of public images that are converted to learn what thresholds say of a set."""

AT_ONCE = 100
"""Images whose activations or gradients are in memory together."""

RIDGE = 1e-3
"""Of the regression, in units of the features' variance times the number of sets."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Properties:
    """What is said of a set of images.

    Attributes:
        brightness: Mean of all pixels in [0, 1].
        contrast: Their standard deviation.
        shares: Of each class, ``[classes]``; empty where public images have no labels.
    """

    brightness: float
    contrast: float
    shares: Tensor


def fingerprint_distances(view: ServerView, images: Tensor) -> Tensor:
    """Return how far each image is from being one that some threshold is a multiple of, ``[M]``: 0 for these alone.

    Of the smallest error over thresholds ``theta`` and multiples ``f`` that the conversion tries,
    ``|theta / (f a) - 1|`` with ``a`` the image's largest activation. A conversion of the image alone needs no truth.

    Args:
        view: Of an S-run, thresholds granted.
        images: Candidates, normalised.

    Raises:
        ThreatModelError: If the thresholds are denied, or are percentiles, which are between two activations.
    """
    thresholds = _thresholds(view)
    graph, conversion, folded = converted_network(view)
    if conversion.thresholds == "percentile":
        raise ThreatModelError("a percentile is no multiple of one image's activation")
    tried = 1 if conversion.thresholds == "layer_max" else conversion.candidates
    factors = 1 - 0.01 * torch.arange(tried, dtype=torch.float64)
    per_channel, found = conversion.thresholds == "channel_mmse", list[Tensor]()
    for part in torch.split(images, AT_ONCE):
        nearest = torch.full((len(part),), torch.inf, dtype=torch.float64)
        for (_, value), theta in zip(activations(graph, folded, part), thresholds, strict=True):
            rows = value.flatten(2).amax(2) if per_channel and value.dim() > 2 else value
            largest = rows.double() if per_channel else value.flatten(1).amax(1, keepdim=True).double()
            ratio = theta.double() / largest.clamp_min(1e-30)
            index = ((1 - ratio) * 100).nan_to_num(0.0).round().clamp(0, tried - 1).long()
            nearest = torch.minimum(nearest, (ratio / factors[index] - 1).abs().nan_to_num(torch.inf).amin(1))
        found.append(nearest)
    return torch.cat(found)


def gradient_cosines(problem: Problem, images: Tensor, labels: Tensor) -> Tensor:
    """Return the cosine of each image's gradient with the update, ``[M]``: larger for members, of any update.

    Args:
        problem: Laid out of the update.
        images: Candidates, normalised.
        labels: Of them.
    """
    names = tuple(problem.target)
    fixed = {name: array for name, array in problem.arrays.items() if name not in names}
    targets = torch.nn.functional.one_hot(labels, problem.classes).float()
    update = torch.cat([problem.gradient(name).flatten() for name in names])

    def loss(arrays: dict[str, Tensor], image: Tensor, target: Tensor) -> Tensor:
        return soft_cross_entropy(problem.network({**fixed, **arrays}, image[None]), target[None])

    arrays, found = {name: problem.arrays[name] for name in names}, list[Tensor]()
    for part, wanted in zip(torch.split(images, AT_ONCE), torch.split(targets, AT_ONCE), strict=True):
        slopes = vmap(grad(loss), in_dims=(None, 0, 0))(arrays, part, wanted)
        rows = torch.cat([slopes[name].flatten(1) for name in names], dim=1)
        found.append(torch.cosine_similarity(rows, update[None], dim=1))
    return torch.cat(found)


def infer_properties(view: ServerView, count: int, generator: torch.Generator) -> Properties:
    """Infer properties of the calibration images by what thresholds say of sets of public ones.

    Sets of uneven classes are converted as the client converts, and their properties regressed on the logarithms of
    their thresholds.

    Args:
        view: Of an S-run, thresholds granted, with labelled public images.
        count: Images of a set.
        generator: Draws the sets.

    Raises:
        ThreatModelError: If thresholds or labelled public images are missing.
    """
    thresholds, public = _thresholds(view), view.public
    if public is None or public.labels is None:
        raise ThreatModelError("learns from labelled public images, which the threat model denies")
    graph, conversion, folded = converted_network(view)
    classes = int(public.labels.max()) + 1
    features, wanted = list[Tensor](), list[Tensor]()
    for _ in range(SETS):
        drawn = public_set(public.labels, classes, count, generator)
        images = public.inputs[drawn]
        found = [
            differentiable_thresholds(value, conversion.calibration_length, conversion, ceiling=node.ceiling)
            for node, value in activations(graph, folded, images)
        ]
        features.append(torch.cat(found).log())
        wanted.append(described(view.pixels(images), public.labels[drawn], classes))
    seen = torch.cat(list(thresholds)).float().log()
    if not all(bool(torch.isfinite(each).all()) for each in (*features, seen)):
        raise ThreatModelError("the update's weights overflow, so that no set of images has finite thresholds")
    values = _regressed(torch.stack(features), torch.stack(wanted), seen)
    return Properties(brightness=float(values[0]), contrast=float(values[1]), shares=values[2:])


def described(pixels: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return brightness, contrast and the classes' shares of a set of images, ``[2 + classes]``."""
    shares = torch.bincount(labels, minlength=classes).float() / len(labels)
    return torch.cat([torch.stack([pixels.mean(), pixels.std()]), shares])


def public_set(labels: Tensor, classes: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw indices of images of uneven classes, whose shares are proportional to squares of exponential draws."""
    weights = torch.rand(classes, generator=generator).clamp_min(1e-9).log().square()
    present = torch.bincount(labels, minlength=classes).clamp_min(1)
    return torch.multinomial((weights / present)[labels], count, generator=generator)


def _thresholds(view: ServerView) -> Sequence[Tensor]:
    if not view.knowledge.thresholds or not view.format.threshold_names:
        raise ThreatModelError("needs thresholds, which the threat model denies or the update lacks")
    return [view.exchange.received[name] for name in view.format.threshold_names]


def _regressed(features: Tensor, wanted: Tensor, seen: Tensor) -> Tensor:
    """Predict by ridge regression on standardised features."""
    mean, spread = features.mean(0), features.std(0).clamp_min(1e-9)
    rows, centre = ((features - mean) / spread).double(), wanted.mean(0).double()
    penalty = RIDGE * len(rows) * torch.eye(rows.shape[1], dtype=torch.float64)
    solved = torch.linalg.solve(rows.T @ rows + penalty, rows.T @ (wanted.double() - centre))
    predicted: Tensor = centre + ((seen - mean) / spread).clamp(-5, 5).double() @ solved
    return predicted.float()
