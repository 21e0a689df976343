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

from snnfl.auditing.scoring import Score
from snnfl.auditing.suite import Outcome
from snnfl.config import Config, counted, prefixed
from snnfl.files import write_bytes
from snnfl.metrics.images import success_rate

Entry: TypeAlias = dict[str, Any]

SUCCESS = {"psnr": 20.0, "ssim": 0.5}
"""From where on a reconstruction counts as a success, in dB and as similarity."""

WHO = "honest-but-curious server"
"""Who attacks: it follows the protocol, and sees what it sends to each client and gets back."""

JUDGED = ("psnr", "ssim", "identified")
"""In what a reconstruction is compared with the floors."""

METRICS = ("psnr", "ssim", "registered_psnr", "mse", "label_accuracy", "identified")


def entries(config: Config, outcomes: Sequence[Outcome], controls: Sequence[Outcome] = ()) -> list[Entry]:
    """Summarise what attacks found in a run.

    Intervals are 95 % of Student's t over victims, each victim's images counting as one; rates have Wilson's. The
    verdict compares a reconstruction with the best guess that needs no update, victim by victim, in PSNR, SSIM and IIP
    (whose guess is one of all candidates, if no floor identifies more): ``leaks`` if the interval of one difference
    lies above zero, ``nothing seen`` if all lie below, else ``unclear``. Since one of three suffices, these intervals
    hold at 1 - 0.05/3 (Bonferroni). A distorted picture may score less than a mean colour, and still tell whose it is.

    Args:
        config: Of the run.
        outcomes: Of the attacks on it.
        controls: Of attacks on its clients' plain twins; the best of them in PSNR is what each attack is compared with.
    """
    return [_entry(config, outcome, controls) for outcome in outcomes]


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Return the interval of a mean by Student's t; of a single value there is none."""
    from scipy.stats import t as student  # half a second to import

    if len(values) < 2:
        return None
    quantile = float(student.ppf((1 + level) / 2, len(values) - 1))
    radius = quantile * statistics.stdev(values) / math.sqrt(len(values))
    centre = statistics.fmean(values)
    return centre - radius, centre + radius


def write_json(path: Path, found: Sequence[Mapping[str, Any]]) -> None:
    """Write entries as JSON, in one step."""
    write_bytes(path, (json.dumps(list(found), indent=1, allow_nan=False) + "\n").encode())


def as_csv(found: Sequence[Entry]) -> str:
    """Write entries as CSV: a row per run, round and attack; what is unknown is empty."""
    texts = ["run", "algorithm", "round", "attack", "setting", "victims", "verdict", "label_verdict"]
    numbers = [f"{name}{part}" for name in METRICS for part in ("", "_low", "_high")]
    other = ["floor_psnr", "floor_ssim", "floor_identified", *(f"rate_{name}" for name in SUCCESS), "lpips"]
    control = ["control", "over_control", "over_control_low", "over_control_high"]
    rows = []
    for entry in found:
        cells = [*(entry[name] for name in texts), entry["floor"]["name"], entry["refusal"]]
        for name in METRICS:
            cells += _triple(entry["metrics"].get(name))
        cells += [entry["floor"][name] for name in ("psnr", "ssim", "identified")]
        cells += [entry["rates"][name]["value"] if entry["rates"] else None for name in SUCCESS]
        cells += [entry["lpips"]["value"] if isinstance(entry["lpips"], dict) else entry["lpips"]]
        cells += [entry["control"]["attack"], *_triple(entry["control"])] if entry["control"] else [None] * 4
        rows.append(cells)
    return csv_text([*texts, "floor", "refusal", *numbers, *other, *control], rows)


def curves_as_csv(found: Sequence[Entry]) -> str:
    """Write how PSNR and objective go with the iterations, as CSV: a row per run, round, attack and point."""
    head = ["run", "round", "attack", "iteration", "objective", "psnr", "psnr_low", "psnr_high", "rate_psnr"]
    return csv_text(
        head,
        [
            [*(entry[name] for name in head[:3]), point["iteration"], point["objective"],
             *_triple(point["psnr"]), point["rate_psnr"]]
            for entry in found for point in entry["curve"]
        ],
    )  # fmt: skip


