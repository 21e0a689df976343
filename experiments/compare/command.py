"""``snnfl compare``: run a study and write its tables, its figures and its report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from experiments.compare.cost import estimate
from experiments.compare.figures import draw
from experiments.compare.records import entries, extras_of
from experiments.compare.report import study_page
from experiments.compare.scheduler import (
    CELL_SECONDS,
    State,
    places,
    run_cells,
    seconds_left,
    seconds_per_round,
    state_of,
)
from experiments.compare.study import Cell, Study, read_study
from experiments.compare.tables import Filled, as_csv, as_latex, as_markdown, as_rich
from experiments.ending import keeping
from experiments.engines import EngineError
from experiments.progress import Bars
from experiments.running import check_results
from snnfl.config import counted
from snnfl.files import write_bytes
from strategies.figures import save_figure
from strategies.lock import locked
from strategies.resume import check_run
from strategies.run_directory import holds_results, read_metrics

LOOK_SECONDS = 1.0
"""How often the rounds of all cells are counted."""

ABOUT_COSTS = (
    "measured: mean of this setting's rounds so far. estimated: from one training step, conversion and simulation on "
    "this machine, in processor time (docs/compare.md); may be off by a factor of 3. What is left counts the start of "
    "cells, but neither energy nor audits."
)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A study whose cells have run.

    Attributes:
        study: As its file says.
        finished: Its cells that have all their results.
        tables: What was written as ``tables.md`` and the like.
    """

    study: Study
    finished: Sequence[Cell]
    tables: Sequence[Filled]


def plan(
    path: Path,
    overrides: Sequence[str],
    plugins: Sequence[str | Path] = (),
    *,
    jobs: int | None,
    console: Console,
) -> None:
    """List the cells of a study and what they will cost.

    Args:
        path: YAML file of the study.
        overrides: ``key=value`` for every cell.
        plugins: Beside those that the file lists.
        jobs: Processes at a time; ``None`` for one per core, or per GPU.
        console: Shows the list.

    Raises:
        ConfigError: For a study with a mistake.
        RunFileError: If a file of an earlier attempt is damaged.
    """
    study = read_study(path, overrides, plugins)
    check_cells(study)
    console.print(_plan(study, jobs))


def compare(
    path: Path,
    overrides: Sequence[str],
    plugins: Sequence[str | Path] = (),
    *,
    jobs: int | None,
    console: Console,
) -> Compared:
    """Run what a study lacks; write ``tables.{md,csv,tex}``, figures as SVG and PNG, and ``report.html``.

    Args:
        path: YAML file of the study.
        overrides: ``key=value`` for every cell.
        plugins: Beside those that the file lists.
        jobs: Processes at a time; ``None`` for one per core, or per GPU.
        console: Shows progress and the table.

    Raises:
        ConfigError: For a study with a mistake, before anything runs.
        RunFileError: If a file of an earlier attempt is damaged, likewise.
        FolderInUseError: If another process runs the study.
        EngineError: If a cell failed; the others are finished.
        BrokenOffError: If the system doesn't let the results be written.
    """
    study = read_study(path, overrides, plugins)
    check_cells(study)
    study.directory.mkdir(parents=True, exist_ok=True)
    tables: Sequence[Filled] = ()
    with locked(study.directory), keeping(lambda: _kept(study)):
        before = {cell.name: state_of(cell) for cell in study.cells}
        failed = _run(study, before, jobs, console)
        finished = [cell for cell in study.cells if state_of(cell).finished]
        if finished:
            tables = write_results(study, finished, console)
            console.print(f"{_done(before, finished)}; report: {study.directory}/report.html", highlight=False)
    if failed:
        reasons = "; ".join(f"{name}: {line}" for name, line in failed.items())
        raise EngineError(f"{len(failed)} of {len(study.cells)} cells failed: {reasons}; {_kept(study)}")
    return Compared(study=study, finished=finished, tables=tables)


def check_compared(compared: Compared) -> None:
    """Look whether the finished cells are as configured.

    Raises:
        NotAsConfiguredError: With a line for each who isn't, and why.
    """
    check_results({cell.name: (cell.config, read_metrics(cell.path)) for cell in compared.finished})


def check_cells(study: Study) -> None:
    """Look at all that earlier runs of a study have left, before anything runs for hours.

    Raises:
        RunFileError: Naming the first file that is damaged.
    """
    for cell in study.cells:
        if holds_results(cell.path):
            check_run(cell.path)
            extras_of(cell)


