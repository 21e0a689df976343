"""``python -m experiments.paired tables.csv ROW_OR_COLUMN``: a study's first table against one row or column, by seed.

Of each other row (or column) the mean difference over seeds in points, with the 95 % interval of Student's t: two
networks of one seed have the same data and initial weights, so that much of what a seed changes is in both.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import fmean

from snnfl.auditing.scorecard import csv_rows
from snnfl.auditing.verdicts import interval
from snnfl.config import ConfigError


def paired(file: Path, reference: str) -> list[str]:
    """Return a line for each value of a study's first table beside that of a reference in its row or column.

    Raises:
        ConfigError: If there is no table, or it has no such row or column.
    """
    if not (rows := csv_rows(file)):
        raise ConfigError(f"{file}: no table there; give the tables.csv of a finished study")
    first = [row for row in rows if row["table"] == rows[0]["table"]]
    values = {(row["row"], row["column"]): [float(value) for value in row["values"].split()] for row in first}
    lines = []
    for (row, column), own in values.items():
        other = (row, reference) if (row, reference) in values else (reference, column)
        if other in values and other != (row, column):
            points = [100 * (a - b) for a, b in zip(own, values[other], strict=True)]
            ends = interval(points)
            where = "" if ends is None else f" ({ends[0]:.1f} to {ends[1]:.1f})"
            lines.append(f"{row}, {column}: {fmean(points):+.1f}{where}")
    if not lines:
        raise ConfigError(f"{file}: {rows[0]['table']} has no row or column {reference!r}")
    return lines


def main() -> None:
    """Read the command line; write the differences."""
    parser = argparse.ArgumentParser(prog="python -m experiments.paired", description=__doc__)
    parser.add_argument("file", type=Path, help="tables.csv of a study")
    parser.add_argument("reference", help="row or column, such as none")
    arguments = parser.parse_args()
    try:
        sys.stdout.write("".join(f"{line}\n" for line in paired(arguments.file, arguments.reference)))
    except (ConfigError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
