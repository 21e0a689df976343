"""``python -m experiments.study_readme [--collect] [FOLDER ...]``: the generated parts of the READMEs of studies.

Each folder, as ``snfl/table1_iid``, holds ``laptop.csv`` with what its ``laptop.yaml`` measured, every seed's value,
which the README's tables are made from; beside it may be ``paper.yaml``, whose published numbers are the first table,
and ``search.csv``, of the ``search.yaml`` that chose learning rates. ``--collect`` first copies these files from the
finished studies in ``runs/``, and notes beside them (``laptop.json``) when, where and with which versions they ran.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from experiments.compare.best import Entry, judged
from experiments.compare.scheduler import state_of
from experiments.compare.study import Study, read_study
from experiments.compare.tables import Filled, as_markdown
from experiments.compare.views import View, better, read_tables
from experiments.federated_snn.cpu import cpu_part
from experiments.snfl.cost import cost_part, read
from snnfl.auditing.verdicts import interval
from snnfl.config import ConfigError
from snnfl.files import write_bytes
from strategies.run_directory import ENVIRONMENT_FILE

HERE = Path(__file__).parent
FOLDERS = (
    "snfl/table1_iid", "snfl/table2_noniid", "snfl/table3_bias", "snfl/fig2_inversion", "snfl/fig3_bias_thresholds",
    "snfl/a1_clients", "snfl/a2_participation", "snfl/a3_steps", "federated_snn/equal_architecture",
    "federated_snn/many_clients", "federated_snn/nmnist", "federated_snn/watch", "federated_snn/spoken",
    "gradient_leakage/images", "gradient_leakage/cifar10", "gradient_leakage/events", "gradient_leakage/series",
    "gradient_leakage/surrogates", "gradient_leakage/sound", "gradient_leakage/encodings", "gradient_leakage/batches",
    "gradient_leakage/event_surrogates", "few_steps", "provable_privacy/attacks", "provable_privacy/differences",
)  # fmt: skip
SPIKING = [("SNN", "ANN")]
IN_PICTURES = [
    *(
        (f"SNN, {surrogate}, {more}", less.format(surrogate))
        for more, less in (
            ("native_features", "SNN, {}, inverting_gradients"),
            ("native_features", "ANN, inverting_gradients"),
            ("native_features", "ANN, feature_inversion"),
            ("inverting_gradients", "ANN, inverting_gradients"),
        )
        for surrogate in ("fast_sigmoid", "atan")
    ),
    ("S-ANN, snn_naive", "ANN, inverting_gradients"),
    ("S-ANN, reconverted_initial", "ANN, inverting_gradients"),
]
IN_SEQUENCES = [
    (more.format(surrogate), less.format(surrogate))
    for more, less in (
        ("SNN, {}, native_features", "SNN, {}, inverting_gradients"),
        ("SNN, {}, sequence_recovery", "SNN, {}, native_features"),
        ("SNN, {}, sequence_recovery", "ANN, closed_form"),
        ("SNN, {}, native_features", "ANN, closed_form"),
    )
    for surrogate in ("fast_sigmoid", "atan")
]
COMPARED: Mapping[str, Sequence[tuple[str, str]]] = {
    "table3_bias": [("BC", "no BC"), ("no BC, bias back", "no BC"), ("BC, bias back", "BC")],
    "fig2_inversion": [("S-FedAvg, snn_naive", "FedAvg, huang"), ("S-FedAvg, reconverted_as_is", "FedAvg, huang")],
    "fig3_bias_thresholds": [("IID", "Dir(0.5)"), ("poisoned", "honest")],
    "a3_steps": [("8", "4"), ("16", "8"), ("32", "16"), ("64", "32"), ("128", "64")],
    "equal_architecture": [*SPIKING, ("SNN", "S-ANN")],
    "many_clients": [*SPIKING, ("SNN", "ANN, no norm"), ("ANN", "ANN, no norm")],
    "nmnist": [("SNN", "ANN, sum over time"), ("SNN", "ANN, all frames")],
    "watch": SPIKING,
    "images": IN_PICTURES,
    "cifar10": IN_PICTURES,
    "events": [
        ("SNN, event_recovery", "SNN, inverting_gradients"), ("SNN, event_recovery", "ANN, sum over time, closed_form"),
    ],
    "series": IN_SEQUENCES,
    "sound": IN_SEQUENCES,
    "encodings": [("MLP, direct, T=5, image_recovery", "MLP, direct, T=5, native_features")],
    "surrogates": [
        (f"{name}, inverting_gradients", "ANN, inverting_gradients")
        for name in ("fast_sigmoid", "atan", "spike_rate_escape", "triangular", "straight_through")
    ],
    "spoken": [("SNN", "ANN, mean spectrum"), ("SNN", "ANN, all frames")],
    "few_steps": [("4", "256"), ("8", "256"), ("16", "256"), ("32", "256")],
}  # fmt: skip
"""Rows whose differences are shown, beside each ``S-X`` with its ``X``."""

NOT_COMPARED = ("bytes", "energy", "operations", "floor", "seconds")
"""How the values begin that say enough without a difference."""


def paper_part(folder: Path) -> str:
    """Lay out the numbers that the paper's study cites; empty if it cites none."""
    parts = []
    for view in _views(folder / "paper.yaml"):
        columns = list(dict.fromkeys(column for _, column in view.paper))
        rows = list(dict.fromkeys(row for row, _ in view.paper))
        lines = [[row, *(f"{100 * view.paper[row, column]:.4g}" for column in columns)] for row in rows]
        if rows:
            parts.append(f"{view.cited}, in percent.\n\n{_table(['', *columns], lines)}")
    return "\n\n".join(parts)