def _kept(study: Study) -> str:
    finished = sum(state_of(cell).finished for cell in study.cells)
    return f"{finished} of {len(study.cells)} cells are finished; the same command goes on with the others"


def write_results(study: Study, finished: Sequence[Cell], console: Console) -> Sequence[Filled]:
    """Write tables, figures and report of the finished cells; return the tables."""
    folder = study.directory
    tables = [(view, entries(view, finished)) for view in study.tables]
    for name, text in (("md", as_markdown), ("csv", as_csv), ("tex", as_latex)):
        write_bytes(folder / f"tables.{name}", text(tables).encode())
    drawn = [(view, draw(view, finished, study.axes)) for view in study.figures]
    figures = [(view, figure) for view, figure in drawn if figure is not None]
    for view, figure in figures:
        for suffix in ("svg", "png"):
            save_figure(figure, folder / f"{view.slug}.{suffix}")
    write_bytes(folder / "report.html", study_page(study, finished, tables, figures).encode())
    for filled in tables:
        console.print(as_rich(filled))
    return tables


def _done(before: Mapping[str, State], finished: Sequence[Cell]) -> str:
    """Say what this call has run, and what an earlier one had."""
    earlier = [before[cell.name] for cell in finished]
    parts = {
        "ran": sum(not state.rounds for state in earlier),
        "went on with": sum(bool(state.rounds) and not state.finished for state in earlier),
        "reused": sum(state.finished for state in earlier),
    }
    return ", ".join(f"{what} {counted(count, 'cell')}" for what, count in parts.items() if count)


def _run(study: Study, before: Mapping[str, State], jobs: int | None, console: Console) -> dict[str, str]:
    total = sum(cell.config.run.rounds for cell in study.cells)
    states = dict(before)
    several = _at_a_time(study, jobs)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} rounds"))
    with Bars(*columns, TimeElapsedColumn(), TextColumn("{task.fields[left]}"), console=console) as progress:
        task, looked = progress.add_task(study.name, total=total, left=""), -LOOK_SECONDS

        def watch(running: Sequence[Cell]) -> None:
            nonlocal looked
            if running and time.monotonic() - looked < LOOK_SECONDS:
                return
            looked = time.monotonic()
            states.update({cell.name: state_of(cell) for cell in study.cells if not states[cell.name].finished})
            left = seconds_left(study.cells, states, seconds_per_round(study.cells, states), several)
            progress.update(
                task,
                completed=sum(state.rounds for state in states.values()),
                left="" if left is None else f"about {_duration(left)} left",
                description=f"{study.name}: {_doing(running, states)}",
            )

        failed = run_cells(study.cells, jobs, watch=watch)
        watch([])
    return failed


def _doing(running: Sequence[Cell], states: Mapping[str, State]) -> str:
    ended = sum(states[cell.name].rounds == cell.config.run.rounds for cell in running)
    finished = sum(state.finished for state in states.values())
    measured = f", {ended} of them measured" if ended else ""
    return f"{finished}/{len(states)} cells, {len(running)} running{measured}"


def _at_a_time(study: Study, jobs: int | None) -> int:
    return max(1, sum(map(len, places(study.cells, jobs).values())))


def _plan(study: Study, jobs: int | None) -> Table:
    """List the cells and their cost: of measured rounds, before the first of a setting an estimate."""
    states = {cell.name: state_of(cell) for cell in study.cells}
    measured = seconds_per_round(study.cells, states)
    guessed = estimate([cell for cell in study.cells if cell.name not in measured])
    several = _at_a_time(study, jobs)
    left = seconds_left(study.cells, states, {**guessed, **measured}, several) or 0.0
    title = f"{study.name}: {counted(len(study.cells), 'cell')}; about {_duration(left)} left, {several} at a time"
    plan = Table("cell", "state", "seconds per round", "left", title=title, caption=ABOUT_COSTS)
    for cell in study.cells:
        state, known = states[cell.name], cell.name in measured
        seconds = measured[cell.name] if known else guessed[cell.name]
        done = "finished" if state.finished else f"{state.rounds} of {cell.config.run.rounds} rounds"
        rest = 0.0 if state.finished else (cell.config.run.rounds - state.rounds) * seconds + CELL_SECONDS
        plan.add_row(cell.name, done, f"{seconds:.2f} {'measured' if known else 'estimated'}", _duration(rest))
    return plan


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
