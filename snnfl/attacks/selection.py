"""Which prior and step size gradient matching takes, chosen without the truth: on public images.

Which weight of the total variation finds the most depends on the network: 0.01 where it is untrained, twenty times as
much where it is trained. Objectives of different weights cannot be compared. But whoever knows how a client trains can
be the client: make updates of public images with the attacked network, attack these, and look.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from snnfl.attacks.compressed import as_sent
from snnfl.attacks.local import decayed, simulate
from snnfl.attacks.problem import Problem
from snnfl.attacks.statistics import mean_statistics
from snnfl.metrics.images import matched, psnr

REHEARSALS = 4
"""Updates of public images that a choice rests on."""

SHARE = 4
"""A rehearsal takes this part of the attack's iterations: the best choice of the first quarter is one of the best."""


@dataclass(frozen=True)
class Choice:
    """A prior and a step size.

    Attributes:
        total_variation_weight: Of the total variation beside the distance of gradients.
        learning_rate: Of signed Adam, in normalised units.
        calibration_weight: Of the thresholds' distance beside it.
        rehearsed: Largest objective that it left of updates of public images, in a part of the iterations; infinite
            where nothing was rehearsed.
    """

    total_variation_weight: float
    learning_rate: float
    calibration_weight: float = 0.0
    rehearsed: float = field(default=math.inf, compare=False)

    def explains(self, objective: float) -> bool:
        """Tell whether an attack left no more of an update than rehearsals did of updates that it knows to be made so.

        They had fewer iterations. So whoever is far beyond them was not trained as the threat model says, or has arrays
        that the attacker guessed wrong.
        """
        return objective <= UNEXPLAINED * self.rehearsed

    def __str__(self) -> str:
        """Return it as reports show it."""
        text = f"TV {self.total_variation_weight:g}, step {self.learning_rate:g}"
        return f"{text}, thresholds {self.calibration_weight:g}" if self.calibration_weight else text


UNEXPLAINED = 1.5
"""Times the largest objective of rehearsals, beyond which an update is said not to fit."""

PUBLISHED = Choice(0.01, 0.1)
"""Of Inverting Gradients; without public images nothing else is known to be better."""

CANDIDATES = tuple(Choice(weight, rate) for weight in (0.01, 0.05, 0.2, 0.5) for rate in (0.1, 0.2))
"""What is tried."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rehearsal:
    """An update that the attacker made of public images, as the victim makes its own.

    Attributes:
        problem: With that update as the target.
        images: What it was made of, normalised.
        labels: Of them.
    """

    problem: Problem
    images: Tensor
    labels: Tensor

    def psnr(self, found: Tensor) -> float:
        """Return how near a reconstruction comes to the images, in dB."""
        true, seen = self._pixels(self.images), self._pixels(found)
        return float(psnr(seen[matched(seen, true)], true).mean())

    def _pixels(self, inputs: Tensor) -> Tensor:
        low, high = self.problem.low, self.problem.high
        return ((inputs - low) / (high - low)).clamp(0, 1)


def random_orders(problem: Problem, generator: torch.Generator) -> Tensor | None:
    """Draw orders in which clients may take their images, ``[epochs, count]``; one step has none (``None``)."""
    if problem.steps == 1:
        return None
    size, epochs = problem.count // problem.local.clients, range(problem.local.epochs)
    starts = range(0, problem.count, size)
    return torch.stack(
        [torch.cat([start + torch.randperm(size, generator=generator) for start in starts]) for _ in epochs]
    )


def rehearsals(problems: Sequence[Problem], generator: torch.Generator) -> list[Rehearsal]:
    """Return updates of public images, made with the victims' networks in turn; none where there are too few images.

    They are rounded, or left out, as the victims' are. Of images without labels the victim's network says which classes
    they show. An attacker that guesses arrays, such as the biases of an S-client, makes the update with its guesses. So
    what a wrong guess costs isn't rehearsed.
    """
    made = list[Rehearsal]()
    public = problems[0].public
    if public is None or len(public.inputs) < problems[0].count:
        return made
    for number in range(REHEARSALS):
        problem = problems[number % len(problems)]
        drawn = torch.randperm(len(public.inputs), generator=generator)[: problem.count]
        images = public.inputs[drawn]
        if public.labels is None:
            labels = problem.network(problem.arrays, images).detach().argmax(1)
        else:
            labels = public.labels[drawn]
        targets = torch.nn.functional.one_hot(labels, problem.classes).float()
        orders = random_orders(problem, generator) if problem.orders is None else problem.orders
        made_of = [
            (arrays, simulate(problem.network, arrays, tuple(target), images, targets, problem.local, orders))
            for arrays, target in problem.rounds
        ]
        (_, target), *earlier = [
            (arrays, {n: array.detach() for n, array in found.items()}) for arrays, found in made_of
        ]
        target = as_sent(target, problem.target, problem.rounding, generator, sparse=problem.sparse)
        seen = problem.seen
        if problem.statistics is not None:
            seen = mean_statistics(problem.statistics, problem.arrays, images, problem.local)
        told = problem.calibration(problem.arrays, images) if problem.calibration is not None else ()
        seen_by_server = replace(
            problem,
            target=target,
            earlier=tuple(earlier),
            seen=seen.detach(),
            told=told,
            decay=decayed(problem.local, problem.steps),
        )
        made.append(Rehearsal(problem=seen_by_server, images=images, labels=labels))
    return made
