"""What finished cells measured, as records, and their summary by row and column of a table or a figure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from experiments.compare.best import Entry, judged
from experiments.compare.measure import Record
from experiments.compare.study import Cell
from experiments.compare.views import LAST, SOURCES, View, better
from snnfl.poisoning import attacks_in
from strategies.run_directory import read_metrics, read_object

ACCURACIES = (
    "server_snn_accuracy",
    "server_ann_accuracy",
    "client_ann_accuracy_mean",
    "client_snn_accuracy_mean",
)
"""Of what a run has come to, the first that there is."""

AT_NODES = "client_received_accuracy_weighted"
"""Stands before them where the server has nothing to test on."""


def entries(view: View, finished: Sequence[Cell]) -> list[Entry]:
    """Summarise the finished cells, in the order of the matrix and of the rounds.

    What a run has several of and the view doesn't name (clients, say) is averaged within the run first, so that the
    deviation is that of the seeds. Of several rounds the last one counts, of several budgets the largest.
    """
    found: dict[tuple[tuple[str, ...], str], dict[int, list[float]]] = {}
    for cell in finished:
        for record in shown_records(view, cell):
            place = tuple(str(record[axis]) for axis in view.down), _label(record, view.across)
            found.setdefault(place, {}).setdefault(cell.seed, []).append(record[view.value])
    made = [
        Entry(
            row=", ".join(parts),
            column=column,
            parts=parts,
            values=tuple(statistics.fmean(values) for values in by_seed.values()),
            seeds=tuple(by_seed),
            paper=view.paper.get((", ".join(parts), column)),
        )
        for (parts, column), by_seed in found.items()
    ]
    return judged(made, better(view.value))


def shown_records(view: View, cell: Cell) -> Iterator[Record]:
    """Yield a cell's records that a view shows, with the cell's labels."""
    if any(cell.labels[axis] not in labels for axis, labels in view.where.items() if axis in cell.labels):
        return
    own = [
        record
        for record in _records(cell, view.source)
        if all(record[axis] in labels for axis, labels in view.where.items() if axis in record)
    ]
    for axis in LAST:
        if axis in SOURCES[view.source].axes and axis not in (*view.down, *view.across, *view.where):
            last = max((int(record[axis]) for record in own), default=0)
            own = [record for record in own if int(record[axis]) == last]
    for record in own:
        if isinstance(record.get(view.value), int | float):  # of a last round without one, no earlier is shown instead
            yield {**record, **cell.labels}


def _records(cell: Cell, source: str) -> list[Record]:
    if source in ("energy", "attacks", "best attacks", "biases", "thresholds"):
        found = [record for record in extras_of(cell)["records"] if record["source"] == source]
        return [{"colluding": "0", "differences": "0", **record} for record in found] if "attacks" in source else found
    rows = read_metrics(cell.path)
    if source == "rounds":
        return _round_records(rows)
    if source == "lengths":
        return [
            {"round": str(row["round"]), "T": length, "accuracy_at_T": accuracy}
            for row in rows
            for length, accuracy in sorted((row["server_snn_accuracy_at"] or {}).items(), key=lambda item: int(item[0]))
        ]
    if source == "detectors":
        return [
            {"round": str(row["round"]), "detector": detector, **verdict}
            for row in rows
            for detector, verdict in (row["detection"] or {}).items()
        ]
    return [record for row in rows for record in _suspect_records(cell, row)]


def extras_of(cell: Cell) -> dict[str, Any]:
    """Read what was measured of a cell beside its rounds; empty if that hasn't been yet.

    Raises:
        RunFileError: If the file is damaged.
    """
    if cell.extras.file is None or not (cell.path / cell.extras.file).exists():
        return {"records": [], "fragments": {}}
    return read_object(cell.path / cell.extras.file, {"records": list, "fragments": dict}, "delete it to measure anew")


def _round_records(rows: Sequence[dict[str, Any]]) -> list[Record]:
    """Add to each row the accuracy of what the server holds, and the totals so far."""
    made, traffic, seconds = list[Record](), 0, 0.0
    for row in rows:
        traffic, seconds = traffic + row["bytes_up"] + row["bytes_down"], seconds + row["seconds_round"]
        names = ACCURACIES if row.get("test_images", 1) else (AT_NODES, *ACCURACIES)
        accuracy = next((row[name] for name in names if row[name] is not None), None)
        totals = {"accuracy": accuracy, "bytes_total": traffic, "seconds_total": seconds}
        made.append({**row, **totals, "round": str(row["round"])})
    return made


def _suspect_records(cell: Cell, row: dict[str, Any]) -> Iterator[Record]:
    guilty = attacks_in(cell.config, row["round"])
    for detector, verdict in (row["detection"] or {}).items():
        for client, score in verdict["scores"].items():
            last_but_one, last = (verdict["points"] or {}).get(client, (None, None))
            yield {
                "round": str(row["round"]),
                "detector": detector,
                "client": client,
                "role": "poisoned" if int(client) in guilty else "honest",
                "detection_score": score,
                "threshold_last_but_one": last_but_one,
                "threshold_last": last,
            }


def _label(record: Record, axes: Sequence[str]) -> str:
    return ", ".join(str(record[axis]) for axis in axes)
