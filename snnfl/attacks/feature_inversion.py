"""Images by the features that a convolutional network made of them, which its first linear layer tells exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import grad_and_value, vmap

from snnfl.attacks import biases
from snnfl.attacks.exact import MOST_IMAGES
from snnfl.attacks.first_linear import FirstLinear, Told, first_linear, first_linear_of
from snnfl.attacks.labels import infer_labels
from snnfl.attacks.local import total_variation
from snnfl.attacks.matching import IMAGES, Matching, PreparedMatching, choose, lanes, repeat
from snnfl.attacks.networks import Arrays, normalised_layers, relu_behind
from snnfl.attacks.problem import Problem, inexact, of_equal_arrays, problem_of
from snnfl.attacks.public_regression import (
    LEAST,
    MOST_EXAMPLES,
    MOST_PIXELS,
    Expected,
    expected,
    expected_alone,
    others,
)
from snnfl.attacks.reconstruction import Reconstruction
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
"""Of a regression, where clients, or what is rehearsed, need several."""

NEARER = 0.5
"""Share of the likeliest guess's misfit, relative to that of public images, below which another guess is taken."""

OTHERS = 32
"""Batches of public images that a batch's features are compared with."""

SPREAD = 0.1
"""Of the starts of a batch's images, some of which may be told alike."""


@dataclass(frozen=True, eq=False)
class Near:
    """What public images say of some others.

    Attributes:
        expected: The images, and the cost of others.
        weight: Of that cost, beside the features' distance.
    """

    expected: Expected
    weight: float


def _tells_features(view: ServerView) -> str | None:
    """Say why a view's first linear layer doesn't tell features, or return ``None``."""
    if not any(isinstance(module, nn.Conv1d | nn.Conv2d) for module in view.model.modules()):
        return "inverts what convolutions make of an image, and the model has none; use closed_form"
    name, layer, behind = first_linear(view.model)
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
    as a whole depend on all of it, through statistics that the update tells; where they are denied, nothing is
    regressed.
    """
    layer = first_linear_of(views[0])
    seed = int(torch.randint(2**31, (1,), generator=generator))
    victims = _told(views, layer, generator, seed)
    usual = _usual(victims)
    choice = choose(usual, Matching(), budget, generator, partial(_descent, layer))
    smooth = _prepared(layer, victims, [choice] * len(victims), budget, generator).run()
    likely = _regressed(layer, victims, usual, choice, budget, seed) if _learns(layer, usual[0]) else None
    found = list(smooth)
    for index, (victim, item) in enumerate(zip(victims, likely or (), strict=False)):
        if layer.running is None or _fits(layer, victim, item):
            found[index] = replace(item, explained=smooth[index].explained)
    noted = [", ".join(filter(None, [item.choice, victim.note])) for item, victim in zip(found, victims, strict=True)]
    return [replace(item, choice=choice) for item, choice in zip(found, noted, strict=True)]


def _usual(victims: Sequence[Told]) -> list[Problem]:
    """Return problems that may be rehearsed: nobody who sends biases that no image fits decides for others."""
    least = min(victim.misfit for victim in victims)
    return [victim.problem for victim in victims if NEARER * victim.misfit <= least]


def _fits(layer: FirstLinear, victim: Told, found: Reconstruction) -> bool:
    """Tell whether images, to which a batch's statistics led, have the features that were told without these, too.

    The statistics are what a client says. Of any others they lead to images whose features are as far from those told
    as public images' are; of its own to a small part of that.
    """
    problem = victim.problem

    def distance(images: Tensor) -> float:
        own = layer.made(problem.arrays, images).flatten(1)
        return float((1 - torch.cosine_similarity(own, victim.features, dim=1, eps=1e-12)).mean().nan_to_num(torch.inf))

    if problem.public is None:
        return False
    others = torch.split(problem.public.inputs[: OTHERS * problem.count], problem.count)
    usual = [distance(images) for images in others if len(images) == problem.count]
    return distance(found.images) < sum(usual) / max(1, len(usual)) / 2


def _told(views: Sequence[ServerView], layer: FirstLinear, generator: torch.Generator, seed: int) -> list[Told]:
    """Read off updates what they tell, with guesses of the biases that the server hasn't.

    Of an S-update these are the common initial weights', which are right in a first round, or those that were received,
    which are a calibration away. Another guess than the likeliest is taken where features of the images that public
    ones expect are twice as near to those told, relative to what they are of public images.
    """
    guessed = list[list[Told]]()
    for view in views:
        (note, first), *further = (
            (note, layer.laid_out(view, problem_of(view, guesses=guess))) for note, guess in _biases(view).items()
        )
        told = replace(layer.told(first, infer_labels(view, first, generator), generator), note=note)
        guessed.append([told, *(replace(told, problem=problem, note=note) for note, problem in further)])
    if not views[0].format.hides_biases or not _learns(layer, guessed[0][0].problem):
        return [of[0] for of in guessed]
    flat = [told for of in guessed for told in of]
    for group in of_equal_arrays([told.problem for told in flat]):
        misfits = _misfits(layer, [flat[index] for index in group], torch.Generator().manual_seed(seed))
        for index, misfit in zip(group, misfits, strict=True):
            flat[index] = replace(flat[index], misfit=misfit)
    found, left = list[Told](), iter(flat)
    for view, of in zip(views, guessed, strict=True):
        likeliest, *further_guesses = [next(left) for _ in of]
        other = min(further_guesses, key=lambda told: told.misfit, default=likeliest)
        if other.misfit < NEARER * likeliest.misfit:
            found.append(replace(other, labels=infer_labels(view, other.problem, generator)))
        else:
            found.append(likeliest)
    return found


def _biases(view: ServerView) -> dict[str, Arrays | None]:
    """Return guesses of the biases that the server hasn't, by what reports say of them; the likeliest one first."""
    if not view.format.hides_biases:
        return {"": None if view.knowledge.biases else biases.zero(view)}
    received: dict[str, Arrays | None] = {"received biases": biases.inferred(view)}
    if view.initial is None:
        return received
    first = {"initial biases": biases.initial(view)}
    return {**first, **received} if view.exchange.server_round == 1 else {**received, **first}


