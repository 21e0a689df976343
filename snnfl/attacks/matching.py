"""Gradient matching by signed Adam, for several victims and starts at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_map

from snnfl.attacks.calibration import CALIBRATION_WEIGHTS, thresholds_distance
from snnfl.attacks.compressed import sent_alone
from snnfl.attacks.epochs import directions, epoch_distance
from snnfl.attacks.factors import factored_gradient
from snnfl.attacks.flat import specialised
from snnfl.attacks.local import cosine_distance, l2_distance, simulate, total_variation
from snnfl.attacks.networks import Arrays
from snnfl.attacks.pooling import DECOMPOSITIONS
from snnfl.attacks.problem import Problem
from snnfl.attacks.reconstruction import Reconstruction
from snnfl.attacks.registry import Budget
from snnfl.attacks.selection import CANDIDATES, PUBLISHED, SHARE, Choice, Rehearsal, rehearsals
from snnfl.attacks.statistics import statistics_distance

IMAGES = "images"
IMAGES_AT_ONCE = 64
"""Images that rehearsals reconstruct together, at most: what is differentiated stays in memory."""

TRACED = 100
"""Iterations from which on tracing pays: it costs 0.8 s, and an iteration less 6 ms (LeNet-5, one image) or more."""

DISTANCES = {"cosine": cosine_distance, "l2": l2_distance}


@dataclass(frozen=True, kw_only=True)
class Matching:
    """How a gradient is matched; the defaults are those of Inverting Gradients (Geiping et al. 2020).

    Attributes:
        distance: Between dummy and observed gradient; ``None`` to leave the gradient out.
        total_variation_weight: Weight of the total variation; ``None`` to choose it (:mod:`snnfl.attacks.selection`).
        learning_rate: Of Adam on the images, in normalised units; ``None`` to choose it. It falls to a tenth after 3/8,
            5/8 and 7/8 of the iterations.
        free_arrays: Arrays that are optimised with the images.
        free_learning_rate: Of Adam on them.
        statistics: Weight of the distance to the private batches' statistics; zero for networks without any.
        calibration_weight: Of the distance to the update's thresholds; ``None`` to choose it.
        epoch_weight: Of the distance between epochs, each of which has images of its own then
            (:mod:`snnfl.attacks.epochs`), ``epochs * N`` in all; ``None`` where all epochs take the same images.
    """

    distance: Literal["cosine", "l2"] | None = "cosine"
    total_variation_weight: float | None = None
    learning_rate: float | None = None
    free_arrays: tuple[str, ...] = ()
    free_learning_rate: float = 0.01
    statistics: float = 0.0
    calibration_weight: float | None = 0.0
    epoch_weight: float | None = None

    def chosen(self, choice: Choice) -> Choice:
        """Return a choice with what is given here in its place."""
        given = self.total_variation_weight, self.learning_rate, self.calibration_weight
        kept = choice.total_variation_weight, choice.learning_rate, choice.calibration_weight
        return Choice(*(old if new is None else new for old, new in zip(kept, given, strict=True)))


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedMatching:
    """A prepared descent of all victims and starts, which :meth:`run` takes from its beginning.

    Attributes:
        slope: ``variables -> (their gradient, the objective of each lane)``.
        start: Variables to start from, by name, a lane per victim and start.
        box: Smallest and largest normalised pixel.
        labels: Of each victim's images.
        matching: The steps.
        choices: Prior and step size of each victim.
        budget: Iterations and starts per victim.
    """

    slope: Callable[[Arrays], tuple[Arrays, Tensor]]
    start: Arrays
    box: tuple[Tensor, Tensor]
    labels: Sequence[Tensor]
    matching: Matching
    choices: Sequence[Choice]
    budget: Budget

    def run(self) -> list[Reconstruction]:
        """Take the steps of all lanes; keep each lane's best images and its curve."""
        matching, iterations = self.matching, self.budget.iterations
        variables = {name: array.clone() for name, array in self.start.items()}
        images, free = variables[IMAGES], [variables[name] for name in matching.free_arrays]
        rates = torch.tensor([choice.learning_rate for choice in self.choices]).repeat_interleave(self.budget.restarts)
        rates = rates.view(-1, *[1] * (images.dim() - 1))
        groups = [
            {"params": [images], "lr": 1.0},
            {"params": free, "lr": matching.free_learning_rate},
        ]
        optimizer = torch.optim.Adam([group for group in groups if group["params"]], fused=True)
        milestones = [iterations * eighths // 8 for eighths in (3, 5, 7)]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
        best, least = images.clone(), images.new_full((len(images),), torch.inf)
        curve: list[tuple[int, Tensor, Tensor]] = []
        for iteration in range(iterations):
            gradient, value = self.slope(variables)
            better = value < least  # never true for NaN
            least = torch.where(better, value, least)
            best = torch.where(better.view(-1, *[1] * (images.dim() - 1)), images, best)
            if self.budget.recorded(iteration):
                curve.append((iteration, least, best))
            images.grad = gradient[IMAGES].sign()
            for name in matching.free_arrays:
                variables[name].grad = gradient[name]
            before = images.clone()
            optimizer.step()
            schedule.step()
            torch.clamp(before + rates * (images - before), *self.box, out=images)  # Adam's step is by its rate alone
        return _chosen(best, least, curve, self)


Descent: TypeAlias = Callable[
    [Sequence[Problem], Sequence[Tensor], Matching, Budget, torch.Generator, Sequence[Choice]], PreparedMatching
]
"""``(problems, labels, matching, budget, generator, choices) -> descent``, as :func:`prepare`."""


def match(
    problems: Sequence[Problem],
    labels: Sequence[Tensor],
    matching: Matching,
    budget: Budget,
    generator: torch.Generator,
) -> list[Reconstruction]:
    """Choose prior and step size (:func:`choose`), then invert all problems at once."""
    choice = choose(problems, matching, budget, generator)
    return prepare(problems, labels, matching, budget, generator, [choice] * len(problems)).run()


def choose(
    problems: Sequence[Problem],
    matching: Matching,
    budget: Budget,
    generator: torch.Generator,
    descent: Descent | None = None,
) -> Choice:
    """Return the candidate that finds the most of public images, on average; the published one without such images.

    All candidates are lanes of the same descent. Together they take as many iterations as the attacks on
    ``REHEARSALS * len(CANDIDATES) / SHARE`` victims, eight. The thresholds' weight is chosen after the others.
    """
    candidates = list(dict.fromkeys(map(matching.chosen, CANDIDATES)))
    open_weight = matching.calibration_weight is None
    rehearsed = rehearsals(problems, generator) if len(candidates) > 1 or open_weight else []
    if not rehearsed:
        return matching.chosen(PUBLISHED)
    best = _best(candidates, rehearsed, matching, budget, generator, descent or prepare)
    if not open_weight:
        return best
    weighted = [replace(best, calibration_weight=weight) for weight in CALIBRATION_WEIGHTS]
    return _best(weighted, rehearsed, matching, budget, generator, descent or prepare)


def _best(
    candidates: Sequence[Choice],
    rehearsed: Sequence[Rehearsal],
    matching: Matching,
    budget: Budget,
    generator: torch.Generator,
    descent: Descent,
) -> Choice:
    """Return the candidate that finds the most of what is rehearsed."""
    trials = [(each, candidate) for candidate in candidates for each in rehearsed]
    short = replace(budget, iterations=max(1, budget.iterations // SHARE), restarts=1, points=1, compiled=False)
    reached, left = dict.fromkeys(candidates, 0.0), dict.fromkeys(candidates, 0.0)
    at_once = max(1, IMAGES_AT_ONCE // rehearsed[0].problem.count)
    for start in range(0, len(trials), at_once):
        part = trials[start : start + at_once]
        given, choices = [each for each, _ in part], [candidate for _, candidate in part]
        asked = [each.problem for each in given]
        prepared = descent(asked, [each.labels for each in given], matching, short, generator, choices)
        for each, candidate, found in zip(given, choices, prepared.run(), strict=True):
            reached[candidate] += each.psnr(found.images)
            left[candidate] = max(left[candidate], found.objective)
    best = max(candidates, key=reached.__getitem__)
    return replace(best, rehearsed=left[best])


def prepare(
    problems: Sequence[Problem],
    labels: Sequence[Tensor],
    matching: Matching,
    budget: Budget,
    generator: torch.Generator,
    choices: Sequence[Choice] = (),
) -> PreparedMatching:
    """Prepare to minimise ``distance(simulate(x), target) + weight TV(x)`` over images by signed Adam.

    Where a problem has statistics or thresholds to be met, their weighted distances come beside it.

    Images start as Gaussian noise and stay within the pixels' range (Geiping et al. 2020, section 4). All victims and
    starts are lanes of one ``vmap``; arrays that all victims share are not copied.

    Args:
        problems: One per victim, of one network and one way of training.
        labels: Of each victim's images, ``[N]``; they stay as they are.
        matching: The objective and its steps.
        budget: Iterations and starts per victim.
        generator: Draws the starts, on the CPU.
        choices: Prior and step size of each victim; without, those of ``matching`` or the published ones.

    Returns:
        The descent; it finds per victim the images with the smallest objective of all starts and iterations, in
        normalised units.
    """
    first, starts = problems[0], budget.restarts
    of_rounds = list(zip(*(problem.rounds for problem in problems), strict=True))
    laid_out = [lanes([arrays for arrays, _ in victims], starts) for victims in of_rounds]
    arrays, in_dims = [given for given, _ in laid_out], [axes for _, axes in laid_out]
    target = [
        {name: repeat([wanted[name] for _, wanted in victims], starts) for name in first.target}
        for victims in of_rounds
    ]
    targets = repeat([torch.nn.functional.one_hot(of, first.classes).float() for of in labels], starts)
    orders, count, projections = [problem.orders for problem in problems], first.count, None
    if matching.epoch_weight is not None:
        projections = directions(first.input_shape)
        count, targets = count * first.local.epochs, targets.repeat(1, first.local.epochs, 1)
        orders = [torch.arange(count).view(first.local.epochs, -1)] * len(problems)
    taken = repeat([torch.empty(0) if order is None else order for order in orders], starts)
    shape = (len(targets), count, *first.free_shape)
    noise = torch.randn(shape, generator=generator).to(first.low)
    variables = {IMAGES: torch.clamp(noise, *first.box)}
    seen = repeat([problem.seen for problem in problems], starts)
    choices = choices or [matching.chosen(PUBLISHED)] * len(problems)
    weights = torch.tensor([(each.total_variation_weight, each.calibration_weight) for each in choices])
    weights = weights.repeat_interleave(starts, dim=0)
    told = tuple(repeat(layer, starts) for layer in zip(*(problem.told for problem in problems), strict=True))
    calibrated = first.calibration if bool(weights[:, 1].any()) else None
    variables |= {name: repeat([problem.arrays[name] for problem in problems], starts) for name in matching.free_arrays}

    thin = matching.distance == "cosine" and first.steps == 1
    thin = thin and not first.local.weight_decay and first.local.penalty is None and first.local.clients == 1
    masked = any(problem.sparse for problem in problems)

    def distance(images: Tensor, current: Arrays, wanted: Arrays, probabilities: Tensor, order: Tensor) -> Tensor:
        if matching.distance is None:
            return images.new_zeros(())
        if thin and not masked:
            factored = factored_gradient(first.network, current, tuple(wanted), images, probabilities)
            return cosine_distance(factored, wanted)
        known = None if orders[0] is None else order
        dummy = simulate(first.network, current, tuple(wanted), images, probabilities, first.local, known)
        return DISTANCES[matching.distance](sent_alone(dummy, wanted) if masked else dummy, wanted)

    def objective(
        found: Arrays,
        fixed: list[Arrays],
        wanted: list[Arrays],
        probabilities: Tensor,
        noted: Tensor,
        told: tuple[Tensor, ...],
        weight: Tensor,
        order: Tensor,
    ) -> Tensor:
        images, free = first.images(found[IMAGES]), {name: found[name] for name in matching.free_arrays}
        current = {**fixed[0], **free}
        pairs = zip(fixed, wanted, strict=True)
        values = [distance(images, {**of, **free}, seen, probabilities, order) for of, seen in pairs]
        value = values[0] if len(values) == 1 else torch.stack(values).mean()
        value = value + weight[0] * total_variation(images)
        if matching.epoch_weight is not None and projections is not None:
            value = value + matching.epoch_weight * epoch_distance(images, first.local.epochs, projections)
        if calibrated is not None:
            value = value + weight[1] * thresholds_distance(calibrated(current, images), told)
        if first.statistics is None:
            return value
        return value + matching.statistics * statistics_distance(first.statistics, current, images, first.local, noted)

    stepwise = grad_and_value(objective)
    stepwise = _alone(stepwise) if len(targets) == 1 else vmap(stepwise, in_dims=(0, in_dims, 0, 0, 0, 0, 0, 0))
    fixed = (arrays, target, targets, seen, told, weights, taken)
    return PreparedMatching(
        slope=_slope(stepwise, variables, fixed, budget),
        start=variables,
        box=first.box,
        labels=labels,
        matching=matching,
        choices=choices,
        budget=budget,
    )


def _alone(function: Callable[..., tuple[Arrays, Tensor]]) -> Callable[..., tuple[Arrays, Tensor]]:
    """Return for a single lane what ``vmap`` makes of a function, but without an axis in each operation's way."""

    def alone(found: Arrays, arrays: list[Arrays], *others: Any) -> tuple[Arrays, Tensor]:
        own, rest = tree_map(lambda stacked: stacked[0], (found, others))  # of arrays, nothing differs between lanes
        gradient, value = function(own, arrays, *rest)
        return {name: slope.unsqueeze(0) for name, slope in gradient.items()}, value.unsqueeze(0)

    return alone


def _slope(
    stepwise: Callable[..., tuple[Arrays, Tensor]], variables: Arrays, fixed: Sequence[Any], budget: Budget
) -> Callable[[Arrays], tuple[Arrays, Tensor]]:
    """Return ``stepwise`` of what changes alone, for many iterations traced into one flat graph.

    Differentiating twice under ``vmap`` costs as much again in Python, at every step.
    """
    if budget.iterations < TRACED and not budget.compiled:
        return lambda current: stepwise(current, *fixed)
    images = variables[IMAGES].shape[:2].numel()  # of all lanes
    return specialised(
        make_fx(stepwise, decomposition_table=DECOMPOSITIONS)(variables, *fixed),
        variables,
        fixed,
        compiled=budget.compiled,
        iterations=budget.iterations * images,
    )


def _chosen(
    best: Tensor, least: Tensor, curve: Sequence[tuple[int, Tensor, Tensor]], prepared: PreparedMatching
) -> list[Reconstruction]:
    """Choose each victim's best start."""
    found, starts = [], prepared.budget.restarts
    for victim, (of, choice) in enumerate(zip(prepared.labels, prepared.choices, strict=True)):
        lane = victim * starts + int(least[victim * starts :][:starts].argmin())
        found.append(
            Reconstruction(
                images=best[lane],
                labels=of,
                objective=float(least[lane]),
                curve=tuple((iteration, float(values[lane])) for iteration, values, _ in curve),
                trail=tuple(images[lane] for _, _, images in curve),
                choice=str(choice),
                explained=choice.explains(float(least[lane])),
            )
        )
    return found


def repeat(values: Sequence[Tensor], times: int) -> Tensor:
    """Stack what victims have, each as often as it has starts."""
    return torch.stack(list(values)).repeat_interleave(times, dim=0)


def lanes(victims: Sequence[Mapping[str, Tensor]], times: int) -> tuple[Arrays, dict[str, int | None]]:
    """Stack what differs between victims; what they share stays one array. Also return the axes for ``vmap``."""
    arrays: Arrays = {}
    axes: dict[str, int | None] = {}
    for name, shared in victims[0].items():
        differs = any(not torch.equal(shared, other[name]) for other in victims[1:])
        arrays[name] = repeat([other[name] for other in victims], times) if differs else shared
        axes[name] = 0 if differs else None
    return arrays, axes
