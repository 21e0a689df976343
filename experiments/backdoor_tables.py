"""The tables of ``docs/backdoor.md``, from the rows of ``docs/data/backdoor.csv``."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

from snnfl.config import ConfigError
from snnfl.metrics.images import wilson

BEGIN, END = "<!-- begin backdoor_study: generated, don't edit -->", "<!-- end backdoor_study -->"

Rows: TypeAlias = Sequence[dict[str, str]]
Setting: TypeAlias = tuple[str, str, int]


def write_tables(rows: Rows, document: Path) -> None:
    """Replace what stands between the document's two markers.

    Raises:
        ConfigError: If it has none.
    """
    text = document.read_text(encoding="utf-8") if document.exists() else ""
    if BEGIN not in text or END not in text:
        raise ConfigError(f"{document}: put the lines {BEGIN!r} and {END!r} where the tables belong")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    seeds = len({row["seed"] for row in rows})
    parts = [
        f"{seeds} seeds. Command: `python -m experiments.backdoor_study --seeds {seeds}`",
        "**Success**, after the last round: mean over seeds (smallest to largest).\n\n" + _success(rows),
        "**Detection**, in the rounds of the attack: found attackers / false alarms / AUC.\n\n" + _detection(rows),
        "**False alarms without any attack**, over all rounds of clean runs: share of clients (95 % interval).\n\n"
        + _alarms(rows),
        "**Two of ten attack, IID**: rates with 95 % intervals, as if rounds were independent; *apart* is the share of "
        "rounds in which every attacker has a larger score than every honest client.\n\n" + _two_of_ten(rows),
    ]
    document.write_text("\n".join([before + BEGIN, "\n\n".join(parts), END + after]), encoding="utf-8")


def _success(rows: Rows) -> str:
    last = max(int(row["round"]) for row in rows)
    head = ("attack", "partition", "attackers of 10", "accuracy SNN", "accuracy ANN", "success SNN", "success ANN")
    columns = ("server_snn_accuracy", "server_ann_accuracy", "attack_success_snn", "attack_success_ann")
    lines = []
    for setting in _settings(rows):
        final = [row for row in _of(rows, setting) if int(row["round"]) == last and row["detector"] == "norm"]
        lines.append([*map(str, setting), *(_spread([float(row[name]) for row in final]) for name in columns)])
    return _table(head, lines)


def _detection(rows: Rows) -> str:
    detectors = _detectors(rows)
    lines = []
    for setting in (item for item in _settings(rows) if item[2]):
        attacked = _attacked(_of(rows, setting))
        cells = [_verdict([row for row in attacked if row["detector"] == name]) for name in detectors]
        lines.append([*map(str, setting), *cells])
    return _table(("attack", "partition", "attackers", *detectors), lines)


def _verdict(rows: Rows) -> str:
    found, false = _sum(rows, "found") / _sum(rows, "attacking"), _sum(rows, "false_alarms") / _sum(rows, "honest")
    return f"{found:.2f} / {false:.2f} / {statistics.fmean(float(row['auc']) for row in rows):.2f}"


def _alarms(rows: Rows) -> str:
    lines = []
    for partition in ("iid", "dirichlet"):
        clean = _of(rows, ("clean", partition, 0))
        if clean:
            of = [[row for row in clean if row["detector"] == name] for name in _detectors(rows)]
            lines.append([partition, *(_rate(_sum(each, "false_alarms"), _sum(each, "honest")) for each in of)])
    return _table(("partition", *_detectors(rows)), lines)


def _two_of_ten(rows: Rows) -> str:
    lines = []
    for attack in ("badnets", "forging", "replacement"):
        attacked = _attacked(_of(rows, (attack, "iid", 2)))
        for name in _detectors(attacked):
            own = [row for row in attacked if row["detector"] == name]
            apart = sum(float(row["smallest_guilty"]) > float(row["largest_honest"]) for row in own)
            rates = (
                _rate(_sum(own, "found"), _sum(own, "attacking")),
                _rate(_sum(own, "false_alarms"), _sum(own, "honest")),
            )
            smallest = _spread([float(row["smallest_guilty"]) for row in own], "{:.3g}", statistics.median)
            largest = _spread([float(row["largest_honest"]) for row in own], "{:.3g}", statistics.median)
            lines.append([attack, name, *rates, f"{apart} of {len(own)}", smallest, largest])
    head = ("attack", "detector", "found", "false alarms", "apart", "smallest score of an attacker")
    return _table((*head, "largest of an honest client"), lines)


def _settings(rows: Rows) -> list[Setting]:
    return list(dict.fromkeys((row["attack"], row["partition"], int(row["attackers"])) for row in rows))


def _detectors(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["detector"] for row in rows))


def _of(rows: Rows, setting: Setting) -> Rows:
    return [row for row in rows if (row["attack"], row["partition"], int(row["attackers"])) == setting]


def _attacked(rows: Rows) -> Rows:
    return [row for row in rows if int(row["attacking"])]


def _sum(rows: Rows, name: str) -> int:
    return sum(int(row[name]) for row in rows)


def _rate(count: int, total: int) -> str:
    rate = wilson(count, total)
    return f"{rate.value:.2f} ({rate.low:.2f} to {rate.high:.2f})"


def _spread(
    values: Sequence[float], form: str = "{:.2f}", centre: Callable[[Sequence[float]], float] = statistics.fmean
) -> str:
    return f"{form.format(centre(values))} ({form.format(min(values))} to {form.format(max(values))})"


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = "|".join(["---"] * len(head))
    return "\n".join([f"| {' | '.join(head)} |", f"|{rule}|", *(f"| {' | '.join(line)} |" for line in lines)])
