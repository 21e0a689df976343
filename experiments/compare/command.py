"""``snnfl compare``: run a study and write its tables, its figures and its report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from experiments.compare.figures import draw
from experiments.compare.records import entries
from experiments.compare.report import study_page
from experiments.compare.scheduler import run_cells, seconds_left, state_of
from experiments.compare.study import Cell, Study, read_study
from experiments.compare.tables import as_csv, as_latex, as_markdown, as_rich
from experiments.engines import EngineError
from snnfl.spiking.storage import write_bytes


def compare(path: Path, overrides: Sequence[str], *, dry_run: bool, jobs: int | None, console: Console) -> None:
    """Run what a study lacks; write ``tables.{md,csv,tex}``, figures as SVG and PNG, and ``report.html``.

    Args:
        path: YAML file of the study.
        overrides: ``key=value`` for every cell.
        dry_run: List the cells and what they will cost, and stop.
        jobs: Processes at a time; ``None`` for one per core.
        console: Shows progress and the table.

    Raises:
        ConfigError: For a study with a mistake, before anything runs.
        EngineError: If a cell failed; the others are finished.
    """
    study = read_study(path, overrides)
    if dry_run:
        console.print(_plan(study))
        return
    failed = _run(study, jobs or os.cpu_count() or 1, console)
    finished = [cell for cell in study.cells if state_of(cell).finished]
    if finished:
        write_results(study, finished, console)
    if failed:
        reasons = "; ".join(f"{name}: {line}" for name, line in failed.items())
        raise EngineError(f"{len(failed)} of {len(study.cells)} cells failed: {reasons}")


def write_results(study: Study, finished: Sequence[Cell], console: Console) -> None:
    """Write tables, figures and report of the finished cells."""
    folder = study.directory
    tables = [(view, entries(view, finished)) for view in study.tables]
    for name, text in (("md", as_markdown), ("csv", as_csv), ("tex", as_latex)):
        write_bytes(folder / f"tables.{name}", text(tables).encode())
    drawn = [(view, draw(view, finished)) for view in study.figures]
    figures = [(view, figure) for view, figure in drawn if figure is not None]
    for view, figure in figures:
        for suffix in ("svg", "png"):
            figure.savefig(folder / f"{view.slug}.{suffix}", dpi=150)
    write_bytes(folder / "report.html", study_page(study, finished, tables, figures).encode())
    for filled in tables:
        console.print(as_rich(filled))
    console.print(f"results: {folder}/ (report.html, tables.md, tables.csv, tables.tex, figures)", highlight=False)


def _run(study: Study, jobs: int, console: Console) -> dict[str, str]:
    total = sum(cell.config.run.rounds for cell in study.cells)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} rounds"))
    with Progress(*columns, TimeElapsedColumn(), TextColumn("{task.fields[left]}"), console=console) as progress:
        task = progress.add_task(study.name, total=total, left="")

        def watch(running: Sequence[Cell]) -> None:
            left = seconds_left(study.cells)
            text = "" if left is None else f"about {timedelta(seconds=round(left / jobs))} left"
            done = sum(state_of(cell).rounds for cell in study.cells)
            progress.update(task, completed=done, left=text, description=f"{study.name}: {len(running)} cells run")

        failed = run_cells(study.cells, jobs, watch=watch)
        watch([])
    return failed


def _plan(study: Study) -> Table:
    """List the cells. A cost is that of measured rounds of the same study; before the first there is none."""
    left = seconds_left(study.cells)
    known = "unknown until a round is measured" if left is None else f"{timedelta(seconds=round(left))} of one process"
    plan = Table("cell", "state", "seconds per round", title=f"{study.name}: {len(study.cells)} cells; left: {known}")
    for cell in study.cells:
        state = state_of(cell)
        done = "finished" if state.finished else f"{state.rounds} of {cell.config.run.rounds} rounds"
        plan.add_row(cell.name, done, "–" if state.seconds is None else f"{state.seconds:.1f}")
    return plan
