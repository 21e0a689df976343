"""Run attacks on the victims of a recorded run."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from snnfl import rng
from snnfl.attacks import Attack, AttackError, AttackResult, Budget, get_attack, names
from snnfl.auditing.scoring import Score, Scorer
from snnfl.auditing.setting import Setting
from snnfl.auditing.victims import Victim
from snnfl.config import UpdateKind
from snnfl.data import DataKind
from snnfl.threat import Knowledge, ThreatModelError

logger = logging.getLogger(__name__)

MAXIMUM_STEPS = 64
"""Local steps that an attack simulates at most: each is differentiated twice and kept in memory."""

MAXIMUM_IMAGES = 1024
"""Images of one client that an attack reconstructs at most, whatever number the client claims."""

MAXIMUM_AT_ONCE = 64
"""Images of all victims that are attacked together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Finding:
    """What one attack found of one victim.

    Attributes:
        victim: Who was attacked; of a sum, under the partition of one of its clients, with the others' truth, too.
        result: The reconstruction; its trail is scored and dropped.
        score: ``None`` where nobody consented to tell the truth.
    """

    victim: Victim
    result: AttackResult
    score: Score | None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One attack on one round of a run.

    Attributes:
        attack: Its name.
        source: Paper and section.
        server_round: Counted from 1.
        kind: Of the data.
        knowledge: The threat model; of several clients the first one's, the number of images may differ.
        findings: One per client whose update could be attacked, or a sum that it is in.
        passed_over: Partitions of the others, each with the reason.
        failed: Whether the attack itself failed on one of them: a mistake of its code, not a refusal.
    """

    attack: str
    source: str
    server_round: int
    knowledge: Knowledge
    kind: DataKind = "images"
    findings: tuple[Finding, ...] = ()
    passed_over: tuple[tuple[int, str], ...] = ()
    failed: bool = False

    @property
    def refusal(self) -> str | None:
        """Why nobody was attacked, or ``None``."""
        return None if self.findings or not self.passed_over else self.passed_over[0][1]


def applicable(kind: UpdateKind, *, crafted: bool = True) -> tuple[str, ...]:
    """Return the names of the attacks on a kind of update; without ``crafted``, not those of a malicious server."""
    attacks = {name: get_attack(name) for name in names()}
    return tuple(
        name
        for name, attack in attacks.items()
        if kind in attack.against and (crafted or "crafted_weights" not in attack.needs)
    )


def attack_all(
    setting: Setting,
    victims: Sequence[Victim],
    attacks: Sequence[str],
    budget: Budget,
    *,
    begun: Callable[[str, int], None] = lambda name, server_round: None,
    done: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Attack every victim with every attack; one that the threat model denies, or that fails, is an outcome, too.

    Args:
        setting: Of the run.
        victims: In the order of rounds.
        attacks: Names.
        budget: Of each attack, per victim.
        begun: Told name and round of each attack before it.
        done: Told each outcome as it comes.

    Raises:
        ConfigError: For an unknown attack, before anything is attacked.
    """
    known = [get_attack(name) for name in attacks]
    scorer, outcomes = Scorer(setting), list[Outcome]()
    for server_round, group in groupby(victims, key=lambda victim: victim.server_round):
        of_round = list(group)
        for attack in known:
            begun(attack.name, server_round)
            outcome = _attack_round(setting, scorer, server_round, of_round, attack, budget)
            outcomes.append(outcome)
            done(outcome)
    return outcomes


