"""Run the cells of a study, several at a time, each in a process of its own."""

from __future__ import annotations

import os
import signal
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from experiments.compare.processes import LOG, Processes, processes
from experiments.compare.study import Cell
from snnfl.config import counted
from strategies.run_directory import FIGURE_FILES, METRICS_FILE, read_metrics

POLL_SECONDS = 0.2

START_SECONDS, CELL_SECONDS = 2.5, 0.8
"""Of processor time that imports take, once per study, and each cell beside its rounds (docs/compare.md says where)."""


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
    """Read the state of a cell, which may be running, off its folder.

    Raises:
        RunFileError: If its rows are damaged.
    """
    rows = read_metrics(cell.path, growing=True) if (cell.path / METRICS_FILE).exists() else []
    files = [FIGURE_FILES[-1], *([] if cell.extras.file is None else [cell.extras.file])]
    complete = len(rows) == cell.config.run.rounds and all((cell.path / name).exists() for name in files)
    seconds = statistics.fmean(row["seconds_round"] for row in rows) if rows else None
    return State(rounds=len(rows), finished=complete, seconds=seconds)


def seconds_per_round(cells: Sequence[Cell], states: Mapping[str, State]) -> dict[str, float]:
    """Return what a round of each cell takes, by name, as far as the study has measured it.

    A cell without a round yet is taken to cost what the same setting costs with other seeds; where that isn't known
    either, it is absent.
    """
    by_setting: dict[tuple[str, ...], list[float]] = {}
    for cell in cells:
        if (seconds := states[cell.name].seconds) is not None:
            by_setting.setdefault(tuple(cell.labels.values()), []).append(seconds)
    means = {setting: statistics.fmean(values) for setting, values in by_setting.items()}
    found = ((cell.name, states[cell.name].seconds or means.get(tuple(cell.labels.values()))) for cell in cells)
    return {name: seconds for name, seconds in found if seconds is not None}


def seconds_left(
    cells: Sequence[Cell], states: Mapping[str, State], rounds: Mapping[str, float], jobs: int
) -> float | None:
    """Estimate the wall time that is left; ``None`` before anything is known.

    Work is shared by ``jobs`` processes, and no cell can be shared: the longest one is a bound. Cells of which nothing
    is known count as the average. Beside its rounds each cell has its own start to pay for, until the first of them is
    complete, and the study has the imports.

    Args:
        cells: Of the study.
        states: Theirs, by name.
        rounds: Seconds of a round, by name.
        jobs: Processes at a time.
    """
    if not rounds:
        return None
    mean = statistics.fmean(rounds.values())
    left = [
        (cell.config.run.rounds - states[cell.name].rounds) * rounds.get(cell.name, mean)
        + (0.0 if states[cell.name].rounds else CELL_SECONDS)
        for cell in cells if not states[cell.name].finished
    ]  # fmt: skip
    begun = any(states[cell.name].rounds and not states[cell.name].finished for cell in cells)
    return max([sum(left) / jobs, *left], default=0.0) + (START_SECONDS if left and not begun else 0.0)


def places(cells: Sequence[Cell], jobs: int | None) -> dict[str, list[dict[str, str]]]:
    """Return where cells can run at the same time: by device, an environment for each process.

    Args:
        cells: Of the study; their ``run.device`` and ``run.threads`` count.
        jobs: Processes at a time and kind of device; ``None``: one per ``run.threads`` cores, or one per GPU.

    Returns:
        Of ``cuda`` one place per visible GPU, whose process sees that one alone. Of a device with a number, one place.
    """
    found: dict[str, list[dict[str, str]]] = {}
    for device in {cell.config.run.device for cell in cells}:
        if device == "cpu":
            threads = max(cell.config.run.threads for cell in cells if cell.config.run.device == device)
            found[device] = [{} for _ in range(jobs or max(1, (os.cpu_count() or 1) // threads))]
        elif device == "cuda":
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            names = visible.split(",") if visible else [str(n) for n in range(torch.cuda.device_count())]
            found[device] = [{"CUDA_VISIBLE_DEVICES": name} for name in names[:jobs]]
        else:
            found[device] = [{}]
    return found


def run_cells(
    cells: Sequence[Cell],
    jobs: int | None,
    *,
    watch: Callable[[Sequence[Cell]], None] = lambda running: None,
    started: Callable[[], Processes] = processes,
) -> dict[str, str]:
    """Run what isn't finished; go on where a cell was broken off.

    An interrupt or a request to terminate ends the cells too; each goes on after its last complete round next time.

    Args:
        cells: Of the study.
        jobs: As in :func:`places`.
        watch: Told every moment which cells run.
        started: Makes the processes.

    Returns:
        Why each failed cell did, by its name. The others ran on.
    """
    waiting = [cell for cell in cells if not state_of(cell).finished]
    free = places(cells, jobs)
    running: dict[str, tuple[Cell, dict[str, str]]] = {}
    failed: dict[str, str] = {}
    of_cells = started()
    try:
        while waiting or running:
            for cell in list(waiting):
                if free[cell.config.run.device]:
                    waiting.remove(cell)
                    place = free[cell.config.run.device].pop(0)
                    running[cell.name] = cell, place
                    of_cells.start(cell, place)
            watch([cell for cell, _ in running.values()])
            for name, status in of_cells.ended(POLL_SECONDS).items():
                cell, place = running.pop(name)
                free[cell.config.run.device].append(place)
                if status or not state_of(cell).finished:
                    failed[name] = _why(cell, status)
    finally:
        of_cells.close()
    return failed


def _why(cell: Cell, status: int) -> str:
    """Say why a cell has ended; of one that a signal ended, its log says nothing."""
    log = cell.path / LOG
    if status < 0:
        return f"{signal.Signals(-status).name} ended its process after {counted(state_of(cell).rounds, 'round')}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{lines[-1]} (all of it: {log})" if lines else f"it wrote nothing to {log}"
