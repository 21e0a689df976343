"""The best attack of each round against the best guess and the best attack on plain twins, corrected for choosing."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from snnfl.attacks.registry import ATTACKS
from snnfl.auditing.measures import MEASURES, Metric
from snnfl.auditing.scorecard import values_by_victim
from snnfl.auditing.selection import Compared, compared
from snnfl.auditing.suite import Outcome
from snnfl.data import DataKind


@dataclass(frozen=True, kw_only=True)
class Best:
    """What the best attack of a round finds.

    Attributes:
        server_round: Counted from 1.
        kind: Of the data.
        victims: How many.
        value: Mean of the first metric, each victim's attack being chosen on the others.
        over_floor: Against the best guess that needs no update.
        over_control: Against the best attack on the plain twins of the same clients, if they were attacked.
    """

    server_round: int
    kind: DataKind
    victims: int
    value: float
    over_floor: Compared
    over_control: Compared | None

    @property
    def metric(self) -> Metric:
        """What is compared."""
        return MEASURES[self.kind].metrics[0]


def best_attacks(outcomes: Sequence[Outcome], controls: Sequence[Outcome] = ()) -> list[Best]:
    """Compare the best attack of each round; a round with no scored attack, or one victim of several, has none.

    Args:
        outcomes: Of the attacks on a run, in the order of rounds.
        controls: Of attacks on its clients' plain twins.
    """
    found = []
    for server_round, group in groupby(outcomes, key=lambda outcome: outcome.server_round):
        of_round = list(group)
        first = MEASURES[of_round[0].kind].metrics[0]
        attacks = {outcome.attack: values_by_victim(outcome, first.name) for outcome in of_round}
        over_floor = compared(attacks, _floors(of_round, first.name), higher=first.higher)
        if over_floor is None:
            continue
        twins = {c.attack: values_by_victim(c, first.name) for c in controls if c.server_round == server_round}
        found.append(
            Best(
                server_round=server_round,
                kind=of_round[0].kind,
                victims=len(over_floor.best.values),
                value=statistics.fmean(over_floor.best.values.values()),
                over_floor=over_floor,
                over_control=compared(_of_one_round(attacks), twins, higher=first.higher),
            )
        )
    return found


def _of_one_round(attacks: dict[str, dict[int, float]]) -> dict[str, dict[int, float]]:
    """Leave out attacks that read earlier rounds: twins have none, and so no counterpart of them."""
    reading = {name for name, attack in ATTACKS.items.items() if "earlier_rounds" in attack.needs}
    return {name: found for name, found in attacks.items() if name not in reading}


def _floors(outcomes: Sequence[Outcome], metric: str) -> dict[str, dict[int, float]]:
    """Return what each guess without any update scores, by its name and victim."""
    floors: dict[str, dict[int, float]] = {}
    for finding in (finding for outcome in outcomes for finding in outcome.findings):
        if finding.score is not None:
            for name, values in finding.score.floors.items():
                floors.setdefault(name, {})[finding.victim.partition] = values[metric]
    return floors
