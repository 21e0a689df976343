"""The scorecard: one object per attack, with its threat model, metric, value, interval, floor and verdict."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch

from snnfl.auditing.measures import BY_RUN, COMMON, IDENTIFIED, MEASURES, Measures, Metric
from snnfl.auditing.scoring import Score
from snnfl.auditing.selection import compared
from snnfl.auditing.setting import Setting
from snnfl.auditing.suite import Outcome
from snnfl.auditing.verdicts import interval, judge, judge_labels, reason
from snnfl.config import counted
from snnfl.files import write_bytes
from snnfl.metrics.images import success_rate, wilson
from snnfl.threat import Knowledge

Entry: TypeAlias = dict[str, Any]

WHO = "honest-but-curious server"
"""Who attacks: it follows the protocol, and sees what it sends to each client and gets back."""

MALICIOUS = "malicious server, beyond honest-but-curious"
"""Who attacks with weights of its own making."""

GIVEN = "given"
"""What is said of labels that the attacker was given: nothing is to be judged."""


def entries(setting: Setting, outcomes: Sequence[Outcome], controls: Sequence[Outcome] = ()) -> list[Entry]:
    """Summarise what attacks found in a run.

    Intervals are 95 % of Student's t over victims, each victim's samples counting as one; rates and identifications
    have Wilson's. The verdict compares a reconstruction with the best guess that needs no update, victim by victim, in
    the judged metrics of the data (of images PSNR and SSIM) and in IIP (whose guess is one of all candidates, if no
    floor identifies more): ``leaks`` if the interval of one difference lies above zero, ``nothing seen`` if all lie
    below, else ``unclear``. Since one of k suffices, these intervals hold at 1 - 0.05/k (Bonferroni). A distorted
    picture may score less than a mean colour, and still tell whose it is.

    Args:
        setting: Of the run.
        outcomes: Of the attacks on it.
        controls: Of attacks on its clients' plain twins; the best of them is what each attack is compared with,
            corrected for the choice (:func:`~snnfl.auditing.selection.compared`).
    """
    return [_entry(setting, outcome, controls) for outcome in outcomes]


def write_json(path: Path, found: Sequence[Mapping[str, Any]]) -> None:
    """Write entries as JSON, in one step."""
    write_bytes(path, (json.dumps(list(found), indent=1, allow_nan=False) + "\n").encode())


def as_csv(found: Sequence[Entry]) -> str:
    """Write entries as CSV: a row per run, round and attack; what is unknown is empty."""
    kinds = kinds_of(found)
    metrics = [*dict.fromkeys(metric for kind in kinds for metric in kind.metrics), *COMMON]
    names = [metric.name for metric in metrics]
    judged = [metric.name for metric in metrics if metric.judged]
    rated = [metric.name for metric in metrics if metric.success is not None]
    texts = ["run", "algorithm", "round", "attack", "setting", "victims", "verdict", "label_verdict"]
    control = ["control", "over_control", "over_control_low", "over_control_high"]
    rows = []
    for entry in found:
        better = " ".join(name for name, how in entry["against_floor"].items() if how == "better")
        cells = [*(entry[name] for name in texts), better, entry["floor"]["name"], entry["refusal"]]
        for name in names:
            cells += _triple(entry["metrics"].get(name))
        cells += [entry["floor"].get(name) for name in judged]
        cells += [rate["value"] if (rate := (entry["rates"] or {}).get(name)) else None for name in rated]
        cells += [entry["lpips"]["value"] if isinstance(entry["lpips"], dict) else entry["lpips"]]
        cells += [entry["control"]["attack"], *_triple(entry["control"])] if entry["control"] else [None] * 4
        rows.append([*cells, entry["extractor"], entry["chance"]])
    numbers = [f"{name}{part}" for name in names for part in ("", "_low", "_high")]
    other = [*(f"floor_{name}" for name in judged), *(f"rate_{name}" for name in rated), "lpips"]
    return csv_text(
        [*texts, "better_than_floor", "floor", "refusal", *numbers, *other, *control, "extractor", "chance"], rows
    )


def curves_as_csv(found: Sequence[Entry]) -> str:
    """Write how the first metric and objective go with the iterations, as CSV: a row per run, round, attack and point.

    Its columns have that metric's name: of images ``psnr``.
    """
    head, firsts = ["run", "round", "attack", "iteration", "objective"], [kind.metrics[0] for kind in kinds_of(found)]
    names = list(dict.fromkeys(metric.name for metric in firsts))
    rows = [
        [*(entry[name] for name in head[:3]), point["iteration"], point["objective"],
         *(cell for name in names for cell in [*_triple(point.get(name)), point.get(f"rate_{name}")])]
        for entry in found for point in entry["curve"]
    ]  # fmt: skip
    columns = [column for name in names for column in (name, f"{name}_low", f"{name}_high", f"rate_{name}")]
    return csv_text([*head, *columns], rows)


def kinds_of(found: Sequence[Entry]) -> list[Measures]:
    """Return how the kinds of data of some entries are scored, each once; images where there is none."""
    return [MEASURES[kind] for kind in dict.fromkeys(entry["kind"] for entry in found)] or [MEASURES["images"]]


def csv_text(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a table as CSV: floats with four digits, nothing for ``None``."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([f"{cell:.4g}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    return stream.getvalue()


def csv_rows(path: Path) -> list[dict[str, str]]:
    """Read the rows of a CSV file; none where there is no file yet."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _triple(summary: Mapping[str, Any] | None) -> list[float | None]:
    """Return a value with the ends of its interval."""
    return [summary["value"], *(summary["interval"] or (None, None))] if summary else [None] * 3


