"""What an audit found, as tables for other programs: one CSV file per kind of finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.audit.found import Audit
from snnfl.auditing.scorecard import Entry, csv_text, curves_as_csv
from snnfl.poisoning.roles import attacks_in


def data_files(audits: Sequence[Audit]) -> Mapping[str, str]:
    """Return the contents of the files beside ``scorecard.csv``, by name; a kind that nobody has is a header alone."""
    return {
        "curves.csv": curves_as_csv([entry for audit in audits for entry in audit.entries]),
        "noise.csv": noise_as_csv([point for audit in audits for point in audit.noise]),
        "biases.csv": _biases(audits),
        "labels.csv": _labels(audits),
        "thresholds.csv": _thresholds(audits),
        "detectors.csv": _detectors(audits),
    }


def noise_as_csv(points: Sequence[tuple[float, Entry]]) -> str:
    """Write what was found of clipped and noised updates: a row per multiplier."""
    head = ["run", "round", "z", "attack", "victims", "psnr", "psnr_low", "psnr_high"]
    head += ["ssim", "identified", "verdict", "floor_psnr"]
    rows = []
    for z, entry in points:
        metrics = entry["metrics"]
        psnr = [entry["value"], *(entry["interval"] or (None, None))]
        others = [metrics[name]["value"] if metrics else None for name in ("ssim", "identified")]
        about = [entry["run"], entry["round"], z, entry["attack"], entry["victims"]]
        rows.append([*about, *psnr, *others, entry["verdict"], entry["floor"]["psnr"]])
    return csv_text(head, rows)


def _biases(audits: Sequence[Audit]) -> str:
    head = ["run", "round", "partition", "guess", "distance", "relative", "equal", "distance_before_training"]
    return csv_text(
        head,
        [
            [audit.path.name, e.server_round, e.partition, e.source, e.distance, e.relative, e.equal, e.before]
            for audit in audits for e in audit.biases
        ],
    )  # fmt: skip


def _labels(audits: Sequence[Audit]) -> str:
    head = ["run", "round", "partition", "images", "misplaced", "misplaced_if_even", "correlation"]
    return csv_text(
        head,
        [
            [audit.path.name, c.server_round, c.partition, c.images, c.misplaced, c.even, c.correlation]
            for audit in audits for c in audit.labels
        ],
    )  # fmt: skip


def _thresholds(audits: Sequence[Audit]) -> str:
    rows = [
        [audit.path.name, t.server_round, t.partition, t.partition in attacks_in(audit.config, t.server_round), t.layer,
         t.value]
        for audit in audits for t in audit.thresholds
    ]  # fmt: skip
    return csv_text(["run", "round", "partition", "attacks", "layer", "threshold"], rows)


def _detectors(audits: Sequence[Audit]) -> str:
    rows: list[list[object]] = []
    for audit in audits:
        for judged in audit.judged:
            guilty, verdict = attacks_in(audit.config, judged.server_round), judged.verdict
            if verdict is None:
                continue  # the report says why
            found = zip(judged.partitions, verdict.scores.tolist(), verdict.flagged.tolist(), strict=True)
            start = [audit.path.name, judged.server_round]
            rows += [[*start, p, p in guilty, verdict.detector, score, flagged] for p, score, flagged in found]
    return csv_text(["run", "round", "partition", "attacks", "detector", "score", "flagged"], rows)
