"""Run the cells of a study, several at a time, each in a process of its own."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.compare.study import Cell
from snnfl.config import to_yaml
from snnfl.spiking.storage import write_bytes
from strategies.run_directory import FIGURE_FILES, METRICS_FILE, read_metrics

LOG, CONFIGURATION, EXTRAS = "cell.log", "cell.yaml", "cell_extras.json"
POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class State:
    """How far a cell is.

    Attributes:
        rounds: Complete ones.
        finished: Whether its results are all there.
        seconds: Of an average round so far; ``None`` before the first.
    """

    rounds: int
    finished: bool
    seconds: float | None


def state_of(cell: Cell) -> State:
    """Read a cell's state off its folder."""
    rows = read_metrics(cell.path) if (cell.path / METRICS_FILE).exists() else []
    files = [FIGURE_FILES[-1], *([] if cell.extras.file is None else [cell.extras.file])]
    complete = len(rows) == cell.config.run.rounds and all((cell.path / name).exists() for name in files)
    seconds = statistics.fmean(row["seconds_round"] for row in rows) if rows else None
    return State(rounds=len(rows), finished=complete, seconds=seconds)


def seconds_left(cells: Sequence[Cell]) -> float | None:
    """Estimate what is left of a study, from the measured rounds of its own cells; ``None`` before there are any.

    A cell without a round yet is taken to cost as much per round as the average of those that have some.
    """
    states = [(cell, state_of(cell)) for cell in cells]
    known = [state.seconds for _, state in states if state.seconds is not None]
    if not known:
        return None
    mean = statistics.fmean(known)
    return sum(
        (cell.config.run.rounds - state.rounds) * (state.seconds or mean)
        for cell, state in states if not state.finished
    )  # fmt: skip


def run_cells(
    cells: Sequence[Cell], jobs: int, *, watch: Callable[[Sequence[Cell]], None] = lambda running: None
) -> dict[str, str]:
    """Run what isn't finished; go on where a cell was broken off.

    Args:
        cells: Of the study.
        jobs: Processes at a time.
        watch: Told every moment which cells run.

    Returns:
        The last line that each failed cell wrote, by its name. The others ran on.
    """
    waiting = [cell for cell in cells if not state_of(cell).finished]
    running: dict[str, tuple[Cell, subprocess.Popen[bytes]]] = {}
    failed: dict[str, str] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                running[cell.name] = (cell, _start(cell))
            for name, (cell, process) in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    if process.returncode or not state_of(cell).finished:
                        failed[name] = _last_line(cell.path / LOG)
            watch([cell for cell, _ in running.values()])
            time.sleep(POLL_SECONDS)
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()
    return failed


def _start(cell: Cell) -> subprocess.Popen[bytes]:
    cell.path.mkdir(parents=True, exist_ok=True)
    write_bytes(cell.path / CONFIGURATION, to_yaml(cell.config).encode())
    write_bytes(cell.path / EXTRAS, cell.extras.to_json().encode())
    environment = {**os.environ, "OMP_NUM_THREADS": str(cell.config.run.threads)}
    command = [
        sys.executable,
        "-m",
        "experiments.compare.cell",
        *(str(cell.path / name) for name in (CONFIGURATION, EXTRAS)),
    ]
    with (cell.path / LOG).open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{lines[-1]} (all of it: {log})" if lines else f"it wrote nothing to {log}"