def _entry(setting: Setting, outcome: Outcome, controls: Sequence[Outcome]) -> Entry:
    scores = [finding.score for finding in outcome.findings if finding.score is not None]
    knowledge, results = outcome.knowledge, [finding.result for finding in outcome.findings]
    measures = MEASURES[outcome.kind]
    judgement = judge(scores, outcome.kind)
    first = measures.metrics[0].name
    metrics = _metrics(scores, measures)
    entry: Entry = {
        "run": setting.name,
        "algorithm": setting.algorithm,
        "updates": setting.updates,
        "round": outcome.server_round,
        "attack": outcome.attack,
        "source": outcome.source,
        "kind": outcome.kind,
        "threat_model": {
            "who": who(knowledge),
            **{name: getattr(knowledge, name) for name in knowledge.__dataclass_fields__},
            "facts": sorted(knowledge.facts),
        },
        "setting": results[0].setting if results else None,
        "reasons": list(results[0].reasons) if results else [],
        "unexplained": sum(not result.explained for result in results),
        "choices": dict(Counter(result.choice for result in results if result.choice)),
        "refusal": outcome.refusal,
        "victims": len(outcome.findings),
        "passed_over": [{"partition": partition, "reason": reason} for partition, reason in outcome.passed_over],
        "metric": first,
        "value": metrics[first]["value"] if scores else None,
        "interval": metrics[first]["interval"] if scores else None,
        "floor": dict(judgement.floor),
        "metrics": metrics,
        "lpips": _perceptual(scores),
        "rates": _rates(scores, measures),
        "extractor": scores[0].extractor if scores else None,
        "chance": statistics.fmean(score.chance for score in scores) if scores else None,
        "verdict": judgement.verdict if outcome.refusal is None else "failed" if outcome.failed else "refused",
        "against_floor": dict(judgement.against_floor),
        "reason": reason(judgement.against_floor, outcome.kind),
        "label_verdict": GIVEN if scores and knowledge.labels else judge_labels(scores),
        "label_floor": statistics.fmean(score.label_floor for score in scores) if scores else None,
        "control": _over_control(outcome, controls, measures),
        "curve": _curve(outcome, measures.metrics[0]),
    }
    return entry | {"verdict_text": _text(entry, measures)}


def who(knowledge: Knowledge) -> str:
    """Say who attacks, and what it sees of whom."""
    if knowledge.crafted_weights:
        return MALICIOUS
    if not knowledge.colluding and knowledge.rounds == 1 and knowledge.clients in (None, 1):
        return WHO
    has = "what is left of a sum, one client's update" if knowledge.clients == 1 else _whose(knowledge)
    does = f", which colludes with {knowledge.colluding} others" if knowledge.colluding else ""
    if knowledge.rounds > 1:
        does, has = f", which compares the sums of {knowledge.rounds} rounds", f"an estimate of {_whose(knowledge)}"
    return f"{WHO} with secure aggregation{does}: it has {has}"


def _whose(knowledge: Knowledge) -> str:
    if knowledge.clients == 1:
        return "one client's update"
    return f"the sum of {knowledge.clients or 'an unknown number of'} clients' updates"


