"""Attacks by name: a function with one decorator is an attack, and says what it must know."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from snnfl.attacks.problem import said_of_upload
from snnfl.attacks.reconstruction import AttackError, Reconstruction, check_reconstructions
from snnfl.config import UpdateKind
from snnfl.registry import Registry, summary_of
from snnfl.threat import FACTS, ServerView, ThreatModelError, hidden_by_sums
from snnfl.threat.granting import named_errors


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much an attack may try.

    Attributes:
        iterations: Evaluations of the objective's gradient per start; of DLG, steps of L-BFGS.
        restarts: Random starts per victim; the one with the smallest objective counts.
        points: Points of the recorded curve, at most.
        compiled: Whether ``torch.compile`` makes gradient matching faster, which takes a minute and a C++ compiler;
            ``None`` for where it pays (:mod:`snnfl.attacks.flat`). Attacks through a spiking network run without.
        watch: Told each iteration, counted from 1, and how many there are, by attacks that search: for progress.
    """

    iterations: int = 300
    restarts: int = 1
    points: int = 50
    compiled: bool | None = None
    watch: Callable[[int, int], None] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: For a number below 1.
        """
        for name in ("iterations", "restarts", "points"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")

    def recorded(self, iteration: int) -> bool:
        """Tell whether an iteration, counted from 0, is a point of the curve; asked at each, so who watches is told."""
        if self.watch is not None:
            self.watch(min(iteration + 1, self.iterations), self.iterations)  # DLG counts from 1
        return iteration % max(1, -(-self.iterations // self.points)) == 0 or iteration == self.iterations - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class AttackResult:
    """What an attack reconstructed of one victim.

    Attributes:
        attack: Name of the attack.
        images: Pixels in [0, 1], ``[N, *input_shape]``. Of more than the victim has only the first are scored.
        labels: Inferred or given labels of them, ``[N]``.
        objective: Smallest value of what the attack minimised; comparable within one attack alone.
        curve: ``(iteration, smallest objective so far)`` of the best start.
        trail: The images at each point of the curve, as ``images``.
        setting: Whether a real server could have done this.
        reasons: Why it is a diagnosis; empty for a realistic setting.
        choice: The prior and step size that it took, in words, and what of the update wasn't sent as it is; may be
            empty.
        explained: Whether it explains the update as well as those of its own making.
    """

    attack: str
    images: Tensor
    labels: Tensor
    objective: float
    curve: tuple[tuple[int, float], ...]
    trail: tuple[Tensor, ...]
    setting: Literal["realistic", "diagnostic"]
    reasons: tuple[str, ...]
    choice: str = ""
    explained: bool = True


Invert: TypeAlias = Callable[[Sequence[ServerView], Budget, torch.Generator], list[Reconstruction]]
"""``(views, budget, generator) -> one reconstruction per view``; every random draw is from the generator."""


@dataclass(frozen=True, kw_only=True)
class Attack:
    """A registered attack.

    Attributes:
        name: In reports and on the command line.
        source: Paper and section.
        needs: Facts that a threat model must grant.
        against: The kinds of update that it attacks.
        invert: The attack itself.
        requires: What else a view must have; returns the reason if it hasn't.
    """

    name: str
    source: str
    needs: frozenset[str]
    against: frozenset[UpdateKind]
    invert: Invert
    requires: Callable[[ServerView], str | None]

    @property
    def summary(self) -> str:
        """What it does, in one sentence: the first line of its docstring; empty without one."""
        return summary_of(self.invert)

    def refusal(self, view: ServerView) -> str | None:
        """Return why the threat model denies this attack, or ``None`` if it may run.

        Whoever needs ``images``, ``batch_size`` and ``epochs`` simulates local training, and needs to know of how many
        ``clients``: where these make several steps, it needs ``learning_rate`` and ``optimizer``, too.
        """
        if (kind := view.format.kind) not in self.against:
            return f"{self.name}: attacks {' and '.join(sorted(self.against))} updates, this is a {kind} one"
        if view.beyond:
            options = ", ".join(view.beyond)
            return f"{self.name}: repeats plain SGD, and the clients train with {options}"
        known, needs = view.knowledge, set(self.needs)
        if {"images", "batch_size", "epochs"} <= needs:
            needs |= {"clients"} if known.steps in (None, 1) else {"clients", "learning_rate", "optimizer"}
        if denied := sorted(needs - known.facts):
            why = "" if self.needs | {"clients"} >= set(denied) else f"; the client took {known.steps} steps"
            if (hidden := hidden_by_sums(denied, known)) is not None:
                return f"{self.name}: {hidden}"
            if "generative_model" in denied:
                why += " (--generative-model MODULE:FACTORY brings one)"
            return f"{self.name}: needs {', '.join(denied)}, which the threat model denies{why}"
        if view.labels is not None and known.images not in (None, len(view.labels)):
            return f"{self.name}: the client claims {known.images} images, and there are {len(view.labels)} labels"
        reason = self.requires(view)
        return None if reason is None else f"{self.name}: {reason}"

    def run(self, view: ServerView, *, budget: Budget, generator: torch.Generator) -> AttackResult:
        """Attack one victim.

        Raises:
            ThreatModelError: If the threat model denies what the attack needs.
            AttackError: If the attack fails, or returns what is no reconstruction.
        """
        return self.run_many([view], budget=budget, generator=generator)[0]

    def run_many(
        self, views: Sequence[ServerView], *, budget: Budget, generator: torch.Generator
    ) -> list[AttackResult]:
        """Attack several victims of one model and one threat model at once, which is up to three times as fast.

        Args:
            views: With equal models, shapes and knowledge.
            budget: Per victim.
            generator: CPU generator of every random draw.

        Raises:
            ThreatModelError: If the threat model denies what the attack needs, or the views' knowledge differs; an
                attack itself may raise it, too, for what only its code can see.
            AttackError: If the attack fails, or returns what is no reconstruction
                (:func:`~snnfl.attacks.reconstruction.check_reconstructions`).
        """
        for view in views:
            if view.knowledge != views[0].knowledge:
                raise ThreatModelError(f"{self.name}: victims with different knowledge; attack them one by one")
            if (reason := self.refusal(view)) is not None:
                raise ThreatModelError(reason)
        found = named_errors(
            self.name, AttackError, lambda: check_reconstructions(self.invert(views, budget, generator), views)
        )
        return [
            AttackResult(
                attack=self.name,
                images=view.pixels(item.images),
                labels=item.labels,
                objective=item.objective,
                curve=item.curve,
                trail=tuple(map(view.pixels, item.trail)),
                setting="diagnostic" if view.knowledge.diagnoses else "realistic",
                reasons=view.knowledge.diagnoses,
                choice=", ".join(filter(None, [item.choice, said_of_upload(view)])),
                explained=item.explained,
            )
            for view, item in zip(views, found, strict=True)
        ]


ATTACKS = Registry[Attack]("attack")


def kinds_against(name: str, against: UpdateKind | Collection[UpdateKind]) -> frozenset[UpdateKind]:
    """Return the kinds of update that an attack says it is against.

    Raises:
        ValueError: If an update has no such kind.
    """
    kinds: frozenset[UpdateKind] = frozenset([against] if isinstance(against, str) else against)
    known = get_args(UpdateKind)
    if unknown := sorted(kinds - {*known}):
        raise ValueError(f"attack {name!r} is against {unknown[0]!r} updates; expected {', '.join(known)}")
    return kinds


def register(
    name: str,
    *,
    source: str,
    needs: Sequence[str],
    against: UpdateKind | Collection[UpdateKind],
    requires: Callable[[ServerView], str | None] = lambda view: None,
) -> Callable[[Invert], Invert]:
    """Make the decorated function the attack ``name``.

    Args:
        name: Of the attack.
        source: Paper and section.
        needs: Facts that a threat model must grant.
        against: The kinds of update that it attacks (:mod:`snnfl.updates`): of ordinary networks (``"plain"``), of
            networks that clients converted (``"converted"``) or trained as spiking ones (``"native"``).
        requires: Returns in words what a view lacks, or ``None``.

    Raises:
        ValueError: If the name is taken, or an update has no such kind.
        ConfigError: If it needs what is no fact.
    """
    for fact in needs:
        FACTS.find(fact)
    kinds = kinds_against(name, against)

    def decorate(invert: Invert) -> Invert:
        attack = Attack(
            name=name, source=source, needs=frozenset(needs), against=kinds, invert=invert, requires=requires
        )
        ATTACKS.add(name, attack, home=invert.__module__)
        return invert

    return decorate


def names() -> tuple[str, ...]:
    """Return the names of all attacks, sorted."""
    return ATTACKS.names()


def get_attack(name: str) -> Attack:
    """Return an attack by name.

    Raises:
        ConfigError: With the nearest known name.
    """
    return ATTACKS.find(name)