def measured_part(folder: Path) -> str:
    """Lay out what was measured: where and when, the tables, and the differences that the paper makes claims about."""
    facts = json.loads((folder / "laptop.json").read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    said = (
        f"Measured on {facts['date']}: {facts['cells']} cells, seeds {facts['seeds']}, one thread on {facts['cores']} "
        f"cores shared with other work ({versions}; commits: [laptop.json](laptop.json)).\n"
        f"Command: `snnfl compare {_named(folder / 'laptop.yaml')}`. Every seed's value: "
        "[laptop.csv](laptop.csv)."
    )
    tables = list(_filled(folder, "laptop"))
    differences = [text for filled in tables if (text := _differences(folder.name, filled))]
    return "\n\n".join([said, as_markdown(tables).strip(), *differences])


def search_part(folder: Path) -> str:
    """Lay out what the learning rates were chosen by."""
    seeds = OmegaConf.load(folder / "search.yaml").seeds
    return (
        f"Seed {_joined(seeds)}, which isn't among those above. Command: `snnfl compare "
        f"{_named(folder / 'search.yaml')}`.\n\n{as_markdown(_filled(folder, 'search')).strip()}"
    )


def _named(study: Path) -> Path:
    """Name a study's file as somebody in the repository's folder types it."""
    return study.relative_to(HERE.parent)


def write_readme(folder: Path) -> None:
    """Replace what stands between a README's markers.

    Raises:
        ConfigError: If it has none.
    """
    fill(folder / "README.md", parts_of(folder))


def fill(document: Path, parts: Mapping[str, str]) -> None:
    """Replace what stands between a document's markers.

    Raises:
        ConfigError: If it has none.
    """
    text = document.read_text(encoding="utf-8") if document.exists() else ""
    for name, part in parts.items():
        begin, end = markers(name)
        if begin not in text or end not in text:
            raise ConfigError(f"{document}: put the lines {begin} and {end} where the tables belong")
        text = text.partition(begin)[0] + f"{begin}\n{part}\n{end}" + text.partition(end)[2]
    write_bytes(document, text.encode())


def parts_of(folder: Path) -> dict[str, str]:
    """Return what a folder's README holds between its markers, by name."""
    made = {"paper": paper_part(folder)} if (folder / "paper.yaml").exists() else {}
    if (folder / "laptop.csv").exists():
        made["measured"] = measured_part(folder)
    if (folder / "search.csv").exists():
        made["search"] = search_part(folder)
    if (folder / "cpu.csv").exists():
        made["cpu"] = cpu_part(folder / "cpu.csv")
    if (folder / "cost.csv").exists():
        made["cost"] = cost_part(read(folder / "cost.csv"))
    return {name: part for name, part in made.items() if part}


def markers(name: str) -> tuple[str, str]:
    """Return the lines around a generated part."""
    return f"<!-- begin {name}: generated, don't edit -->", f"<!-- end {name} -->"


def collect(folder: Path) -> None:
    """Copy the tables of a folder's finished studies and what is known of its runs.

    Raises:
        ConfigError: If a cell isn't finished, or the tables weren't written.
    """
    if (folder / "search.yaml").exists():
        _copy_tables(folder, "search")
    study = _copy_tables(folder, "laptop")
    found = [json.loads((cell.path / ENVIRONMENT_FILE).read_text(encoding="utf-8")) for cell in study.cells]
    facts = {
        "date": _joined(each["started"][:10] for each in found),
        "cells": len(study.cells),
        "seeds": _joined(cell.seed for cell in study.cells),
        "cores": found[0]["cores"],
        "versions": {
            "Python": _joined(each["python"] for each in found),
            **{name: _joined(each["packages"][name] for each in found) for name in ("snnfl", "flwr", "torch", "numpy")},
        },
        "commit": _joined(each["commit"] for each in found),
    }
    write_bytes(folder / "laptop.json", (json.dumps(facts, indent=1) + "\n").encode())


def _copy_tables(folder: Path, name: str) -> Study:
    """Copy the tables of a finished study, and return it."""
    study = read_study(folder / f"{name}.yaml")
    tables = study.directory / "tables.csv"
    missing = [cell.name for cell in study.cells if not state_of(cell).finished]
    if missing or not tables.exists():
        raise ConfigError(
            f"{study.directory}: {len(missing)} of {len(study.cells)} cells aren't finished; type: snnfl compare "
            f"{folder / name}.yaml"
        )
    write_bytes(folder / f"{name}.csv", tables.read_bytes())
    return study


def _views(study: Path) -> tuple[View, ...]:
    """Read the tables of a study's file, without its runs."""
    content: Any = OmegaConf.to_container(OmegaConf.load(study))
    axes = {str(axis): [str(label) for label in labels] for axis, labels in content["matrix"].items()}
    return read_tables(content.get("tables"), axes)


def _filled(folder: Path, name: str) -> Iterator[Filled]:
    with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for view in _views(folder / f"{name}.yaml"):
        entries = [_entry(row) for row in rows if row["table"] == view.title]
        yield view, judged(entries, better(view.value))


def _entry(row: Mapping[str, str]) -> Entry:
    """Read an entry of a study with all of its cells, so that the n-th value is everywhere of the n-th seed."""
    values = tuple(map(float, row["values"].split()))
    return Entry(
        row=row["row"],
        column=row["column"],
        values=values,
        seeds=tuple(range(len(values))),
        paper=float(row["paper"]) if row["paper"] else None,
    )


def _differences(artifact: str, filled: Filled) -> str:
    """Lay out differences of rows, paired by seed, with their intervals; empty if there are none."""
    view, table = filled
    cells = {(entry.row, entry.column): entry for entry in table}
    rows, columns = (list(dict.fromkeys(labels)) for labels in ((e.row for e in table), (e.column for e in table)))
    pairs = [*((f"S-{row}", row) for row in rows), *COMPARED.get(artifact, ())]
    pairs = [(more, less) for more, less in pairs if more in rows and less in rows]
    if not pairs or view.value.startswith(NOT_COMPARED):
        return ""
    found = [
        [_difference(cells.get((more, column)), cells.get((less, column)), view.percent) for column in columns]
        for more, less in pairs
    ]
    clear, count = sum(one for line in found for _, one in line), sum(text != "–" for line in found for text, _ in line)
    lines = [[f"{more} − {less}", *(text for text, _ in line)] for (more, less), line in zip(pairs, found, strict=True)]
    unit = " in percentage points" if view.percent else ""
    cited = "; the paper's" if view.paper else ""
    return (
        f"**{view.title}: differences**{unit}, paired by seed: mean, and 95 % interval of Student's t{cited}.\n\n"
        f"{_table(['', *(column or 'difference' for column in columns)], lines)}\n\n"
        f"{clear} of {count} intervals don't hold 0; of as many comparisons of equals {0.05 * count:.1f} wouldn't."
    )


def _difference(more: Entry | None, less: Entry | None, percent: bool) -> tuple[str, bool]:
    """Write a difference; tell whether its interval lies on one side of zero."""
    if more is None or less is None or len(more.values) != len(less.values):
        return "–", False
    factor, form = (100, "+.2f") if percent else (1, "+.3g")
    values = [factor * (a - b) for a, b in zip(more.values, less.values, strict=True)]
    text, bounds = format(sum(values) / len(values), form), interval(values)
    if bounds is not None:
        text += f" ({bounds[0]:{form}} to {bounds[1]:{form}})"
    if more.paper is not None and less.paper is not None:
        text += f"; paper {factor * (more.paper - less.paper):{form}}"
    return text, bounds is not None and (bounds[0] > 0 or bounds[1] < 0)


def _joined(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])


def main() -> None:
    """Read the command line; write the READMEs."""
    parser = argparse.ArgumentParser(prog="python -m experiments.study_readme", description=__doc__)
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help=f"of {', '.join(FOLDERS)} (default: all)")
    parser.add_argument(
        "--collect", action="store_true", help="first copy the results of the finished studies in runs/"
    )
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.folders if name not in FOLDERS]:
        parser.error(f"{unknown[0]}: expected one of {', '.join(FOLDERS)}")
    try:
        for name in arguments.folders or FOLDERS:
            if arguments.collect:
                collect(HERE / name)
            write_readme(HERE / name)
    except ConfigError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
