"""The scorecard: one object per attack, with its threat model, metric, value, interval, floor and verdict."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from scipy.stats import t as student

from snnfl.audit.scoring import Score
from snnfl.audit.suite import Outcome
from snnfl.config import Config
from snnfl.metrics.images import success_rate
from snnfl.spiking.storage import write_bytes

Entry: TypeAlias = dict[str, Any]

SUCCESS = {"psnr": 20.0, "ssim": 0.5}
"""From where on a reconstruction counts as a success, in dB and as similarity."""

METRICS = ("psnr", "ssim", "registered_psnr", "mse", "label_accuracy", "identified")


def entries(config: Config, outcomes: Sequence[Outcome]) -> list[Entry]:
    """Summarise what attacks found in a run.

    Intervals are 95 % of Student's t over victims, each victim's images counting as one; rates have Wilson's. The
    verdict compares a reconstruction with the best guess that needs no update, victim by victim, in PSNR, SSIM and IIP
    (whose guess is one of all candidates): ``leaks`` if the interval of one difference lies above zero, ``nothing
    seen`` if all lie below, else ``unclear``. A distorted picture may score less than a mean colour, and still tell
    whose it is.
    """
    return [_entry(config, outcome) for outcome in outcomes]


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean by Student's t; of a single value there is none."""
    if len(values) < 2:
        return None
    radius = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    centre = statistics.fmean(values)
    return centre - radius, centre + radius


def write_json(path: Path, found: Sequence[Mapping[str, Any]]) -> None:
    """Write entries as JSON, in one step."""
    write_bytes(path, (json.dumps(list(found), indent=1, allow_nan=False) + "\n").encode())


def as_csv(found: Sequence[Entry]) -> str:
    """Write entries as CSV: a row per run, round and attack; what is unknown is empty."""
    columns = ["run", "algorithm", "round", "attack", "setting", "victims", "verdict", "floor", "refusal"]
    numbers = [f"{name}{part}" for name in METRICS for part in ("", "_low", "_high")]
    floors = ["floor_psnr", "floor_ssim", "rate_psnr", "rate_ssim"]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*columns, *numbers, *floors])
    for entry in found:
        cells = [entry.get(name) for name in columns[:7]] + [entry["floor"]["name"], entry["refusal"]]
        for name in METRICS:
            summary = entry["metrics"].get(name)
            cells += [summary["value"], *(summary["interval"] or (None, None))] if summary else [None] * 3
        rates = [entry["rates"][name]["value"] if entry["rates"] else None for name in SUCCESS]
        cells += [entry["floor"]["psnr"], entry["floor"]["ssim"], *rates]
        writer.writerow([f"{cell:.4g}" if isinstance(cell, float) else cell for cell in cells])
    return stream.getvalue()


def _entry(config: Config, outcome: Outcome) -> Entry:
    scores = [finding.score for finding in outcome.findings if finding.score is not None]
    knowledge, results = outcome.knowledge, [finding.result for finding in outcome.findings]
    floor, verdict = _judged(scores)
    entry: Entry = {
        "run": config.run.name,
        "algorithm": ("S-" if config.strategy.spiking else "") + config.strategy.name,
        "round": outcome.server_round,
        "attack": outcome.attack,
        "source": outcome.source,
        "threat_model": {
            **{name: getattr(knowledge, name) for name in knowledge.__dataclass_fields__},
            "facts": sorted(knowledge.facts),
        },
        "setting": results[0].setting if results else None,
        "reasons": list(results[0].reasons) if results else [],
        "refusal": outcome.refusal,
        "victims": len(outcome.findings),
        "metric": "psnr",
        "value": statistics.fmean(score.psnr for score in scores) if scores else None,
        "interval": interval([score.psnr for score in scores]),
        "floor": floor,
        "metrics": {name: _summary([getattr(score, name) for score in scores]) for name in METRICS if scores},
        "lpips": _perceptual(scores),
        "rates": _rates(scores),
        "verdict": verdict if outcome.refusal is None else "refused",
        "label_verdict": _label_verdict(scores),
    }
    return entry | {"verdict_text": _text(entry)}


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
    """Return the best floor in PSNR and the verdict; SSIM is compared with the best floor in SSIM."""
    if not scores:
        return {"name": None, "psnr": None, "ssim": None}, "not scored"
    best = {
        index: max(scores[0].floors, key=lambda name: statistics.fmean(score.floors[name][index] for score in scores))
        for index in (0, 1)
    }
    floor = {
        "name": best[0],
        "psnr": statistics.fmean(score.floors[best[0]][0] for score in scores),
        "ssim": statistics.fmean(score.floors[best[1]][1] for score in scores),
    }
    gains = (
        interval([score.psnr - score.floors[best[0]][0] for score in scores]),
        interval([score.ssim - score.floors[best[1]][1] for score in scores]),
        interval([score.identified - score.chance for score in scores]),
    )
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
        return f"refused: {entry['refusal']}"
    if entry["value"] is None:
        return f"{entry['victims']} victims reconstructed, not scored (audit.ground_truth=false)"
    ssim = entry["metrics"]["ssim"]["value"]
    return (
        f"{entry['verdict']}; {entry['victims']} victims, PSNR {entry['value']:.1f} dB, SSIM {ssim:.2f} "
        f"(a guess without any update: {entry['floor']['psnr']:.1f} dB, {entry['floor']['ssim']:.2f}); "
        f"labels {entry['metrics']['label_accuracy']['value']:.0%}"
    )