def _learns(layer: FirstLinear, problem: Problem) -> bool:
    """Tell whether there are public images whose features can be compared with those that updates tell."""
    enough = problem.public is not None and len(problem.public.inputs) >= LEAST
    return enough and layer.each is not None and math.prod(problem.input_shape) <= MOST_PIXELS


def _misfits(layer: FirstLinear, victims: Sequence[Told], generator: torch.Generator) -> list[float]:
    """Return how far features of images that public ones expect are from those that updates of equal arrays tell.

    Relative to how far they are of public images that weren't learned from: what makes a network's features of all
    images alike, as large biases do, is no sign of being right.
    """
    problem = victims[0].problem
    if problem.public is None:
        return [0.0] * len(victims)
    public = problem.public.inputs[:FEW]
    known, unknown = public[: -len(public) // 4], public[-len(public) // 4 :]
    told = torch.cat([layer.unit(problem, unknown), *(victim.features for victim in victims)])
    said = expected_alone(known, lambda some, _: layer.unit(problem, some), told, generator, FEW)
    distances = 1 - (layer.unit(problem, said) * told).sum(1)
    usual, own = torch.split(distances, [len(unknown), len(told) - len(unknown)])
    return [float(mean / usual.median().clamp_min(1e-12)) for mean in own.view(len(victims), -1).mean(1)]


def _regressed(
    layer: FirstLinear, victims: Sequence[Told], usual: Sequence[Problem], smooth: Choice, budget: Budget, seed: int
) -> list[Reconstruction] | None:
    """Find images that are likely by public ones; ``None`` where smooth ones are nearer to what is rehearsed.

    Victims of equal arrays, with what is rehearsed of them, have one regression together.

    Args:
        layer: Whose inputs updates tell.
        victims: Of one layout.
        usual: Problems that are rehearsed.
        smooth: Of images with little total variation.
        budget: Of each descent, rehearsed or not.
        seed: Of rehearsals, examples and starts.
    """
    generator, first = torch.Generator().manual_seed(seed), victims[0].problem
    rehearsed = rehearsals(usual, generator)
    if not rehearsed or first.public is None:
        return None
    free = others(first.public.inputs, [each.images for each in rehearsed])
    if int(free.sum()) < LEAST:
        return None
    trials = [layer.told(each.problem, each.labels, generator) for each in rehearsed]
    everyone, public = [*trials, *victims], first.public.inputs[free]
    groups = of_equal_arrays([each.problem for each in everyone])
    most, state = max(LEAST_EXAMPLES, MOST_EXAMPLES // len(groups)), generator.get_state()

    def same() -> torch.Generator:
        """Draw the same for everyone, whoever is attacked beside it."""
        return torch.Generator().set_state(state)

    def said_of(group: Sequence[int]) -> Expected:
        return _said(layer, [everyone[index] for index in group], public, same(), most)

    kept = {number: said_of(group) for number, group in enumerate(groups) if group[0] < len(trials)}

    def descend(wanted: range, budget: Budget, weight: float) -> list[Reconstruction]:
        found = dict[int, Reconstruction]()
        for number, group in enumerate(groups):
            if own := [at for at, index in enumerate(group) if index in wanted]:
                of_group = kept.get(number) or said_of(group)
                near = Near(replace(of_group, samples=of_group.samples[own]), weight)
                some = [everyone[group[at]] for at in own]
                items = _prepared(layer, some, [STEP] * len(some), budget, same(), near).run()
                found |= zip((group[at] for at in own), items, strict=True)
        return [found[index] for index in wanted]

    def psnr(items: Sequence[Reconstruction]) -> float:
        return sum(each.psnr(item.images) for each, item in zip(rehearsed, items, strict=True))

    unseen = replace(budget, points=1, watch=None)
    once = replace(unseen, restarts=1)
    tried = {weight: descend(range(len(trials)), once, weight) for weight in UNLIKELY}
    values = {weight: psnr(items) for weight, items in tried.items()}
    best = max(values, key=values.__getitem__)
    if values[best] <= psnr(_prepared(layer, trials, [smooth] * len(trials), unseen, generator).run()):
        return None
    items = descend(range(len(trials), len(everyone)), replace(budget, restarts=1), best)
    return [replace(item, choice=f"{REGRESSED}, weight {best:g}") for item in items]


def _said(layer: FirstLinear, some: Sequence[Told], public: Tensor, generator: torch.Generator, most: int) -> Expected:
    """Return what public images say of updates of equal arrays; images of each, ``[updates, B, *input_shape]``."""
    features, problem = torch.cat([each.features for each in some]), some[0].problem
    likely = expected(public, lambda samples, _: layer.unit(problem, samples), features, generator, most)
    return replace(likely, samples=likely.samples.view(len(some), problem.count, *problem.input_shape))


def _descent(
    layer: FirstLinear,
    problems: Sequence[Problem],
    labels: Sequence[Tensor],
    matching: Matching,
    budget: Budget,
    generator: torch.Generator,
    choices: Sequence[Choice],
) -> PreparedMatching:
    """Prepare what :func:`~snnfl.attacks.matching.choose` tries."""
    told = [layer.told(problem, own, generator) for problem, own in zip(problems, labels, strict=True)]
    return _prepared(layer, told, choices, budget, generator)


def _prepared(
    layer: FirstLinear,
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
        start = said = near.expected.samples.repeat_interleave(starts, dim=0)
        if first.count > 1:
            start = said + SPREAD * torch.randn(shape[1:], generator=generator).to(said)

    made = layer.made if near is None or layer.each is None else layer.each

    def objective(found: Arrays, fixed: Arrays, wanted: Tensor, weight: Tensor, likely: Tensor) -> Tensor:
        own = made(fixed, found[IMAGES]).flatten(1)
        distance = (1 - torch.cosine_similarity(own, wanted, dim=1, eps=1e-12)).mean()
        distance = distance.nan_to_num(1.0)  # of arrays that a client sent: nothing fits, and others' attacks go on
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
