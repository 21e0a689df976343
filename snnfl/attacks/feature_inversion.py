"""Images by the features that a convolutional network made of them, which its first linear layer tells exactly."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from snnfl.attacks.public_regression import LEAST, MOST_EXAMPLES, MOST_PIXELS, Expected, expected, others
from snnfl.attacks.reconstruction import AttackError, Reconstruction
from snnfl.attacks.registry import Budget, register
from snnfl.attacks.selection import Choice, rehearsals
from snnfl.threat import ServerView

UNLIKELY = (1.0, 0.1, 0.01, 0.001)
"""Weights of what is unlikely by public images, beside the features' distance: what is tried."""

REGRESSED = "public images regressed on features"
"""As reports show it."""

STEP = Choice(total_variation_weight=0.0, learning_rate=0.05)
"""Of a descent from what public images say, without the total variation."""

FEW = 1000
"""Public images by which a guess of biases is judged."""

LEAST_EXAMPLES = 2000
"""Of a regression, where each of many clients needs its own."""

SPREAD = 0.1
"""Of the starts of a batch's images, some of which may be told alike."""


@dataclass(frozen=True, eq=False)
class Told:
    """A client's update, or a rehearsed one, and what it tells.

    Attributes:
        problem: To be solved.
        labels: Of its images.
        features: Inputs of the first linear layer, rows of length 1, ``[B, in]``.
    """

    problem: Problem
    labels: Tensor
    features: Tensor