def csv_text(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a table as CSV: floats with four digits, nothing for ``None``."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([f"{cell:.4g}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    return stream.getvalue()


def _triple(summary: Mapping[str, Any] | None) -> list[float | None]:
    """Return a value with the ends of its interval."""
    return [summary["value"], *(summary["interval"] or (None, None))] if summary else [None] * 3


def _entry(config: Config, outcome: Outcome, controls: Sequence[Outcome]) -> Entry:
    scores = [finding.score for finding in outcome.findings if finding.score is not None]
    knowledge, results = outcome.knowledge, [finding.result for finding in outcome.findings]
    floor, verdict = _judged(scores)
    entry: Entry = {
        "run": config.run.name,
        "algorithm": prefixed(config, config.strategy.name),
        "round": outcome.server_round,
        "attack": outcome.attack,
        "source": outcome.source,
        "threat_model": {
            "who": WHO,
            **{name: getattr(knowledge, name) for name in knowledge.__dataclass_fields__},
            "facts": sorted(knowledge.facts),
        },
        "setting": results[0].setting if results else None,
        "reasons": list(results[0].reasons) if results else [],
        "choices": dict(Counter(result.choice for result in results if result.choice)),
        "refusal": outcome.refusal,
        "victims": len(outcome.findings),
        "passed_over": [{"partition": partition, "reason": reason} for partition, reason in outcome.passed_over],
        "metric": "psnr",
        "value": statistics.fmean(score.psnr for score in scores) if scores else None,
        "interval": interval([score.psnr for score in scores]),
        "floor": floor,
        "metrics": {name: _summary([getattr(score, name) for score in scores]) for name in METRICS if scores},
        "lpips": _perceptual(scores),
        "rates": _rates(scores),
        "verdict": verdict if outcome.refusal is None else "failed" if outcome.failed else "refused",
        "label_verdict": _label_verdict(scores),
        "control": _over_control(outcome, controls),
        "curve": _curve(outcome),
    }
    return entry | {"verdict_text": _text(entry)}


def _over_control(outcome: Outcome, controls: Sequence[Outcome]) -> Entry | None:
    """Compare, victim by victim, with the attack that finds the most PSNR in the plain twins of the same round."""
    scored = [
        (control.attack, {f.victim.partition: f.score.psnr for f in control.findings if f.score is not None})
        for control in controls
        if control.server_round == outcome.server_round
    ]
    own = {f.victim.partition: f.score.psnr for f in outcome.findings if f.score is not None}
    both = [(name, found) for name, found in scored if own and own.keys() <= found.keys()]
    if not both:
        return None
    name, found = max(both, key=lambda pair: statistics.fmean(pair[1][partition] for partition in own))
    return {"attack": name, **_summary([own[partition] - found[partition] for partition in own])}


def _curve(outcome: Outcome) -> list[Entry]:
    """Average objective (over its first value) and PSNR over victims; one that stopped early keeps what it found."""
    curves = [finding.result.curve for finding in outcome.findings]
    scored = [finding.score.curve for finding in outcome.findings if finding.score is not None]
    points = []
    for iteration in sorted({iteration for curve in curves for iteration, _ in curve}):
        relative = statistics.fmean(_at(curve, iteration) / max(curve[0][1], 1e-30) for curve in curves)
        psnrs = [_at(curve, iteration) for curve in scored]
        rate = success_rate(torch.tensor(psnrs), SUCCESS["psnr"]).value if psnrs else None
        points.append(
            {
                "iteration": iteration,
                "objective": relative if math.isfinite(relative) else None,
                "psnr": _summary(psnrs) if psnrs else None,
                "rate_psnr": rate,
            }
        )
    return points


def _at(curve: Sequence[tuple[int, float]], iteration: int) -> float:
    return next((value for step, value in reversed(curve) if step <= iteration), curve[0][1])


def _summary(values: Sequence[float]) -> Entry:
    return {"value": statistics.fmean(values), "interval": interval(values)}


def _perceptual(scores: Sequence[Score]) -> Entry | str:
    known = [score.lpips for score in scores if score.lpips is not None]
    return _summary(known) if known else "not available"


def _rates(scores: Sequence[Score]) -> Entry | None:
    if not scores:
        return None
    rates = {
        name: success_rate(torch.tensor([getattr(score, name) for score in scores]), limit)
        for name, limit in SUCCESS.items()
    }
    return {
        name: {"threshold": SUCCESS[name], "value": rate.value, "interval": [rate.low, rate.high]}
        for name, rate in rates.items()
    }


def _judged(scores: Sequence[Score]) -> tuple[Entry, str]:
    """Return the best floor in PSNR, the best values of all floors, and the verdict."""
    if not scores:
        return {"name": None, "psnr": None, "ssim": None, "identified": None}, "not scored"
    guesses = [{**score.floors, "chance": (-math.inf, -math.inf, score.chance)} for score in scores]
    best = [
        max(guesses[0], key=lambda name: statistics.fmean(guess[name][index] for guess in guesses))
        for index in range(len(JUDGED))
    ]
    bars = [[guess[best[index]][index] for guess in guesses] for index in range(len(JUDGED))]
    floor = {"name": best[0]} | {name: statistics.fmean(bar) for name, bar in zip(JUDGED, bars, strict=True)}
    gains = [
        interval([getattr(score, name) - low for score, low in zip(scores, bar, strict=True)], 1 - 0.05 / len(JUDGED))
        for name, bar in zip(JUDGED, bars, strict=True)
    ]
    if any(gain is not None and gain[0] > 0 for gain in gains):
        return floor, "leaks"
    return floor, "nothing seen" if all(gain is not None and gain[1] < 0 for gain in gains) else "unclear"


def _label_verdict(scores: Sequence[Score]) -> str:
    """Judge the labels as the images are judged."""
    gains = [score.label_accuracy - score.label_floor for score in scores]
    if not gains:
        return "not scored"
    low, high = interval(gains) or (0.0, 0.0)
    return "leaks" if low > 0 else "nothing seen" if high < 0 else "unclear"


def _text(entry: Entry) -> str:
    if entry["refusal"] is not None:
        return f"{entry['verdict']}: {entry['refusal']}"
    if entry["value"] is None:
        return f"{counted(entry['victims'], 'victim')} reconstructed, not scored (audit.ground_truth=false)"
    ssim = entry["metrics"]["ssim"]["value"]
    return (
        f"{entry['verdict']}; {counted(entry['victims'], 'victim')}, PSNR {entry['value']:.1f} dB, SSIM {ssim:.2f} "
        f"(a guess without any update: {entry['floor']['psnr']:.1f} dB, {entry['floor']['ssim']:.2f}); "
        f"labels {entry['metrics']['label_accuracy']['value']:.0%}"
        + "".join(f"; {choice} for {counted(of, 'victim')}" for choice, of in entry["choices"].items())
    )
