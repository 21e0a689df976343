"""The tables of ``federated/README.md``: what a server tells of its clients' members, from every row of ``laptop.csv``.

A figure is a mean over seeds, each the mean over that seed's clients. Its interval is that of a mean of so many seeds
(Student's t), and never narrower than what drawing clients and samples leaves within each seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from snnfl.auditing.federated_membership import BEST
from snnfl.auditing.membership_checks import at_gap, shared_gap
from snnfl.auditing.scorecard import csv_rows
from snnfl.metrics.roc import Estimate, mean_of

Row: TypeAlias = Mapping[str, str]
NORMAL = 1.959964
"""Quantile of the normal distribution for 95 %."""

COMPARED = ("FedAvg", "S-FedAvg", "SNN")
"""Kinds of clients without privacy, each of which is attacked by itself."""


def federated_part(data: Path) -> str:
    """Lay out what was measured: AUC over rounds, epsilon beside what is found, differences, and equal gaps."""
    rows = csv_rows(data)
    seeds, rounds = _distinct(rows, "seed"), sorted({int(row["round"]) for row in rows})
    kinds, last = _distinct(rows, "kind"), rounds[-1]
    compared = [kind for kind in COMPARED if kind in kinds]
    spent = math.fsum(max(float(r["cpu_s"]) for r in of) for of in _grouped(rows, "kind", "seed", "round").values())
    head = f"Seeds {', '.join(seeds)}; mean over seeds [95 %]; {spent / 60:.0f} min of processor time for the attacks."
    over = [[kind, *(_told(rows, kind, server_round, "auc") for server_round in rounds)] for kind in kinds]
    beside = [
        [
            kind,
            _epsilon(rows, kind, last),
            *(_told(rows, kind, last, of) for of in ("test_accuracy", "gap", "auc", "tpr_at_1")),
        ]
        for kind in kinds
    ]
    attacks = [name for name in _distinct(rows, "attack") if name != BEST]
    each = [[name, *(_told(rows, kind, last, "auc", name) for kind in compared)] for name in attacks]
    differences = [
        [f"{kind} − FedAvg", *(_difference(rows, kind, "FedAvg", server_round) for server_round in rounds)]
        for kind in kinds
        if kind != "FedAvg"
    ]
    of_rounds = [f"round {server_round}" for server_round in rounds]
    gap = "train less test accuracy"
    parts = [
        f"{head} Command: `python -m experiments.federated_membership`. Every row: [laptop.csv](laptop.csv).",
        _table("The best attack, AUC", ["clients", *of_rounds], over),
        _table(
            f"Epsilon beside what the best attack finds, round {last}",
            ["clients", "epsilon", "test accuracy", gap, "AUC", "TPR at 1 % FPR"],
            beside,
        ),
        _table(f"Each attack, AUC, round {last}", ["attack", *compared], each),
        _table("AUC of the best attack: differences, paired by seed", ["", *of_rounds], differences),
        _table(
            "At equal gaps",
            ["clients", "train less test accuracy", "AUC of the best attack"],
            _equal(rows, rounds, compared),
        ),
    ]
    return "\n\n".join(part for part in parts if part)


def _told(rows: Sequence[Row], kind: str, server_round: int, figure: str, attack: str = BEST) -> str:
    """Write a figure's mean over seeds with its interval."""
    found = _best(rows, kind, server_round, attack)
    values = [float(row[figure]) for row in found if row[figure]]
    if not values:
        return "–"
    form: Callable[[float], str] = "{:.3f}".format if figure == "auc" else lambda value: f"{100 * value:.1f}"
    widths = [float(row[f"{figure}_high"]) - float(row[f"{figure}_low"]) for row in found if row.get(f"{figure}_low")]
    known = len(widths) == len(values)
    deviation = math.sqrt(math.fsum((width / 2 / NORMAL) ** 2 for width in widths)) / len(values) if known else 0.0
    estimate = mean_of(values, low=-1.0 if figure == "gap" else 0.0, deviation=deviation)
    return _written(estimate, form, "" if figure == "auc" else " %")


def _written(estimate: Estimate, form: Callable[[float], str], unit: str = "") -> str:
    ends = "" if math.isnan(estimate.low) else f" [{form(estimate.low)}, {form(estimate.high)}]"
    return f"{form(estimate.value)}{unit}{ends}"


def _epsilon(rows: Sequence[Row], kind: str, server_round: int) -> str:
    found = {row["epsilon"] for row in _best(rows, kind, server_round)}
    return ", ".join(f"{float(value):,.4g}" if value else "none" for value in sorted(found)) or "–"


def _best(rows: Sequence[Row], kind: str, server_round: int, attack: str = BEST) -> list[Row]:
    """Return an attack's row of each seed; of a sum, one target, the best by AUC stands for the one that is chosen."""
    found = [r for r in rows if r["kind"] == kind and int(r["round"]) == server_round and r["auc"]]
    own = [row for row in found if row["attack"] == attack]
    if own or attack != BEST:
        return own
    return [max(of, key=lambda row: float(row["auc"])) for of in _grouped(found, "seed").values()]


def _difference(rows: Sequence[Row], kind: str, other: str, server_round: int) -> str:
    more, less = ({row["seed"]: float(row["auc"]) for row in _best(rows, each, server_round)} for each in (kind, other))
    both = [more[seed] - less[seed] for seed in more if seed in less]
    return _written(mean_of(both, low=-1.0), "{:+.3f}".format) if both else "–"


def _equal(rows: Sequence[Row], rounds: Sequence[int], kinds: Sequence[str]) -> list[list[str]]:
    """Compare the first kind with each other one where their gaps are equal: over rounds they pass through larger ones.

    Of a pair that shares no gap, one of which overfits more in its first round than the other in its last, no row.
    """

    def of(kind: str, figure: str) -> list[list[float]]:
        columns = [[float(row[figure]) for row in _best(rows, kind, server_round)] for server_round in rounds]
        return [list(of_seed) for of_seed in zip(*columns, strict=True)]

    lines = []
    for pair in ((kinds[0], other) for other in kinds[1:]):
        if (gap := shared_gap([of(kind, "gap") for kind in pair])) is None:
            continue
        found = {kind: at_gap(gap, of(kind, "gap"), of(kind, "auc")) for kind in pair}
        lines += [
            [kind, f"{100 * gap:.1f} %", "not reached" if each is None else _written(each, "{:.3f}".format)]
            for kind, each in found.items()
        ]
    return lines


def _distinct(rows: Sequence[Row], column: str) -> list[str]:
    return list(dict.fromkeys(row[column] for row in rows))


def _grouped(rows: Sequence[Row], *columns: str) -> dict[tuple[str, ...], list[Row]]:
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[column] for column in columns), []).append(row)
    return found


def _table(title: str, head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    if not lines:
        return ""
    return f"**{title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])
