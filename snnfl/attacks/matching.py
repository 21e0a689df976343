"""Gradient matching by signed Adam, for several victims and starts at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from snnfl.attacks.factors import factored_gradient
from snnfl.attacks.flat import specialised
from snnfl.attacks.local import cosine_distance, l2_distance, simulate, total_variation
from snnfl.attacks.networks import Arrays
from snnfl.attacks.pooling import DECOMPOSITIONS
from snnfl.attacks.problem import Problem
from snnfl.attacks.reconstruction import Reconstruction
from snnfl.attacks.registry import Budget
from snnfl.attacks.statistics import statistics_distance

IMAGES = "images"
DISTANCES = {"cosine": cosine_distance, "l2": l2_distance}


@dataclass(frozen=True, kw_only=True)
class Matching:
    """How a gradient is matched; the defaults are those of Inverting Gradients (Geiping et al. 2020).

    Attributes:
        distance: Between dummy and observed gradient.
        total_variation_weight: Weight of the total variation.
        learning_rate: Of Adam on the images, in normalised units. It falls to a tenth after 3/8, 5/8 and 7/8 of the
            iterations.
        free_arrays: Arrays that are optimised with the images.
        free_learning_rate: Of Adam on them.
        statistics: Weight of the distance to the private batches' statistics; zero for networks without any.
    """

    distance: Literal["cosine", "l2"] = "cosine"
    total_variation_weight: float = 0.01
    learning_rate: float = 0.1
    free_arrays: tuple[str, ...] = ()
    free_learning_rate: float = 0.01
    statistics: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedMatching:
    """A prepared descent of all victims and starts, which :meth:`run` takes from its beginning.

    Attributes:
        slope: ``variables -> (their gradient, the objective of each lane)``.
        start: Variables to start from, by name, a lane per victim and start.
        box: Smallest and largest normalised pixel.
        labels: Of each victim's images.
        matching: The steps.
        budget: Iterations and starts per victim.
    """

    slope: Callable[[Arrays], tuple[Arrays, Tensor]]
    start: Arrays
    box: tuple[Tensor, Tensor]
    labels: Sequence[Tensor]
    matching: Matching
    budget: Budget

    def run(self) -> list[Reconstruction]:
        """Take the steps of all lanes; keep each lane's best images and its curve."""
        matching, iterations = self.matching, self.budget.iterations
        variables = {name: array.clone() for name, array in self.start.items()}
        images, free = variables[IMAGES], [variables[name] for name in matching.free_arrays]
        groups = [
            {"params": [images], "lr": matching.learning_rate},
            {"params": free, "lr": matching.free_learning_rate},
        ]
        optimizer = torch.optim.Adam([group for group in groups if group["params"]])
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
            optimizer.step()
            schedule.step()
            torch.clamp(images, *self.box, out=images)
        return _chosen(best, least, curve, self.labels, self.budget)


def match(
    problems: Sequence[Problem],
    labels: Sequence[Tensor],
    matching: Matching,
    budget: Budget,
    generator: torch.Generator,
) -> list[Reconstruction]:
    """Invert all problems at once: :func:`prepare`, and run."""
    return prepare(problems, labels, matching, budget, generator).run()


def prepare(
    problems: Sequence[Problem],
    labels: Sequence[Tensor],
    matching: Matching,
    budget: Budget,
    generator: torch.Generator,
) -> PreparedMatching:
    """Prepare to minimise ``distance(simulate(x), target) + weight TV(x)`` over images by signed Adam.

    Images start as Gaussian noise and stay within the pixels' range (Geiping et al. 2020, section 4). All victims and
    starts are lanes of one ``vmap``; arrays that all victims share are not copied.

    Args:
        problems: One per victim, of one network and one way of training.
        labels: Of each victim's images, ``[N]``; they stay as they are.
        matching: The objective and its steps.
        budget: Iterations and starts per victim.
        generator: Draws the starts, on the CPU.

    Returns:
        The descent; it finds per victim the images with the smallest objective of all starts and iterations, in
        normalised units.
    """
    first, starts = problems[0], budget.restarts
    arrays, in_dims = _lanes([problem.arrays for problem in problems], starts)
    target = {name: _repeat([problem.target[name] for problem in problems], starts) for name in first.target}
    targets = _repeat([torch.nn.functional.one_hot(of, first.classes).float() for of in labels], starts)
    shape = (len(targets), first.count, *first.input_shape)
    noise = torch.randn(shape, generator=generator).to(first.low)
    variables = {IMAGES: torch.clamp(noise, first.low, first.high)}
    seen = _repeat([problem.seen for problem in problems], starts)
    variables |= {
        name: _repeat([problem.arrays[name] for problem in problems], starts) for name in matching.free_arrays
    }

    thin = matching.distance == "cosine" and first.steps == 1
    thin = thin and not first.local.weight_decay and first.local.penalty is None

    def objective(found: Arrays, fixed: Arrays, wanted: Arrays, probabilities: Tensor, noted: Tensor) -> Tensor:
        images, current = found[IMAGES], {**fixed, **{name: found[name] for name in matching.free_arrays}}
        if thin:
            factored = factored_gradient(first.network, current, tuple(wanted), images, probabilities)
            value = cosine_distance(factored, wanted)
        else:
            dummy = simulate(first.network, current, tuple(wanted), images, probabilities, first.local)
            value = DISTANCES[matching.distance](dummy, wanted)
        value = value + matching.total_variation_weight * total_variation(images)
        if first.statistics is None:
            return value
        return value + matching.statistics * statistics_distance(first.statistics, current, images, first.local, noted)

    # Traced once into one flat graph: differentiating twice under vmap costs as much again in Python, at every step.
    stepwise = vmap(grad_and_value(objective), in_dims=(0, in_dims, 0, 0, 0))
    fixed = (arrays, target, targets, seen)
    slope = specialised(
        make_fx(stepwise, decomposition_table=DECOMPOSITIONS)(variables, *fixed),
        variables,
        fixed,
        compiled=budget.compiled,
        iterations=budget.iterations * len(targets),
    )
    return PreparedMatching(
        slope=slope,
        start=variables,
        box=(first.low, first.high),
        labels=labels,
        matching=matching,
        budget=budget,
    )


def _chosen(
    best: Tensor, least: Tensor, curve: Sequence[tuple[int, Tensor, Tensor]], labels: Sequence[Tensor], budget: Budget
) -> list[Reconstruction]:
    """Choose each victim's best start."""
    found = []
    for victim, of in enumerate(labels):
        lane = victim * budget.restarts + int(least[victim * budget.restarts :][: budget.restarts].argmin())
        points = tuple((iteration, float(values[lane])) for iteration, values, _ in curve)
        trail = tuple(images[lane] for _, _, images in curve)
        value = float(least[lane])
        found.append(Reconstruction(images=best[lane], labels=of, objective=value, curve=points, trail=trail))
    return found


def _repeat(values: Sequence[Tensor], times: int) -> Tensor:
    return torch.stack(list(values)).repeat_interleave(times, dim=0)


def _lanes(victims: Sequence[Mapping[str, Tensor]], times: int) -> tuple[Arrays, dict[str, int | None]]:
    """Stack what differs between victims; what they share stays one array. Also return the axes for ``vmap``."""
    arrays: Arrays = {}
    axes: dict[str, int | None] = {}
    for name, shared in victims[0].items():
        differs = any(not torch.equal(shared, other[name]) for other in victims[1:])
        arrays[name] = _repeat([other[name] for other in victims], times) if differs else shared
        axes[name] = 0 if differs else None
    return arrays, axes
