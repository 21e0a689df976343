"""How well a curious server guesses its clients' private biases (SNFL, section 5.3 and Figure 3A)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from snnfl.attacks import biases
from snnfl.attacks.networks import Arrays
from snnfl.auditing.victims import Victim
from snnfl.threat import ThreatModelError

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
        distance: L2 distance to all biases of the trained ANN that the update was made from (SNFL, Figure 3A).
        relative: That distance over the norm of the true biases.
        equal: Part of these biases that are met exactly.
        before: L2 distance to the biases that the round's training started from, which gradient inversion needs.
    """

    server_round: int
    partition: int
    source: str
    distance: float
    relative: float
    equal: float
    before: float


def bias_errors(victims: Sequence[Victim]) -> list[BiasError]:
    """Compare each guess of the private biases with the truth of those clients of an S-run that consented to tell."""
    rows: list[BiasError] = []
    for victim in victims:
        if not victim.view.format.hides_biases or victim.truth is None or not victim.truth.trained_biases:
            continue
        for source, guess in BIAS_SOURCES.items():
            try:
                found = guess(victim.view)
            except ThreatModelError:
                continue
            rows.append(_error(victim, source, found, dict(victim.truth.trained_biases), dict(victim.truth.biases)))
    return rows


def _error(victim: Victim, source: str, found: Arrays, true: Arrays, before: Arrays) -> BiasError:
    norm = sum(float(array.square().sum()) for array in true.values()) ** 0.5
    distance, count = biases.bias_distance(found, true), sum(array.numel() for array in true.values())
    return BiasError(
        server_round=victim.server_round,
        partition=victim.partition,
        source=source,
        distance=distance,
        relative=distance / norm if norm else float("inf"),
        equal=sum(int((found[name] == array).sum()) for name, array in true.items()) / count,
        before=biases.bias_distance(found, before),
    )