def _attack_round(
    setting: Setting, scorer: Scorer, server_round: int, victims: list[Victim], attack: Attack, budget: Budget
) -> Outcome:
    """Attack whom the threat model lets attack: what one client claims doesn't protect the others.

    An attack may notice only in its own code that it lacks something: that is a refusal as any other. One that fails on
    several victims at once is tried on each by itself, so that what one client sent protects no other.
    """
    draw = rng.generator(setting.seed, f"audit {attack.name}", server_round)
    victims = [_doubted(attack, victim) for victim in victims]
    reasons = {victim.partition: _refusal(attack, victim) for victim in victims}
    findings, failed = list[Finding](), False
    batches = deque(_batches([victim for victim in victims if reasons[victim.partition] is None]))
    while batches:
        batch = batches.popleft()
        try:
            results = attack.run_many([victim.view for victim in batch], budget=budget, generator=draw)
        except ThreatModelError as error:
            reasons |= {victim.partition: str(error) for victim in batch}
        except AttackError as error:
            logger.debug("attack failed", exc_info=error)
            if len(batch) > 1:
                batches.extendleft([victim] for victim in reversed(batch))
                continue
            reasons[batch[0].partition], failed = str(error), True
        else:
            for pair in zip(batch, results, strict=True):
                findings += _findings(scorer, *pair)
    return Outcome(
        attack=attack.name,
        source=attack.source,
        server_round=server_round,
        kind=setting.dataset.kind,
        knowledge=(findings[0].victim if findings else victims[0]).view.knowledge,
        findings=tuple(findings),
        passed_over=tuple((partition, reason) for partition, reason in reasons.items() if reason is not None),
        failed=failed,
    )


def _refusal(attack: Attack, victim: Victim) -> str | None:
    known, steps = victim.view.knowledge, victim.view.knowledge.steps
    try:
        reason = attack.refusal(victim.view)
    except Exception as error:  # of code that anybody may have written, on a model that anybody may have
        logger.debug("refusal failed", exc_info=error)
        return f"{attack.name}: cannot tell whether it applies ({type(error).__name__}: {' '.join(str(error).split())})"
    if reason is not None:
        return reason
    if steps is not None and steps > MAXIMUM_STEPS:
        return f"{attack.name}: the client took {steps} local steps, and at most {MAXIMUM_STEPS} are simulated"
    if known.images is not None and known.images > MAXIMUM_IMAGES:
        return f"{attack.name}: the client claims {known.images} images, at most {MAXIMUM_IMAGES} are reconstructed"
    return None


def _doubted(attack: Attack, victim: Victim) -> Victim:
    """Return a victim without the number of images that it claims, where that is too many and its update tells fewer.

    A client may claim any number, and none may protect it from an attack that can do without one.
    """
    known, steps = victim.view.knowledge, victim.view.knowledge.steps
    many = (steps or 0) > MAXIMUM_STEPS or (known.images or 0) > MAXIMUM_IMAGES
    if not many or "images" in attack.needs:
        return victim
    counted = replace(victim, view=replace(victim.view, knowledge=known.without(["images"])))
    return counted if _refusal(attack, counted) is None else victim


def _batches(victims: list[Victim]) -> Iterator[list[Victim]]:
    """Join victims of one threat model, as many as fit."""
    ordered = sorted(victims, key=lambda victim: (victim.view.knowledge.images or 0, victim.partition))
    for knowledge, group in groupby(ordered, key=lambda victim: victim.view.knowledge):
        alike, size = list(group), max(1, MAXIMUM_AT_ONCE // (knowledge.images or 1))
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


def _findings(scorer: Scorer, victim: Victim, result: AttackResult) -> list[Finding]:
    """Score what was found of a victim; of a sum what was found of each of its clients."""
    truth, bare = victim.truth, replace(result, trail=())
    if truth is None or len(truth.images) != len(truth.labels):
        return [Finding(victim=victim, result=bare, score=None)]
    state = {**scorer.setting.initial_state, **victim.view.exchange.sent}
    sizes = list(victim.members.values()) or [len(truth.labels)]
    scores = scorer.scores(result, truth, sizes, state)
    clients = list(victim.members) or [victim.partition]
    return [
        Finding(victim=replace(victim, partition=client), result=bare, score=score)
        for client, score in zip(clients, scores, strict=True)
    ]
