"""The image of one victim from the first layer's gradient alone, without optimisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from snnfl.attacks import biases
from snnfl.attacks.labels import infer_labels
from snnfl.attacks.local import cosine_distance, simulate
from snnfl.attacks.networks import normalised_layers
from snnfl.attacks.problem import Problem, problem_of
from snnfl.attacks.reconstruction import Reconstruction
from snnfl.attacks.registry import Budget, register
from snnfl.threat import ServerView

GRID = 64
"""Scales that are tried before the best one is refined."""


def _reads_images(view: ServerView) -> str | None:
    kinds = nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d
    layers = [module for module in view.model.modules() if isinstance(module, kinds)]
    if not isinstance(layers[0], nn.Linear) or layers[0].in_features != math.prod(view.input_shape):
        return "the first layer isn't linear on the image itself"
    if view.knowledge.images != 1:
        return "reconstructs one image, the round had more or an unknown number"
    if normalised_layers(view.model) and not {"norm_statistics", "update_statistics"} <= view.knowledge.facts:
        return "compares gradients in evaluation mode, which takes update_statistics"
    return None


@register(
    "closed_form",
    source="Geiping et al. 2020, proposition 3.1; rank 1 without the bias gradient",
    needs=("architecture", "loss", "images", "batch_size", "epochs"),
    against=("plain", "converted"),
    requires=_reads_images,
)
def closed_form(views: Sequence[ServerView], budget: Budget, generator: torch.Generator) -> list[Reconstruction]:
    """Divide the first layer's weight gradient by its bias gradient, or take its only direction.

    ``dL/dW = d x^T`` and ``dL/db = d``, so ``x = sum_i db_i dW_i / sum_i db_i^2``: exact, for known weight decay is
    taken out of both before.
    Without a bias gradient, as in an S-update or where biases are denied, the first right singular vector of ``dL/dW``
    is ``x`` up to a factor, which is the one whose gradient of the whole network is nearest to the observed one.
    """
    return [_solve(view, generator) for view in views]


def _solve(view: ServerView, generator: torch.Generator) -> Reconstruction:
    guess = biases.inferred(view) if view.format.hides_biases else None if view.knowledge.biases else biases.zero(view)
    problem = problem_of(view, norm_mode="eval" if normalised_layers(view.model) else None, guesses=guess)
    labels = infer_labels(view, problem, generator)
    layer = next(name for name, module in view.model.named_modules() if isinstance(module, nn.Linear))
    weight = problem.gradient(f"{layer}.weight").double()
    if f"{layer}.bias" in problem.target:
        bias = problem.gradient(f"{layer}.bias").double()
        image = (bias @ weight / bias.square().sum().clamp_min(1e-300)).view(1, *problem.input_shape)
        return _reconstruction(problem, image, labels)
    _, _, directions = torch.linalg.svd(weight, full_matrices=False)
    return _scaled(problem, directions[0].view(1, *problem.input_shape), labels)


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
    exact = replace(problem, arrays={name: array.double() for name, array in problem.arrays.items()})
    wanted = {name: array.double() for name, array in problem.target.items()}
    targets = nn.functional.one_hot(labels, problem.classes).double()
    found = simulate(exact.network, exact.arrays, tuple(wanted), image, targets, problem.local)
    return float(cosine_distance(found, wanted))
