"""Membership attacks on federations by name: a function with one decorator is one, and says what it must know."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from snnfl.attacks.registry import kinds_against
from snnfl.config import UpdateKind
from snnfl.membership_attacks.registry import checked_scores
from snnfl.registry import Registry, summary_of
from snnfl.threat import FACTS, FederationView, ThreatModelError, hidden_by_sums

Score: TypeAlias = Callable[[FederationView, torch.Generator], Tensor]
"""``(view, generator) -> scores [N]``: the larger, the likelier a member. Every random draw is from the generator."""

KINDS: frozenset[UpdateKind] = frozenset({"plain", "converted", "native"})
"""The kinds of update that most attacks read alike."""


@dataclass(frozen=True, kw_only=True)
class FederatedAttack:
    """A registered attack.

    Attributes:
        name: In reports and on the command line.
        source: Paper and section.
        needs: Facts of :data:`~snnfl.threat.FACTS` that a threat model must grant.
        against: The kinds of update that it reads.
        score: The attack itself.
    """

    name: str
    source: str
    needs: frozenset[str]
    against: frozenset[UpdateKind]
    score: Score

    @property
    def summary(self) -> str:
        """What it does, in one sentence: the first line of its docstring; empty without one."""
        return summary_of(self.score)

    def refusal(self, view: FederationView) -> str | None:
        """Return why it cannot run on a view, or ``None`` if it may try: it may still notice that it lacks something.

        What is denied is left out of the views, so that an attack which forgot to declare a need fails, too.
        """
        if (kind := view.last.format.kind) not in self.against:
            return f"{self.name}: attacks {' and '.join(sorted(self.against))} updates, this is a {kind} one"
        if denied := sorted(self.needs - view.knowledge.facts):
            if (hidden := hidden_by_sums(denied, view.knowledge)) is not None:
                return f"{self.name}: {hidden}"
            return f"{self.name}: needs {', '.join(denied)}, which the threat model denies"
        if "other_clients" in self.needs and not any(len(each.others) > 1 for each in view.rounds):
            return f"{self.name}: needs two other clients in a round"
        return None

    def run(self, view: FederationView, generator: torch.Generator) -> Tensor:
        """Score the samples of a view.

        Args:
            view: What the server has.
            generator: CPU generator of every random draw.

        Returns:
            Finite scores, float64 ``[N]``: the larger, the likelier a member.

        Raises:
            ThreatModelError: If the threat model denies what the attack needs.
            MembershipError: If the attack fails, or returns what are no scores.
        """
        if (reason := self.refusal(view)) is not None:
            raise ThreatModelError(reason)
        return checked_scores(self.name, lambda: self.score(view, generator), len(view.inputs))


FEDERATED_ATTACKS = Registry[FederatedAttack]("federated membership attack")


def register(
    name: str, *, source: str, needs: Sequence[str], against: UpdateKind | Collection[UpdateKind] = KINDS
) -> Callable[[Score], Score]:
    """Make the decorated function the federated membership attack ``name``.

    Args:
        name: Of the attack.
        source: Paper and section.
        needs: Facts of :data:`~snnfl.threat.FACTS`.
        against: The kinds of update that it reads.

    Raises:
        ValueError: If the name is taken, or an update has no such kind.
        ConfigError: If it needs what is no fact.
    """
    for fact in needs:
        FACTS.find(fact)
    kinds = kinds_against(name, against)

    def add(score: Score) -> Score:
        attack = FederatedAttack(name=name, source=source, needs=frozenset(needs), against=kinds, score=score)
        FEDERATED_ATTACKS.add(name, attack, home=score.__module__)
        return score

    return add


def get_federated_attack(name: str) -> FederatedAttack:
    """Return an attack by its name.

    Raises:
        ConfigError: If there is none of that name, with the nearest one.
    """
    return FEDERATED_ATTACKS.find(name)
