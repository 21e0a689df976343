"""The images of one step from the first layer's gradient alone, without optimisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from snnfl.attacks import biases
from snnfl.attacks.compressed import sent_alone
from snnfl.attacks.exact import MOST_IMAGES, separate
from snnfl.attacks.labels import infer_labels
from snnfl.attacks.local import cosine_distance, simulate
from snnfl.attacks.networks import normalised_layers, relu_behind
from snnfl.attacks.problem import Problem, inexact, problem_of
from snnfl.attacks.reconstruction import Reconstruction
from snnfl.attacks.registry import Budget, register
from snnfl.attacks.rescaling import factors_and_labels, labels_of, without
from snnfl.threat import ServerView

GRID = 64
"""Scales that are tried before the best one is refined."""


def _reads_images(view: ServerView) -> str | None:
    kinds = nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d
    leaves = [(name, module) for name, module in view.model.named_modules() if not list(module.children())]
    position, first = next((index, module) for index, (_, module) in enumerate(leaves) if isinstance(module, kinds))
    if not isinstance(first, nn.Linear) or first.in_features != math.prod(view.input_shape):
        return "the first layer isn't linear on the image itself"
    normalised, count = normalised_layers(view.model), view.knowledge.images
    if count == 1:
        if normalised and not {"norm_statistics", "update_statistics"} <= view.knowledge.facts:
            return "compares gradients in evaluation mode, which takes update_statistics"
        return None
    behind = [module for _, module in leaves[position + 1 : position + 2]]
    return _separable(view, leaves[position][0], first, bool(behind) and isinstance(behind[0], nn.ReLU))


def _separable(view: ServerView, name: str, layer: nn.Linear, defined: bool) -> str | None:
    """Say why the images of a batch cannot be told apart by the zeros of a ReLU, or return ``None``."""
    known = view.knowledge
    if normalised_layers(view.model):
        return (
            "tells the images of a batch apart one by one, and batch normalisation mixes them; use "
            "inverting_statistics, or reconverted_statistics of spiking networks"
        )
    if not defined and not relu_behind(view.model, name, view.input_shape):
        return "tells the images of a batch apart by a ReLU's zeros, and no ReLU is behind the first layer"
    if known.steps != 1:
        return f"solves one step's gradient for a batch, the client took {known.steps}"
    if layer.bias is None:
        return "the factors of a batch's images take a bias in the first layer"
    if known.images is not None and known.images > MOST_IMAGES:
        return f"tells at most {MOST_IMAGES} images apart in a reasonable time, the client has {known.images}"
    if known.images is not None and known.images > layer.out_features:
        return f"the first layer has {layer.out_features} outputs, too few for a batch of {known.images} images"
    if not defined and (view.format.hides_biases or not known.biases):
        return "without the biases takes an nn.ReLU that is defined behind the first layer"
    return inexact(view)


@register(
    "closed_form",
    source="Geiping et al. 2020, proposition 3.1; rank 1 without the bias gradient; batches: Dimitrov et al. 2024",
    needs=("architecture", "loss", "images", "batch_size", "epochs"),
    against=("plain", "converted"),
    requires=_reads_images,
)
def closed_form(views: Sequence[ServerView], budget: Budget, generator: torch.Generator) -> list[Reconstruction]:
    """Divide the first layer's weight gradient by its bias gradient, or take its one direction; a batch by zeros.

    ``dL/dW = d x^T`` and ``dL/db = d``, so ``x = sum_i db_i dW_i / sum_i db_i^2``: exact, for known weight decay is
    taken out of both before. Of a quantised upload that is the least squares' estimate; of a sparse one each pixel is
    estimated by the entries that were sent.
    Without a bias gradient, as in an S-update or where biases are denied, the first right singular vector of ``dL/dW``
    is ``x`` up to a factor, which is the one whose gradient of the whole network is nearest to the observed one.
    Images of a batch are separated by the zeros of the ReLU behind the layer (:mod:`snnfl.attacks.exact`), and
    ``dL/db = sum_n d_n`` tells each one's factor.
    """
    return [_solve(view, generator) for view in views]


def _solve(view: ServerView, generator: torch.Generator) -> Reconstruction:
    guess = biases.inferred(view) if view.format.hides_biases else None if view.knowledge.biases else biases.zero(view)
    problem = problem_of(view, norm_mode="eval" if normalised_layers(view.model) else None, guesses=guess)
    labels = infer_labels(view, problem, generator)
    layer = next(name for name, module in view.model.named_modules() if isinstance(module, nn.Linear))
    if problem.count > 1:
        return _solve_batch(view, problem, layer, labels, generator)
    weight = problem.gradient(f"{layer}.weight").double()
    if f"{layer}.bias" in problem.target:
        bias = problem.gradient(f"{layer}.bias").double()
        told = weight != 0 if problem.sparse else torch.ones_like(weight, dtype=torch.bool)
        image = (bias @ weight / (bias.square() @ told.double()).clamp_min(1e-300)).view(1, *problem.input_shape)
        return _reconstruction(problem, image, labels)
    _, _, directions = torch.linalg.svd(weight, full_matrices=False)
    return _scaled(problem, directions[0].view(1, *problem.input_shape), labels)


def _solve_batch(
    view: ServerView, problem: Problem, layer: str, guessed: Tensor, generator: torch.Generator
) -> Reconstruction:
    """Separate a batch's images by the zeros of their slopes; of those that aren't found return the mean colour."""
    exact, scaled = _exact(problem), view.knowledge.scaled
    found = separate(exact.gradient(f"{layer}.weight"), problem.count, generator)
    images = torch.zeros(problem.count, *problem.input_shape, dtype=torch.float64)
    if found is None:
        return _reconstruction(problem, images, guessed)
    if f"{layer}.bias" in problem.target:
        shares = torch.linalg.lstsq(found.slopes, exact.gradient(f"{layer}.bias")[:, None]).solution[:, 0]
        factors = 1 / torch.where(shares.abs() > 0, shares, 1.0)
        labels = labels_of(exact, layer, found, factors, guessed, scaled=scaled)
    else:
        factors, labels = factors_and_labels(view.model, exact, layer, found, guessed, scaled=scaled)
    images[: len(factors)] = (factors[:, None] * found.inputs).view(-1, *problem.input_shape)
    return _reconstruction(problem, images, torch.cat([labels, without(guessed, labels)]))


def _scaled(problem: Problem, direction: Tensor, labels: Tensor) -> Reconstruction:
    """Find the factor of a direction: the one of the smallest gradient distance, first on a grid, then refined."""
    from scipy.optimize import minimize_scalar  # half a second to import

    reach = float(torch.maximum(problem.low.abs().max(), problem.high.abs().max()) * math.sqrt(direction.numel()))

    def distance(factor: float) -> float:
        return _distance(problem, factor * direction, labels)

    factors = [reach * step / GRID for step in range(-GRID, GRID + 1) if step]
    best = min(factors, key=distance)
    width = reach / GRID
    found = minimize_scalar(distance, bounds=(best - width, best + width), method="bounded", options={"xatol": 1e-9})
    return _reconstruction(problem, float(found.x) * direction, labels)


def _reconstruction(problem: Problem, image: Tensor, labels: Tensor) -> Reconstruction:
    value = _distance(problem, image, labels)
    found = image.float()
    return Reconstruction(images=found, labels=labels, objective=value, curve=((0, value),), trail=(found,))


def _distance(problem: Problem, image: Tensor, labels: Tensor) -> float:
    """Return the cosine distance of an image's gradient to the observed one, in double precision."""
    exact = _exact(problem)
    targets = nn.functional.one_hot(labels, problem.classes).double()
    found = simulate(exact.network, exact.arrays, tuple(exact.target), image.double(), targets, problem.local)
    return float(cosine_distance(sent_alone(found, exact.target) if problem.sparse else found, exact.target))


def _exact(problem: Problem) -> Problem:
    """Return a problem in double precision."""
    arrays, target = (
        {name: array.double() for name, array in side.items()} for side in (problem.arrays, problem.target)
    )
    return replace(problem, arrays=arrays, target=target)
