"""Membership attacks tried: each of several networks in turn is the target, and the others are its shadows.

Here the truth is, and in scoring: attacks get a :class:`~snnfl.threat.MembershipView`, which has no target's members.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from snnfl import rng
from snnfl.membership_attacks import MEMBERSHIP_ATTACKS, MembershipAttack, MembershipError, get_membership_attack
from snnfl.threat import MembershipKnowledge, MembershipView, Population, Shadow, Signals

OVERLAP = 0.8
"""Part of the target's members that the paper's shadow is trained on (Moshruba et al., section III-B)."""


def drawn_members(seed: int, count: int, network: int, purpose: str = "members") -> Tensor:
    """Draw half of the candidates for a network, bool ``[count]``, independently of all other networks.

    Were each candidate in exactly half of the networks, as in LiRA's own experiments, the shadows' bits would give the
    target's away.
    """
    members = torch.zeros(count, dtype=torch.bool)
    members[torch.randperm(count, generator=rng.generator(seed, purpose, network))[: count // 2]] = True
    return members


def drawn_overlap(seed: int, members: Tensor, network: int) -> Tensor:
    """Draw :data:`OVERLAP` of a network's members, bool like them."""
    own = torch.nonzero(members).flatten()
    kept = own[torch.randperm(len(own), generator=rng.generator(seed, "overlap", network))[: round(OVERLAP * len(own))]]
    return torch.zeros_like(members).index_fill(0, kept, True)


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """A network's answers, and the truth.

    Attributes:
        signals: For the N candidates.
        members: Which of them it was trained on, bool ``[N]``.
        population: Its signals for the M samples of nobody.
        overlap: A shadow trained on 80 % of its members, which the paper's attack learns from.
    """

    signals: Signals
    members: Tensor
    population: Signals | None = None
    overlap: Shadow | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Trials:
    """Networks trained on random parts of the same candidates.

    Attributes:
        inputs: The candidates, ``[N, *input_shape]``.
        labels: ``[N]``, int64.
        networks: Each is a target once, and a shadow of the others.
        nobody: Samples that no network was trained on: inputs and labels.
        disjoint: A shadow trained on half of these.
        knowledge: The threat model.
        targets: Which networks are attacked; ``None`` for all.
    """

    inputs: Tensor
    labels: Tensor
    networks: Sequence[Trained]
    nobody: tuple[Tensor, Tensor] | None = None
    disjoint: Shadow | None = None
    knowledge: MembershipKnowledge = field(default_factory=MembershipKnowledge)
    targets: Sequence[int] | None = None

    @property
    def attacked(self) -> Sequence[int]:
        """Numbers of the networks that are attacked."""
        return range(len(self.networks)) if self.targets is None else self.targets

    def view(self, target: int) -> MembershipView:
        """Return what an attacker has of a network; its own members aren't in it."""
        own = self.networks[target]
        shadows = [
            Shadow(signals=other.signals, members=other.members, population=other.population)
            for number, other in enumerate(self.networks)
            if number != target
        ]
        population = None
        if self.nobody is not None and own.population is not None:
            population = Population(inputs=self.nobody[0], labels=self.nobody[1], target=own.population)
        return MembershipView(
            inputs=self.inputs,
            knowledge=self.knowledge,
            labels=self.labels,
            target=own.signals,
            shadows=shadows,
            population=population,
            disjoint=self.disjoint,
            overlap=own.overlap,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Finding:
    """What an attack said of each target.

    Attributes:
        attack: The attack.
        scores: By target, float64 ``[N]``.
        control: Of a diagnosis, what it says of each target's candidates when it is shown another network's answers,
            whose members are drawn independently: it must tell nothing, or it knows the samples and not the network.
        reason: Why it was refused, or failed; empty where it was not.
        refused: Whether the threat model, or what there is, denied it.
    """

    attack: MembershipAttack
    scores: Mapping[int, Tensor]
    control: Mapping[int, Tensor] = field(default_factory=dict)
    reason: str = ""
    refused: bool = False


def run_attacks(
    trials: Trials, names: Sequence[str] = (), *, seed: int = 0, watch: Callable[[str], None] = lambda name: None
) -> list[Finding]:
    """Let attacks score the candidates of every target.

    Args:
        trials: The networks.
        names: Of attacks; empty for all.
        seed: Of their random draws.
        watch: Told the name of each attack before it runs.

    Raises:
        ConfigError: For an unknown attack.
    """
    attacks = [get_membership_attack(name) for name in names] or list(MEMBERSHIP_ATTACKS)
    found = []
    for attack in attacks:
        watch(attack.name)
        found.append(_finding(trials, attack, seed))
    return found


def _finding(trials: Trials, attack: MembershipAttack, seed: int) -> Finding:
    scores, control = dict[int, Tensor](), dict[int, Tensor]()
    for target in trials.attacked:
        view = trials.view(target)
        if (reason := attack.refusal(view)) is not None:
            return Finding(attack=attack, scores={}, reason=reason, refused=True)
        draw = rng.generator(seed, f"membership {attack.name}", target)
        try:
            scores[target] = attack.run(view, draw)
            if attack.setting == "diagnostic" and len(trials.networks) > 1:
                other = trials.networks[(target + 1) % len(trials.networks)]
                control[target] = attack.run(replace(view, target=other.signals), draw)
        except MembershipError as error:
            return Finding(attack=attack, scores={}, reason=str(error))
    return Finding(attack=attack, scores=scores, control=control)
