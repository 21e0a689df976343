"""Run attacks on the victims of a recorded run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from snnfl import rng
from snnfl.attacks import Attack, AttackResult, Budget, biases, get_attack, names
from snnfl.audit.scoring import Score, Scorer
from snnfl.audit.victims import Victim
from snnfl.audit.view import Knowledge, ThreatModelError
from snnfl.config import ConfigError
from snnfl.workspace import Workspace

MAXIMUM_STEPS = 64
"""Local steps that an attack simulates at most: each is differentiated twice and kept in memory."""

MAXIMUM_AT_ONCE = 64
"""Images of all victims that are attacked together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Finding:
    """What one attack found of one victim.

    Attributes:
        victim: Who was attacked.
        result: The reconstruction.
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
        knowledge: The threat model; of several clients the first one's, the number of images may differ.
        findings: One per victim; empty if the attack was refused.
        refusal: Why it was.
    """

    attack: str
    source: str
    server_round: int
    knowledge: Knowledge
    findings: tuple[Finding, ...] = ()
    refusal: str | None = None


def applicable(spiking: bool) -> tuple[str, ...]:
    """Return the names of the attacks on a kind of run."""
    return tuple(name for name in names() if get_attack(name).against in ("both", "spiking" if spiking else "plain"))


def check_pictures(work: Workspace) -> None:
    """Refuse data that are no pictures.

    Raises:
        ConfigError: Naming the data set.
    """
    if len(work.dataset.input_shape) != 3:
        raise ConfigError(f"data.source={work.config.data.source}: attacks reconstruct pictures, and it has none")


def attack_all(
    work: Workspace,
    victims: Sequence[Victim],
    attacks: Sequence[str],
    budget: Budget,
    *,
    done: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Attack every victim with every attack; an attack that the threat model denies is an outcome with its reason.

    Args:
        work: Of the run.
        victims: In the order of rounds.
        attacks: Names.
        budget: Of each attack, per victim.
        done: Told each outcome as it comes.

    Raises:
        ConfigError: For an unknown attack, before anything is attacked.
    """
    known = [get_attack(name) for name in attacks]
    scorer, outcomes = Scorer(work), list[Outcome]()
    for server_round, group in groupby(victims, key=lambda victim: victim.server_round):
        of_round = list(group)
        for attack in known:
            outcome = _attack_round(work, scorer, server_round, of_round, attack, budget)
            outcomes.append(outcome)
            done(outcome)
    return outcomes


def _attack_round(
    work: Workspace, scorer: Scorer, server_round: int, victims: list[Victim], attack: Attack, budget: Budget
) -> Outcome:
    about = Outcome(
        attack=attack.name, source=attack.source, server_round=server_round, knowledge=victims[0].view.knowledge
    )
    draw = rng.generator(work.config.run.seed, f"audit {attack.name}", server_round)
    findings: list[Finding] = []
    try:
        for batch in _batches(victims):
            if (reason := _too_long(batch[0].view.knowledge)) is not None:
                raise ThreatModelError(f"{attack.name}: {reason}")
            results = attack.run_many([victim.view for victim in batch], budget=budget, generator=draw)
            findings += [_finding(scorer, *pair) for pair in zip(batch, results, strict=True)]
    except ThreatModelError as error:
        return Outcome(**{**vars(about), "refusal": str(error)})
    return Outcome(**{**vars(about), "findings": tuple(findings)})


def _batches(victims: list[Victim]) -> Iterator[list[Victim]]:
    """Join victims of one threat model, as many as fit."""
    ordered = sorted(victims, key=lambda victim: (victim.view.knowledge.images or 0, victim.partition))
    for knowledge, group in groupby(ordered, key=lambda victim: victim.view.knowledge):
        alike, size = list(group), max(1, MAXIMUM_AT_ONCE // (knowledge.images or 1))
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


def _too_long(knowledge: Knowledge) -> str | None:
    steps = knowledge.steps
    if steps is None or steps <= MAXIMUM_STEPS:
        return None
    return f"the client took {steps} local steps, and at most {MAXIMUM_STEPS} are simulated"


def _finding(scorer: Scorer, victim: Victim, result: AttackResult) -> Finding:
    truth, score = victim.truth, None
    if truth is not None and len(truth.images) == len(truth.labels):
        state = {**scorer.work.initial_state, **victim.view.exchange.sent}
        score = scorer.score(result, truth, state)
    return Finding(victim=victim, result=result, score=score)


BIAS_SOURCES = {
    "as received": biases.as_received,
    "zero": biases.zero,
    "inferred": biases.inferred,
    "mean over rounds": biases.over_rounds,
    "initial weights": biases.initial,
}


@dataclass(frozen=True, kw_only=True)
class BiasError:
    """How far a server's guess of a client's private biases is off.

    Attributes:
        server_round: Counted from 1.
        partition: Of the client.
        source: Where the guess comes from.
        distance: L2 distance over all biases (SNFL, Figure 3A).
        relative: That distance over the norm of the true biases.
        equal: Part of the biases that are met exactly.
    """

    server_round: int
    partition: int
    source: str
    distance: float
    relative: float
    equal: float


def bias_errors(victims: Sequence[Victim]) -> list[BiasError]:
    """Compare each guess of the private biases with those that the client's round started from.

    What a server infers from a round are the biases after its training; with few local steps the two hardly differ.
    """
    rows: list[BiasError] = []
    for victim in victims:
        if not victim.view.spiking or victim.truth is None or not victim.truth.biases:
            continue
        true = dict(victim.truth.biases)
        norm = sum(float(array.square().sum()) for array in true.values()) ** 0.5
        for source, guess in BIAS_SOURCES.items():
            try:
                found = guess(victim.view)
            except ThreatModelError:
                continue
            distance = biases.bias_distance(found, true)
            count = sum(array.numel() for array in true.values())
            equal = sum(int((found[name] == array).sum()) for name, array in true.items()) / count
            rows.append(
                BiasError(
                    server_round=victim.server_round,
                    partition=victim.partition,
                    source=source,
                    distance=distance,
                    relative=distance / norm if norm else float("inf"),
                    equal=equal,
                )
            )
    return rows
