"""``python -m experiments.membership.readme [--collect] [FOLDER ...]``: the generated parts of the studies' READMEs.

These are the paper's numbers, which ``paper.yaml`` cites, and what was measured, from ``laptop.csv``, and of some from
``pictures.csv``. ``--collect`` first copies these files from finished studies in ``runs/``, and what they say of equal
gaps and of each setting, with the versions that they ran with, into ``laptop.json`` and ``pictures.json``. What
federations tell, ``python -m experiments.federated_membership`` writes into its folder itself.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from experiments.compare.best import Entry
from experiments.compare.tables import as_markdown
from experiments.membership.differences import differences_part
from experiments.membership.federations import federated_part
from experiments.membership.report import equal_gap_rows, sentences
from experiments.membership.study import tables_of
from experiments.study_readme import fill
from snnfl.auditing.scorecard import csv_rows
from snnfl.config import ConfigError
from snnfl.files import write_bytes

HERE = Path(__file__).parent
FEDERATED = "federated"
FOLDERS = ("attacks", "kinds", "table2_weights", "table3_surrogates", "fig3_activations", FEDERATED)

SCALES = {"laptop": "measured", "pictures": "pictures"}
"""Studies that are measured, and the names of their parts."""


def collect(folder: Path, runs: Path) -> None:
    """Copy what the finished studies of a folder have found.

    Raises:
        ConfigError: If none is finished.
    """
    studies = {scale: runs / _name(folder / f"{scale}.yaml") for scale in SCALES if (folder / f"{scale}.yaml").exists()}
    finished = {scale: study for scale, study in studies.items() if (study / "results.json").exists()}
    if not finished:
        raise ConfigError(f"{runs}: no results of {folder.name}; run snnfl membership {folder / 'laptop.yaml'} first")
    for scale, study in finished.items():
        _collect(folder, scale, study)


def _name(path: Path) -> str:
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    return str(content["name"])


def _collect(folder: Path, scale: str, study: Path) -> None:
    results = json.loads((study / "results.json").read_text())
    told = {
        "collected": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "processor_seconds": round(sum(result["processor_seconds"] for result in results)),
        "equal_gaps": equal_gap_rows(results),
        "sentences": sentences(results),
    }
    write_bytes(folder / f"{scale}.csv", (study / "tables.csv").read_bytes())
    write_bytes(folder / f"{scale}.json", (json.dumps(told, indent=1) + "\n").encode())


def measured_part(folder: Path, scale: str) -> str:
    """Lay out what was measured: the tables, and networks at equal gaps."""
    told = json.loads((folder / f"{scale}.json").read_text())
    rows = csv_rows(folder / f"{scale}.csv")
    where = f"Measured on {told['collected']}, Python {told['python']}, torch {told['torch']}"
    parts = [f"{where}; {told['processor_seconds'] / 60:.0f} min of processor time."]
    tables = [(view, _entries(view.title, rows)) for view in tables_of(folder / f"{scale}.yaml")]
    parts.append(as_markdown(tables))
    by_title = {view.title: {(entry.row, entry.column): entry.values for entry in of} for view, of in tables}
    parts.append(differences_part(folder.name, by_title))
    if equal := told["equal_gaps"]:
        head = ["networks", "train less test accuracy", "AUC of the best attack"]
        lines = [head, ["---"] * 3, *equal]
        parts.append("**At equal gaps**\n\n" + "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines))
    return "\n\n".join(part.strip() for part in parts if part)


def _entries(title: str, rows: Sequence[Mapping[str, str]]) -> list[Entry]:
    return [
        Entry(
            row=row["row"],
            column=row["column"],
            values=tuple(map(float, row["values"].split())),
            paper=float(row["paper"]) if row["paper"] else None,
        )
        for row in rows
        if row["table"] == title
    ]


def paper_part(folder: Path) -> str:
    """Lay out the numbers that a study cites; empty if it cites none."""
    parts = []
    for view in tables_of(folder / "paper.yaml") if (folder / "paper.yaml").exists() else ():
        rows, columns = (
            (list(dict.fromkeys(labels)) for labels in zip(*view.paper, strict=True)) if view.paper else ([], [])
        )
        lines = [["", *columns], ["---"] * (1 + len(columns))]
        lines += [[row, *(f"{view.paper[row, column]:.3f}" for column in columns)] for row in rows]
        if rows:
            parts.append(f"{view.cited}, AUC.\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts)


def parts_of(folder: Path) -> dict[str, str]:
    """Return the generated parts by name."""
    if folder.name == FEDERATED:
        return {SCALES["laptop"]: federated_part(folder / "laptop.csv")}
    parts = {"paper": paper_part(folder)}
    for scale, name in SCALES.items():
        if (folder / f"{scale}.csv").exists():
            parts[name] = measured_part(folder, scale)
    return {name: part for name, part in parts.items() if part}


def main() -> None:
    """Write the READMEs of all studies that have results, or of those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", default=FOLDERS)
    parser.add_argument("--collect", action="store_true", help="take the results from runs/ first")
    arguments = parser.parse_args()
    for name in arguments.folders:
        if arguments.collect and name != FEDERATED:
            collect(HERE / name, Path("runs"))
        fill(HERE / name / "README.md", parts_of(HERE / name))


if __name__ == "__main__":
    main()
