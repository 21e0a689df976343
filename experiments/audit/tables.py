"""``python -m experiments.audit.tables NAME=scorecard.csv …``: the tables of ``docs/audit.md`` from scorecards."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from snnfl.config import ConfigError

BEGIN, END = "<!-- begin scorecards: generated, don't edit -->", "<!-- end scorecards -->"
HEAD = (
    *("run", "attack", "images", "PSNR in dB (95 %)", "floor", "SSIM (95 %)", "floor", "labels", "IIP", "victims"),
    "over plain twin in dB (95 %)",
)

Row = Mapping[str, str]


def write_tables(scorecards: Mapping[str, Path], document: Path) -> None:
    """Replace what stands between the document's two markers by a table per scorecard.

    Raises:
        ConfigError: If it has none.
    """
    text = document.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ConfigError(f"{document}: put the lines {BEGIN!r} and {END!r} where the tables belong")
    tables = [f"**{title}** ([{path.name}](data/{path.name}))\n\n{_table(path)}" for title, path in scorecards.items()]
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    document.write_text("\n".join([before + BEGIN, "\n\n".join(tables), END + after]), encoding="utf-8")


def _table(path: Path) -> str:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [_line(HEAD), _line(["---"] * len(HEAD)), *(_line(_cells(row)) for row in rows if row["psnr"])]
    notes = {"refused": "Refused, for the setting lacks what they need", "failed": "Failed, by a mistake of their own"}
    for verdict, text in notes.items():
        if named := sorted({f"`{row['attack']}` on {row['run']}" for row in rows if row["verdict"] == verdict}):
            lines.append(f"\n{text}: {', '.join(named)}.")
    return "\n".join(lines)


def _cells(row: Row) -> Sequence[str]:
    floor = f"{float(row['floor_psnr']):.1f} ({row['floor'].replace('_', ' ')})"
    return (
        row["run"],
        f"`{row['attack']}`",
        row["verdict"],
        _with_interval(row, "psnr", ".1f"),
        floor,
        _with_interval(row, "ssim", ".2f"),
        f"{float(row['floor_ssim']):.2f}",
        f"{float(row['label_accuracy']):.0%}",
        f"{float(row['identified']):.0%}",
        row["victims"],
        _with_interval(row, "over_control", "+.1f") if row.get("over_control") else "–",
    )


def _with_interval(row: Row, name: str, form: str) -> str:
    value, low, high = (format(float(row[f"{name}{part}"]), form) for part in ("", "_low", "_high"))
    return f"{value} ({low} to {high})"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.audit.tables", description=__doc__)
    parser.add_argument("scorecards", nargs="+", metavar="TITLE=FILE", help="a scorecard.csv and its table's title")
    parser.add_argument("--document", type=Path, default=Path("docs/audit.md"), help="has the tables' markers")
    arguments = parser.parse_args()
    pairs = (text.partition("=") for text in arguments.scorecards)
    write_tables({title: Path(path) for title, _, path in pairs}, arguments.document)


if __name__ == "__main__":
    main()