def value_of(score: Score, name: str) -> float | None:
    """Return a number of a score by its metric's name; ``None`` if it has none."""
    return score.label_accuracy if name == "label_accuracy" else score.values.get(name)


def values_by_victim(outcome: Outcome, name: str) -> dict[int, float]:
    """Return a metric of each scored victim of an outcome, by partition."""
    return {f.victim.partition: f.score.values[name] for f in outcome.findings if f.score is not None}


def _metrics(scores: Sequence[Score], measures: Measures) -> dict[str, Entry]:
    """Summarise each metric over victims; the share of samples that are identified has Wilson's interval."""
    found = {}
    for metric in (*measures.metrics, *COMMON):
        values = [value for score in scores if (value := value_of(score, metric.name)) is not None]
        if values and metric.name in (IDENTIFIED, BY_RUN):
            rate = wilson(sum(values), len(values))
            found[metric.name] = {"value": rate.value, "interval": (rate.low, rate.high)}
        elif values:
            found[metric.name] = _summary(values)
    return found


def _over_control(outcome: Outcome, controls: Sequence[Outcome], measures: Measures) -> Entry | None:
    """Compare, victim by victim, with the attack that finds most in the plain twins of the same round."""
    first = measures.metrics[0]
    others = {
        control.attack: values_by_victim(control, first.name)
        for control in controls
        if control.server_round == outcome.server_round
    }
    found = compared({outcome.attack: values_by_victim(outcome, first.name)}, others, higher=first.higher)
    if found is None:
        return None
    chosen = found.other
    return {
        "attack": chosen.attack, "candidates": chosen.candidates, "value": found.value, "interval": found.interval
    }  # fmt: skip


def _curve(outcome: Outcome, first: Metric) -> list[Entry]:
    """Average objective (over its first value) and first metric over victims; early stops keep what they found."""
    curves = [finding.result.curve for finding in outcome.findings]
    scored = [finding.score.curve for finding in outcome.findings if finding.score is not None]
    points = []
    for iteration in sorted({iteration for curve in curves for iteration, _ in curve}):
        relative = statistics.fmean(_at(curve, iteration) / max(curve[0][1], 1e-30) for curve in curves)
        values = [_at(curve, iteration) for curve in scored]
        limit = first.success if values else None
        points.append(
            {
                "iteration": iteration,
                "objective": relative if math.isfinite(relative) else None,
                first.name: _summary(values) if values else None,
                f"rate_{first.name}": None if limit is None else success_rate(torch.tensor(values), limit).value,
            }
        )
    return points


def _at(curve: Sequence[tuple[int, float]], iteration: int) -> float:
    return next((value for step, value in reversed(curve) if step <= iteration), curve[0][1])


def _summary(values: Sequence[float]) -> Entry:
    return {"value": statistics.fmean(values), "interval": interval(values)}


def _perceptual(scores: Sequence[Score]) -> Entry | str:
    known = [score.values["lpips"] for score in scores if "lpips" in score.values]
    return _summary(known) if known else "not available"


def _rates(scores: Sequence[Score], measures: Measures) -> Entry | None:
    if not scores:
        return None
    rates = {}
    for metric in measures.metrics:
        if metric.success is not None:
            rate = success_rate(torch.tensor([score.values[metric.name] for score in scores]), metric.success)
            rates[metric.name] = {"threshold": metric.success, "value": rate.value, "interval": [rate.low, rate.high]}
    return rates


def _text(entry: Entry, measures: Measures) -> str:
    if entry["refusal"] is not None:
        return f"{entry['verdict']}: {entry['refusal']}"
    if entry["value"] is None:
        return f"{counted(entry['victims'], 'victim')} reconstructed, not scored: nobody told the truth"
    judged = measures.judged
    found = ", ".join(f"{metric.title} {entry['metrics'][metric.name]['value']:{metric.form}}" for metric in judged)
    floors = ", ".join(f"{entry['floor'][metric.name]:{metric.form}}" for metric in judged)
    count = entry["unexplained"]
    return (
        f"{entry['verdict']}: {entry['reason']}; {counted(entry['victims'], 'victim')}, "
        f"{found} (a guess without any update: {floors}); "
        f"labels {entry['metrics']['label_accuracy']['value']:.0%}"
        + "".join(f"; {choice} for {counted(of, 'victim')}" for choice, of in entry["choices"].items())
        + (f"; {counted(count, 'update')} not explained by the stated training" if count else "")
    )
