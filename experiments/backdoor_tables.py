"""The tables of ``docs/backdoor.md``, from the rows of ``docs/data/backdoor.csv``."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

from snnfl.config import ConfigError
from snnfl.metrics.images import wilson

BEGIN, END = "<!-- begin backdoor_study: generated, don't edit -->", "<!-- end backdoor_study -->"

PARTITIONS = {"iid": "IID", "dirichlet": "Dir(0.5)", "dirichlet_0.1": "Dir(0.1)"}
"""Name in the rows, and in the tables, which have them in this order."""

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
        f"Command: `python -m experiments.backdoor_study --seeds {seeds}`. It plays further settings with fewer seeds.",
        "**Success**, after the last round: mean over seeds (smallest to largest). *Before* is that of the spiking "
        "network in the last round without the attack, on fewer images.\n\n" + _success(rows),
        "**Detection**, in the rounds of the attack: found attackers / false alarms / AUC.\n\n" + _detection(rows),
        "**False alarms without any attack**, over all rounds of clean runs: share of clients (95 % interval).\n\n"
        + _alarms(rows),
        "**Two of ten attack, IID**: rates with 95 % intervals, as if rounds were independent; *apart* is the share of "
        "rounds in which every attacker has a larger score than every honest client.\n\n" + _two_of_ten(rows),
    ]
    document.write_text("\n".join([before + BEGIN, "\n\n".join(parts), END + after]), encoding="utf-8")


def _success(rows: Rows) -> str:
    last = max(int(row["round"]) for row in rows)
    head = ("attack", "partition", "attackers of 10", "seeds", "accuracy SNN", "accuracy ANN", "success SNN")
    columns = ("server_snn_accuracy", "server_ann_accuracy", "attack_success_snn", "attack_success_ann")
    lines = []
    for setting in _settings(rows):
        own = [row for row in _of(rows, setting) if row["detector"] == "norm"]
        final = [row for row in own if int(row["round"]) == last]
        quiet = max((int(row["round"]) for row in own if not int(row["attacking"])), default=0)
        before = [float(row["attack_success_snn"]) for row in own if int(row["round"]) == quiet]
        values = [_spread([float(row[name]) for row in final]) for name in columns]
        lines.append([*_named(setting), str(len(final)), *values, _spread(before) if before and setting[2] else "–"])
    return _table((*head, "success ANN", "before"), lines)


def _detection(rows: Rows) -> str:
    detectors = _detectors(rows)
    lines = []
    for setting in (item for item in _settings(rows) if item[2]):
        attacked = _attacked(_of(rows, setting))
        cells = [_verdict([row for row in attacked if row["detector"] == name]) for name in detectors]
        lines.append([*_named(setting), *cells])
    return _table(("attack", "partition", "attackers", *detectors), lines)


def _verdict(rows: Rows) -> str:
    found, false = _sum(rows, "found") / _sum(rows, "attacking"), _sum(rows, "false_alarms") / _sum(rows, "honest")
    return f"{found:.2f} / {false:.2f} / {statistics.fmean(float(row['auc']) for row in rows):.2f}"


def _alarms(rows: Rows) -> str:
    lines = []
    for partition, name in PARTITIONS.items():
        clean = _of(rows, ("clean", partition, 0))
        if clean:
            of = [[row for row in clean if row["detector"] == name] for name in _detectors(rows)]
            lines.append([name, *(_rate(_sum(each, "false_alarms"), _sum(each, "honest")) for each in of)])
    return _table(("partition", *_detectors(rows)), lines)


def _two_of_ten(rows: Rows) -> str:
    lines = []
    for setting in (item for item in _settings(rows) if item[1:] == ("iid", 2)):
        attack, attacked = setting[0], _attacked(_of(rows, setting))
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
    found = dict.fromkeys((row["attack"], row["partition"], int(row["attackers"])) for row in rows)
    order = list(PARTITIONS)
    return sorted(found, key=lambda setting: (order.index(setting[1]), setting[2]))


def _named(setting: Setting) -> list[str]:
    return [setting[0], PARTITIONS[setting[1]], str(setting[2])]


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