@dataclass(frozen=True, eq=False)
class Near:
    """What public images say of some others.

    Attributes:
        expected: The images, and the cost of others.
        weight: Of that cost, beside the features' distance.
    """

    expected: Expected
    weight: float


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
    regressed on their own features, say, if more of others of them is found so. Features of a batch that is normalised
    as a whole depend on all of it, so nothing is regressed on them.
    """
    model, norm_mode = views[0].model, views[0].knowledge.norm_mode or "train"
    layer, _, _ = _first_linear(model)
    made = inputs_of(model, layer, norm_mode)
    seed = int(torch.randint(2**31, (1,), generator=generator))
    victims = list[Told]()
    for view in views:
        problem = _problem(view, layer, made, generator)
        labels = infer_labels(view, problem, generator)
        victims.append(Told(problem, labels, _features(problem, layer, generator)))
    problems = [victim.problem for victim in victims]
    choice = choose(problems, Matching(), budget, generator, partial(_descent, layer, made))
    found = _prepared(made, victims, [choice] * len(victims), budget, generator).run()
    if not _learns(views[0], problems[0]):
        return found
    groups = of_equal_arrays(problems)
    for group in groups:
        own = torch.Generator().manual_seed(seed)  # whatever is drawn for others
        most = max(LEAST_EXAMPLES, MOST_EXAMPLES // len(groups))
        likely = _regressed(layer, made, [victims[index] for index in group], choice, budget, own, most)
        for index, item in zip(group, likely or (), strict=likely is not None):
            found[index] = replace(item, explained=found[index].explained)
    return found


def _problem(view: ServerView, layer: str, made: Network, generator: torch.Generator) -> Problem:
    """State a view's problem, with guesses of the biases that the server hasn't: of an S-update those that fit best.

    The common initial weights' are right in a first round, and those that were received are a calibration away.
    """
    if not view.format.hides_biases:
        return problem_of(view, guesses=None if view.knowledge.biases else biases.zero(view))
    guesses = [biases.inferred(view)] if view.initial is None else [biases.initial(view), biases.inferred(view)]
    problems = [problem_of(view, guesses=guess) for guess in guesses]
    if len(problems) == 1 or not _learns(view, problems[0]):
        return problems[0]
    return min(problems, key=lambda problem: _misfit(problem, layer, made, generator))


def _learns(view: ServerView, problem: Problem) -> bool:
    """Tell whether there are public images whose features can be compared with those that updates tell."""
    mixed = normalised_layers(view.model) and view.knowledge.norm_mode != "eval" and problem.count > 1
    enough = problem.public is not None and len(problem.public.inputs) >= LEAST
    return enough and not mixed and math.prod(problem.input_shape) <= MOST_PIXELS


def _misfit(problem: Problem, layer: str, made: Network, generator: torch.Generator) -> float:
    """Return how far features of the image that public ones expect are from those that were told."""
    if problem.public is None:
        return 0.0
    public, told = problem.public.inputs[:FEW], _features(problem, layer, generator)
    one_by_one = problem.count == 1
    said = expected(public, lambda some, _: _unit(made, problem, some, one_by_one), told, generator, FEW)
    return float((1 - (_unit(made, problem, said.samples, one_by_one) * told).sum(1)).mean())


def _unit(made: Network, problem: Problem, samples: Tensor, one_by_one: bool) -> Tensor:
    """Return the features of samples, rows of length 1; of biases that a client sent they may be no finite numbers."""
    if one_by_one:
        own = vmap(lambda sample: made(problem.arrays, sample[None])[0])(samples)
    else:
        own = made(problem.arrays, samples)
    return functional.normalize(own.flatten(1).nan_to_num(0.0, 0.0, 0.0), dim=1, eps=1e-30)


def _regressed(
    layer: str,
    made: Network,
    victims: Sequence[Told],
    smooth: Choice,
    budget: Budget,
    generator: torch.Generator,
    most: int,
) -> list[Reconstruction] | None:
    """Find images that are likely by public ones; ``None`` where smooth ones are nearer to what is rehearsed.

    Args:
        layer: Name of the first linear one.
        made: Makes what that is given.
        victims: With the same arrays.
        smooth: Of images with little total variation.
        budget: Of each descent, rehearsed or not.
        generator: Draws rehearsals and examples.
        most: Examples.
    """
    first = victims[0].problem
    rehearsed = rehearsals([victim.problem for victim in victims], generator)
    if not rehearsed or first.public is None:
        return None
    free = others(first.public.inputs, [each.images for each in rehearsed])
    if int(free.sum()) < LEAST:
        return None
    trials = [Told(each.problem, each.labels, _features(each.problem, layer, generator)) for each in rehearsed]
    features = torch.cat([each.features for each in (*trials, *victims)])
    one_by_one = first.count == 1
    public = first.public.inputs[free]
    likely = expected(public, lambda some, _: _unit(made, first, some, one_by_one), features, generator, most)
    of_trials, of_victims = (
        replace(likely, samples=part) for part in likely.samples.tensor_split([len(trials) * first.count])
    )

    def reached(choice: Choice, budget: Budget, near: Near | None = None) -> float:
        items = _prepared(made, trials, [choice] * len(trials), budget, generator, near).run()
        return sum(each.psnr(item.images) for each, item in zip(rehearsed, items, strict=True))

    unseen = replace(budget, points=1, watch=None)
    once = replace(unseen, restarts=1)
    values = {weight: reached(STEP, once, Near(of_trials, weight)) for weight in UNLIKELY}
    best = max(values, key=values.__getitem__)
    if values[best] <= reached(smooth, unseen):
        return None
    steps, near = replace(budget, restarts=1), Near(of_victims, best)
    items = _prepared(made, victims, [STEP] * len(victims), steps, generator, near).run()
    return [replace(item, choice=f"{REGRESSED}, weight {best:g}") for item in items]


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
    """Prepare what :func:`~snnfl.attacks.matching.choose` tries."""
    told = [
        Told(problem, own, _features(problem, layer, generator)) for problem, own in zip(problems, labels, strict=True)
    ]
    return _prepared(made, told, choices, budget, generator)


def _prepared(
    made: Network,
    victims: Sequence[Told],
    choices: Sequence[Choice],
    budget: Budget,
    generator: torch.Generator,
    near: Near | None = None,
) -> PreparedMatching:
    """Prepare to match features: by smooth images, from noise, or by likely ones, from what public images say."""
    first, starts = victims[0].problem, budget.restarts
    arrays, in_dims = lanes([victim.problem.arrays for victim in victims], starts)
    weights = torch.tensor([choice.total_variation_weight for choice in choices]).repeat_interleave(starts)
    features = repeat([victim.features for victim in victims], starts)
    shape = (len(features), first.count, *first.input_shape)
    if near is None:
        start = said = torch.randn(shape, generator=generator).to(first.low)
    else:
        start = said = near.expected.samples.view(shape)
        if first.count > 1:
            start = said + SPREAD * torch.randn(shape[1:], generator=generator).to(said)

    def objective(found: Arrays, fixed: Arrays, wanted: Tensor, weight: Tensor, likely: Tensor) -> Tensor:
        own = made(fixed, found[IMAGES]).flatten(1)
        distance = (1 - torch.cosine_similarity(own, wanted, dim=1, eps=1e-12)).mean()
        if near is None:
            return distance + weight * total_variation(found[IMAGES])
        return distance + near.weight * near.expected.cost(found[IMAGES], likely).mean()

    slope = vmap(grad_and_value(objective), in_dims=(0, in_dims, 0, 0, 0))
    return PreparedMatching(
        slope=lambda variables: slope(variables, arrays, features, weights, said),
        start={IMAGES: torch.clamp(start, first.low, first.high)},
        box=(first.low, first.high),
        labels=[victim.labels for victim in victims],
        choices=choices,
        matching=Matching(),
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
