"""Images by the features that a convolutional network made of them, which its first linear layer tells exactly."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import grad_and_value, vmap

from snnfl.attacks import biases
from snnfl.attacks.exact import MOST_IMAGES, separate
from snnfl.attacks.labels import infer_labels
from snnfl.attacks.local import total_variation
from snnfl.attacks.matching import IMAGES, Matching, PreparedMatching, choose, lanes, repeat
from snnfl.attacks.networks import Arrays, Network, normalised_layers, relu_behind
from snnfl.attacks.problem import Problem, inexact, problem_of
from snnfl.attacks.reconstruction import AttackError, Reconstruction
from snnfl.attacks.registry import Budget, register
from snnfl.attacks.selection import Choice
from snnfl.threat import ServerView


def _first_linear(model: nn.Module) -> tuple[str, nn.Linear, nn.Module | None]:
    """Return name and module of the first linear layer, and the module that is defined behind it."""
    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    for (name, module), (_, behind) in zip(leaves, [*leaves[1:], ("", None)], strict=True):
        if isinstance(module, nn.Linear):
            return name, module, behind
    raise AttackError("the model has no linear layer")


def _tells_features(view: ServerView) -> str | None:
    """Say why a view's first linear layer doesn't tell features, or return ``None``."""
    if not any(isinstance(module, nn.Conv1d | nn.Conv2d) for module in view.model.modules()):
        return "inverts what convolutions make of an image, and the model has none; use closed_form"
    name, layer, behind = _first_linear(view.model)
    known = view.knowledge
    if known.steps != 1:
        return f"solves one step's gradient, the client took {known.steps}"
    if known.images == 1:
        return None
    if known.clients != 1 and normalised_layers(view.model):
        return "makes features of one batch, and several clients have each normalised its own"
    if not isinstance(behind, nn.ReLU) and not relu_behind(view.model, name, view.input_shape):
        return "tells a batch's features apart by a ReLU's zeros, and no ReLU is behind the first linear layer"
    if known.images is not None and known.images > MOST_IMAGES:
        return f"tells at most {MOST_IMAGES} images apart in a reasonable time, the client has {known.images}"
    if known.images is not None and known.images > layer.out_features:
        return f"the first linear layer has {layer.out_features} outputs, too few for a batch of {known.images} images"
    return inexact(view)


@register(
    "feature_inversion",
    source="Dimitrov et al. 2024 for the features, Mahendran & Vedaldi 2015 for their inversion",
    needs=("architecture", "loss", "images", "batch_size", "epochs", "norm_mode"),
    against=("plain", "converted"),
    requires=_tells_features,
)
def feature_inversion(views: Sequence[ServerView], budget: Budget, generator: torch.Generator) -> list[Reconstruction]:
    """Find the inputs of the first linear layer exactly, then images with those features and little total variation.

    A single image's features are the one direction of that layer's gradient, a batch's are separated by a ReLU's zeros
    (:mod:`snnfl.attacks.exact`); each up to a factor, which a cosine distance doesn't see. Where that fails, matched
    is the direction that the gradient has most of.
    """
    problems = [_problem(view) for view in views]
    labels = [infer_labels(view, problem, generator) for view, problem in zip(views, problems, strict=True)]
    layer, _, _ = _first_linear(views[0].model)
    made = inputs_of(views[0].model, layer, views[0].knowledge.norm_mode or "train")
    descent = partial(_descent, layer, made)
    choice = choose(problems, Matching(), budget, generator, descent)
    return descent(problems, labels, Matching(), budget, generator, [choice] * len(problems)).run()


def _problem(view: ServerView) -> Problem:
    guess = biases.inferred(view) if view.format.hides_biases else None if view.knowledge.biases else biases.zero(view)
    return problem_of(view, guesses=guess)


def _descent(
    layer: str,
    made: Network,
    problems: Sequence[Problem],
    labels: Sequence[Tensor],
    matching: Matching,
    budget: Budget,
    generator: torch.Generator,
    choices: Sequence[Choice],
) -> PreparedMatching:
    """Prepare to match the features that ``made`` makes to those that the layer's gradient tells."""
    first, starts = problems[0], budget.restarts
    arrays, in_dims = lanes([problem.arrays for problem in problems], starts)
    wanted = repeat([_features(problem, layer, generator) for problem in problems], starts)
    weights = torch.tensor([choice.total_variation_weight for choice in choices]).repeat_interleave(starts)

    def objective(found: Arrays, fixed: Arrays, features: Tensor, weight: Tensor) -> Tensor:
        own = made(fixed, found[IMAGES]).flatten(1)
        distance = (1 - torch.cosine_similarity(own, features, dim=1, eps=1e-12)).mean()
        return distance + weight * total_variation(found[IMAGES])

    slope = vmap(grad_and_value(objective), in_dims=(0, in_dims, 0, 0))
    noise = torch.randn(len(wanted), first.count, *first.input_shape, generator=generator).to(first.low)
    return PreparedMatching(
        slope=lambda variables: slope(variables, arrays, wanted, weights),
        start={IMAGES: torch.clamp(noise, first.low, first.high)},
        box=(first.low, first.high),
        labels=labels,
        choices=choices,
        matching=matching,
        budget=budget,
    )


def _features(problem: Problem, layer: str, generator: torch.Generator) -> Tensor:
    """Return the layer's inputs, ``[B, in]``, each up to a positive factor.

    The bias's gradient is the sum of the slopes, so it tells the sign of each one, and of the input beside it. Without
    it the sign is that of most inputs, which is right behind ReLU.
    """
    gradient = problem.gradient(f"{layer}.weight").double()
    found = separate(gradient, problem.count, generator)
    main = torch.linalg.svd(gradient.nan_to_num(), full_matrices=False)[2][:1]
    sides, features = main.sum(1), main[:0] if found is None else found.inputs
    shares = features.sum(1)
    if (bias := f"{layer}.bias") in problem.target:
        told = problem.gradient(bias).double().nan_to_num()
        sides = main @ (gradient.nan_to_num().T @ told)
        if found is not None:
            shares = torch.linalg.lstsq(found.slopes, told[:, None]).solution[:, 0]
    missing = problem.count - len(features)
    features = torch.cat([features, main.expand(missing, -1)])
    signs = torch.where(torch.cat([shares, sides.expand(missing)]) < 0, -1.0, 1.0)
    features = signs[:, None] * features
    unit: Tensor = features / features.norm(dim=1, keepdim=True).clamp_min(1e-300)
    return unit.float()


def inputs_of(model: nn.Module, layer: str, norm_mode: str) -> Network:
    """Return what one layer is given, as a function of the model's arrays and of inputs, ``[N, in]``.

    Args:
        model: Of one tensor argument. It isn't changed.
        layer: Name of the layer.
        norm_mode: As of :func:`~snnfl.attacks.networks.network_of`.
    """
    template = copy.deepcopy(model).eval()
    if norm_mode == "train" and normalised_layers(template):
        template = torch.func.replace_all_batch_norm_modules_(template)
    names = {name for name, _ in [*template.named_parameters(), *template.named_buffers()]}
    given: list[Tensor] = []
    template.get_submodule(layer).register_forward_pre_hook(lambda module, arguments: given.append(arguments[0]))

    def inputs(arrays: Mapping[str, Tensor], images: Tensor) -> Tensor:
        given.clear()
        torch.func.functional_call(template, {k: array for k, array in arrays.items() if k in names}, (images,))
        return given.pop()

    return inputs
