"""Images by the features that a convolutional network made of them, which its first linear layer tells exactly."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import grad_and_value, vmap
from torch.nn import functional

from snnfl.attacks import biases
from snnfl.attacks.exact import MOST_IMAGES, separate
from snnfl.attacks.labels import infer_labels
from snnfl.attacks.local import total_variation
from snnfl.attacks.matching import IMAGES, Matching, PreparedMatching, choose, lanes, repeat
from snnfl.attacks.networks import Arrays, Network, normalised_layers, relu_behind
from snnfl.attacks.problem import Problem, inexact, of_equal_arrays, problem_of
from snnfl.attacks.public_regression import LEAST, MOST_PIXELS, Expected, expected, others
from snnfl.attacks.reconstruction import AttackError, Reconstruction
from snnfl.attacks.registry import Budget, register
from snnfl.attacks.selection import Choice, Rehearsal, rehearsals
from snnfl.threat import ServerView

UNLIKELY = (0.1, 0.01, 0.001)
"""Weights of what is unlikely by public images, beside the features' distance: what is tried."""

CHOICE = "public images regressed on features"
"""As reports show it."""

NEAR = Choice(total_variation_weight=0.0, learning_rate=0.05)
"""Of a descent that starts at what public images say."""


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
    """Find the inputs of the first linear layer exactly, then likely images with those features.

    A single image's features are the one direction of that layer's gradient, a batch's are separated by a ReLU's zeros
    (:mod:`snnfl.attacks.exact`); each up to a factor, which a cosine distance doesn't see. Where that fails, matched
    is the direction that the gradient has most of. Likely is what has little total variation; or what public images,
    regressed on their own features, say, where more of others is found so.
    """
    problems = [_problem(view) for view in views]
    labels = [infer_labels(view, problem, generator) for view, problem in zip(views, problems, strict=True)]
    layer, _, _ = _first_linear(views[0].model)
    made = inputs_of(views[0].model, layer, views[0].knowledge.norm_mode or "train")
    descent = partial(_descent, layer, made)
    choice = choose(problems, Matching(), budget, generator, descent)
    found = descent(problems, labels, Matching(), budget, generator, [choice] * len(problems)).run()
    if problems[0].public is None or normalised_layers(views[0].model):
        return found
    for group in of_equal_arrays(problems):
        own = [problems[index] for index in group]
        likely = _likely(layer, made, own, [labels[index] for index in group], choice, budget, generator)
        for index, item in zip(group, likely, strict=False):
            found[index] = item
    return found


def _problem(view: ServerView) -> Problem:
    guess = biases.likeliest(view) if view.format.hides_biases else None if view.knowledge.biases else biases.zero(view)
    return problem_of(view, guesses=guess)


def _likely(
    layer: str,
    made: Network,
    problems: Sequence[Problem],
    labels: Sequence[Tensor],
    choice: Choice,
    budget: Budget,
    generator: torch.Generator,
) -> list[Reconstruction]:
    """Start from public images regressed on their features, and stay likely; nothing where rehearsals find less so.

    Args:
        layer: Name of the first linear one.
        made: Makes what that is given.
        problems: Of equal arrays.
        labels: Of each one's images.
        choice: What the rival takes, which goes by the total variation.
        budget: Iterations, of rehearsals, too.
        generator: Draws rehearsals and examples.
    """
    first, rehearsed = problems[0], rehearsals(problems, generator)
    if not rehearsed or first.public is None or first.low.expand(first.input_shape).numel() > MOST_PIXELS:
        return []
    free = others(first.public.inputs, [each.images for each in rehearsed])
    if int(free.sum()) < LEAST:
        return []
    trials = [each.problem for each in rehearsed]
    features = [_features(problem, layer, generator) for problem in (*problems, *trials)]

    def given(samples: Tensor, which: Tensor) -> Tensor:
        own = made(first.arrays, samples).flatten(1).nan_to_num(0.0, 0.0, 0.0)  # with biases as a client sent them
        return functional.normalize(own, dim=1, eps=1e-30)

    likely = expected(first.public.inputs[free], given, torch.cat(features), generator)
    images = len(problems) * first.count
    of_victims, of_public = (replace(likely, samples=part) for part in likely.samples.tensor_split([images]))
    rehearse = partial(_matching_features, made, features[len(problems) :], trials, [each.labels for each in rehearsed])
    once = replace(budget, restarts=1)
    rival = sum(map(_psnr, rehearsed, rehearse(Matching(), once, generator, [choice] * len(trials)).run()))
    tried = {}
    for weight in UNLIKELY:
        found = rehearse(Matching(), once, generator, [NEAR] * len(trials), of_public, weight).run()
        tried[weight] = sum(map(_psnr, rehearsed, found)), max(each.objective for each in found)
    best = max(UNLIKELY, key=lambda weight: tried[weight][0])
    reached, left = tried[best]
    if reached <= rival:
        return []
    match = partial(_matching_features, made, features[: len(problems)], problems, labels)
    near = replace(NEAR, rehearsed=left)
    items = match(Matching(), once, generator, [near] * len(problems), of_victims, best).run()
    return [replace(item, choice=f"{CHOICE}, weight {best:g}") for item in items]


def _psnr(each: Rehearsal, found: Reconstruction) -> float:
    return each.psnr(found.images)


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
    wanted = [_features(problem, layer, generator) for problem in problems]
    return _matching_features(made, wanted, problems, labels, matching, budget, generator, choices)


def _matching_features(
    made: Network,
    wanted: Sequence[Tensor],
    problems: Sequence[Problem],
    labels: Sequence[Tensor],
    matching: Matching,
    budget: Budget,
    generator: torch.Generator,
    choices: Sequence[Choice],
    likely: Expected | None = None,
    unlikely: float = 0.0,
) -> PreparedMatching:
    """Prepare to match features ``[B, in]`` of each problem: smooth images from noise, or likely ones from near."""
    first, starts = problems[0], budget.restarts
    arrays, in_dims = lanes([problem.arrays for problem in problems], starts)
    weights = torch.tensor([choice.total_variation_weight for choice in choices]).repeat_interleave(starts)
    shape = (len(problems) * starts, first.count, *first.input_shape)
    start = torch.randn(shape, generator=generator).to(first.low) if likely is None else likely.samples.view(shape)

    def objective(found: Arrays, fixed: Arrays, features: Tensor, weight: Tensor, near: Tensor) -> Tensor:
        own = made(fixed, found[IMAGES]).flatten(1)
        distance = (1 - torch.cosine_similarity(own, features, dim=1, eps=1e-12)).mean()
        if likely is not None:
            return distance + unlikely * likely.cost(found[IMAGES], near).mean()
        return distance + weight * total_variation(found[IMAGES])

    slope = vmap(grad_and_value(objective), in_dims=(0, in_dims, 0, 0, 0))
    features = repeat(wanted, starts)
    return PreparedMatching(
        slope=lambda variables: slope(variables, arrays, features, weights, start),
        start={IMAGES: torch.clamp(start, first.low, first.high)},
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
