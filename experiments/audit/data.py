"""What an audit found, as tables for other programs: one CSV file per kind of finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

from experiments.audit.attendance import attendance_as_csv
from experiments.audit.found import Audit
from experiments.audit.membership import membership_as_csv
from experiments.audit.proof import proof_as_csv
from snnfl.auditing.scorecard import Entry, csv_text, curves_as_csv, kinds_of
from snnfl.auditing.side_channel import SideChannel


def data_files(audits: Sequence[Audit]) -> Mapping[str, str]:
    """Return the contents of the files beside ``scorecard.csv``, by name; a kind that nobody has is a header alone."""
    return {
        "best.csv": _best(audits),
        "proof.csv": proof_as_csv(audits),
        "sums.csv": attendance_as_csv(audits),
        "curves.csv": curves_as_csv([entry for audit in audits for entry in audit.entries]),
        "noise.csv": noise_as_csv([point for audit in audits for point in audit.noise]),
        "biases.csv": _biases(audits),
        "labels.csv": _labels(audits),
        "membership.csv": membership_as_csv(audits),
        "side_channel.csv": _side_channel(audits),
        "thresholds.csv": _thresholds(audits),
        "detectors.csv": _detectors(audits),
    }


def noise_as_csv(points: Sequence[tuple[float, Entry]]) -> str:
    """Write what was found of clipped and noised updates: a row per multiplier, and columns of the judged metrics."""
    judged = list(dict.fromkeys(m.name for kind in kinds_of([entry for _, entry in points]) for m in kind.judged))
    firsts = list(dict.fromkeys(kind.metrics[0].name for kind in kinds_of([entry for _, entry in points])))
    others = [name for name in judged if name not in firsts] + ["identified"]
    head = ["run", "round", "z", "attack", "victims", *(f"{n}{end}" for n in firsts for end in ("", "_low", "_high"))]
    rows = []
    for z, entry in points:
        metrics = entry["metrics"]
        about = [entry["run"], entry["round"], z, entry["attack"], entry["victims"]]
        known = [metrics.get(name) or {"value": None, "interval": None} for name in firsts]
        about += [cell for found in known for cell in (found["value"], *(found["interval"] or (None, None)))]
        about += [metrics[name]["value"] if name in metrics else None for name in others]
        rows.append([*about, entry["verdict"], *(entry["floor"].get(name) for name in firsts)])
    return csv_text([*head, *others, "verdict", *(f"floor_{name}" for name in firsts)], rows)


def _best(audits: Sequence[Audit]) -> str:
    """Write the best attack of each round against guesses and plain twins, corrected for choosing it."""
    head = ["run", "round", "metric", "victims", "attack", "attacks", "value", "floor", "over_floor", "over_floor_low"]
    head += ["over_floor_high", "control", "controls", "over_control", "over_control_low", "over_control_high"]
    rows = []
    for run, best in ((audit.path.name, best) for audit in audits for best in audit.best):
        chosen, other = best.over_floor.best, best.over_floor.other
        about = [run, best.server_round, best.metric.name, best.victims, chosen.attack, chosen.candidates, best.value]
        cells: list[object] = [*about, other.attack, best.over_floor.value]
        cells += best.over_floor.interval or (None, None)
        if (twins := best.over_control) is not None:
            cells += [twins.other.attack, twins.other.candidates, twins.value, *(twins.interval or (None, None))]
        rows.append([*cells, *[None] * (len(head) - len(cells))])
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


def _side_channel(audits: Sequence[Audit]) -> str:
    names = [field.name for field in fields(SideChannel)]
    rows = [[audit.path.name, *(getattr(row, name) for name in names)] for audit in audits for row in audit.side]
    return csv_text(["run", "round", *names[1:]], rows)


def _thresholds(audits: Sequence[Audit]) -> str:
    rows = [
        [audit.path.name, t.server_round, t.partition, t.partition in audit.attackers(t.server_round), t.layer,
         t.value]
        for audit in audits for t in audit.thresholds
    ]  # fmt: skip
    return csv_text(["run", "round", "partition", "attacks", "layer", "threshold"], rows)


def _detectors(audits: Sequence[Audit]) -> str:
    rows: list[list[object]] = []
    for audit in audits:
        for judged in audit.judged:
            guilty, verdict = audit.attackers(judged.server_round), judged.verdict
            if verdict is None:
                continue  # the report says why
            found = zip(judged.partitions, verdict.scores.tolist(), verdict.flagged.tolist(), strict=True)
            start = [audit.path.name, judged.server_round]
            rows += [[*start, p, p in guilty, verdict.detector, score, flagged] for p, score, flagged in found]
    return csv_text(["run", "round", "partition", "attacks", "detector", "score", "flagged"], rows)
