"""Compare the time that a study of ``snnfl membership`` announces as left with what it takes.

``python benchmarks/time_left.py experiments/membership/table3_surrogates/pictures.yaml`` runs the study, or goes on
with it, and prints what was announced after 25, 50 and 75 % of the time that this took, and its ratio to what was left.
``--data FILE`` keeps every announcement: seconds since the start, and seconds that were said to be left.
"""

from __future__ import annotations

import argparse
import csv
import time
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments.membership import command
from experiments.membership.progress import Forecast

PARTS = (0.25, 0.5, 0.75)


def announced(study: Path, jobs: int | None) -> tuple[list[tuple[float, float]], float]:
    """Run a study; return the seconds since its start with those announced as left, and the seconds that it took."""
    found, start = list[tuple[float, float]](), time.monotonic()

    class Noted(Forecast):
        def left(self, jobs: int, busy: float = 0.0) -> float:
            seconds = super().left(jobs, busy)
            found.append((time.monotonic() - start, seconds))
            return seconds

    command.Forecast = Noted  # type: ignore[misc]
    command.study_members(study, jobs=jobs, console=Console())
    return found, time.monotonic() - start


def lines(found: Sequence[tuple[float, float]], took: float) -> list[str]:
    """Say what was announced at each of the parts, of those that came after the first announcement."""
    begun = found[0][0]
    told = []
    for part in PARTS:
        at = begun + part * (took - begun)
        since, said = found[bisect_right([seconds for seconds, _ in found], at) - 1]
        left = took - since
        told.append(f"after {part:.0%}: {said:.0f} s announced, {left:.0f} s were left: {said / left:.2f}")
    return told


def main() -> None:
    """Print a line for each part of the time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("study", type=Path)
    parser.add_argument("--jobs", type=int, help="processes at a time; default: one per core")
    parser.add_argument("--data", type=Path, help="CSV file")
    given = parser.parse_args()
    found, took = announced(given.study, given.jobs)
    if given.data is not None:
        with given.data.open("w", newline="") as file:
            csv.writer(file).writerows([("seconds", "left"), *found, (took, 0)])
    for line in lines(found, took):
        print(line, flush=True)


if __name__ == "__main__":
    main()
