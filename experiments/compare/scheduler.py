"""Run the cells of a study, several at a time, each in a process of its own."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from experiments.compare.study import Cell
from snnfl.config import to_yaml
from snnfl.files import write_bytes
from snnfl.plugins import pack
from strategies.run_directory import FIGURE_FILES, METRICS_FILE, read_metrics

LOG, CONFIGURATION, EXTRAS = "cell.log", "cell.yaml", "cell_extras.json"
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 10.0
"""How long a cell may take to end when it is told to."""


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
    is known count as the average.

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
        for cell in cells if not states[cell.name].finished
    ]  # fmt: skip
    return max([sum(left) / jobs, *left], default=0.0)


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
    cells: Sequence[Cell], jobs: int | None, *, watch: Callable[[Sequence[Cell]], None] = lambda running: None
) -> dict[str, str]:
    """Run what isn't finished; go on where a cell was broken off.

    An interrupt or a request to terminate ends the cells too; each goes on after its last complete round next time.

    Args:
        cells: Of the study.
        jobs: As in :func:`places`.
        watch: Told every moment which cells run.

    Returns:
        The last line that each failed cell wrote, by its name. The others ran on.
    """
    waiting = [cell for cell in cells if not state_of(cell).finished]
    free = places(cells, jobs)
    running: dict[str, tuple[Cell, dict[str, str], subprocess.Popen[bytes]]] = {}
    failed: dict[str, str] = {}
    try:
        while waiting or running:
            for cell in [cell for cell in waiting if free[cell.config.run.device]]:
                if free[cell.config.run.device]:
                    waiting.remove(cell)
                    place = free[cell.config.run.device].pop(0)
                    running[cell.name] = (cell, place, _start(cell, place))
            for name, (cell, place, process) in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    free[cell.config.run.device].append(place)
                    if process.returncode or not state_of(cell).finished:
                        failed[name] = _last_line(cell.path / LOG)
            watch([cell for cell, _, _ in running.values()])
            time.sleep(POLL_SECONDS)
    finally:
        _end([process for _, _, process in running.values()])
    return failed


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _start(cell: Cell, place: Mapping[str, str]) -> subprocess.Popen[bytes]:
    cell.path.mkdir(parents=True, exist_ok=True)
    write_bytes(cell.path / CONFIGURATION, to_yaml(cell.config).encode())
    write_bytes(cell.path / EXTRAS, cell.extras.to_json().encode())
    environment = {**os.environ, "OMP_NUM_THREADS": str(cell.config.run.threads), **place}
    files = [str(cell.path / name) for name in (CONFIGURATION, EXTRAS)]
    command = [sys.executable, "-P", "-m", "snnfl.launch", "experiments.compare.cell", *files, str(os.getpid())]
    with (cell.path / LOG).open("ab") as log, tempfile.TemporaryFile() as plugins:
        plugins.write(pack(cell.plugins))
        plugins.seek(0)
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=plugins, env=environment)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{lines[-1]} (all of it: {log})" if lines else f"it wrote nothing to {log}"
