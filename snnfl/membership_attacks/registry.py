"""Membership attacks by name: a function with one decorator is one, and says what it must know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from snnfl.registry import Registry, summary_of
from snnfl.threat import MEMBERSHIP_FACTS, MembershipView, ThreatModelError
from snnfl.threat.granting import Evidence, lacking, named_errors

Score: TypeAlias = Callable[[MembershipView, torch.Generator], Tensor]
"""``(view, generator) -> scores [N]``: the larger, the likelier a member. Every random draw is from the generator."""

Requirement: TypeAlias = Callable[[MembershipView], str | None]
"""Returns in words what a view lacks, or ``None``."""

DIAGNOSTIC = frozenset({"overlap"})
"""Facts that no attacker has: a result that needs one is a diagnosis."""


class MembershipError(ValueError):
    """An attack fails, or returns what are no scores; one line."""


@dataclass(frozen=True, kw_only=True)
class MembershipAttack:
    """A registered attack.

    Attributes:
        name: In reports and on the command line.
        source: Paper and section.
        needs: Facts that a threat model must grant; the attack sees nothing else.
        score: The attack itself.
        requires: What else a view must have; returns the reason if it hasn't.
    """

    name: str
    source: str
    needs: frozenset[str]
    score: Score
    requires: Requirement

    @property
    def summary(self) -> str:
        """What it does, in one sentence: the first line of its docstring; empty without one."""
        return summary_of(self.score)

    @property
    def setting(self) -> Literal["realistic", "diagnostic"]:
        """Whether a real attacker could have what it needs."""
        return "diagnostic" if self.needs & DIAGNOSTIC else "realistic"

    def refusal(self, view: MembershipView) -> str | None:
        """Return why it cannot run on a view, or ``None`` if it may."""
        reason = lacking(self.needs, view.knowledge.facts, _EVIDENCE, view) or self.requires(view)
        return None if reason is None else f"{self.name}: {reason}"

    def run(self, view: MembershipView, generator: torch.Generator) -> Tensor:
        """Score the samples of a view.

        The attack sees of the view what it declares to need, and nothing else.

        Args:
            view: What the attacker has.
            generator: CPU generator of every random draw.

        Returns:
            Finite scores, float64 ``[N]``: the larger, the likelier a member.

        Raises:
            ThreatModelError: If the threat model denies what the attack needs.
            MembershipError: If the attack fails, or returns what are no scores.
        """
        if (reason := self.refusal(view)) is not None:
            raise ThreatModelError(reason)
        return checked_scores(self.name, lambda: self.score(view.only(self.needs), generator), len(view.inputs))


def checked_scores(name: str, attack: Callable[[], Tensor], count: int) -> Tensor:
    """Run an attack, and check what it returns.

    Args:
        name: Of the attack, for errors.
        attack: Returns its scores.
        count: Of the samples.

    Returns:
        Finite scores, float64 ``[count]`` on the CPU.

    Raises:
        ThreatModelError: If the attack notices that it lacks something.
        MembershipError: If it fails, or returns what are no scores.
    """
    found = named_errors(name, MembershipError, attack)
    if not isinstance(found, Tensor) or found.shape != (count,):
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise MembershipError(f"{name}: returned {shape}; expected a score for each of {count}")
    scores = found.detach().double().cpu()
    if not torch.isfinite(scores).all():
        raise MembershipError(f"{name}: returned a score that is no finite number")
    return scores


_EVIDENCE: Evidence[MembershipView] = {
    "labels": ("nobody tells the labels of the samples", lambda view: view.labels is not None),
    "query": ("nobody tells what the target answers", lambda view: view.target is not None),
    "perturbed": (
        "nobody has asked the target about altered samples",
        lambda view: view.target is not None and view.target.perturbed is not None,
    ),
    "white_box": (
        "nobody has recorded hidden spikes; only spiking networks have them",
        lambda view: view.target is not None and view.target.counts is not None,
    ),
    "shadow_data": ("there are no shadows", lambda view: len(view.shadows) > 0),
    "distribution": ("there are no samples that nobody trained on", lambda view: view.population is not None),
    "disjoint": (
        "no shadow was trained on samples that the target doesn't know",
        lambda view: view.disjoint is not None,
    ),
    "overlap": ("no shadow was trained on the target's own members", lambda view: view.overlap is not None),
}

MEMBERSHIP_ATTACKS = Registry[MembershipAttack]("membership attack")


def register(
    name: str, *, source: str, needs: Sequence[str], requires: Requirement = lambda view: None
) -> Callable[[Score], Score]:
    """Make the decorated function the membership attack ``name``.

    Args:
        name: Of the attack.
        source: Paper and section.
        needs: Facts of :data:`~snnfl.threat.MEMBERSHIP_FACTS`.
        requires: Returns in words what a view lacks, or ``None``.

    Raises:
        ValueError: If the name is taken.
        ConfigError: If it needs what is no fact.
    """
    for fact in needs:
        MEMBERSHIP_FACTS.find(fact)

    def add(score: Score) -> Score:
        attack = MembershipAttack(name=name, source=source, needs=frozenset(needs), score=score, requires=requires)
        MEMBERSHIP_ATTACKS.add(name, attack, home=score.__module__)
        return score

    return add


def get_membership_attack(name: str) -> MembershipAttack:
    """Return an attack by its name.

    Raises:
        ConfigError: If there is none of that name, with the nearest one.
    """
    return MEMBERSHIP_ATTACKS.find(name)
