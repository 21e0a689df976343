"""``snnfl compare``: run a study and write its table, its figure and its report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from experiments.compare.scheduler import run_cells, seconds_left, state_of
from experiments.compare.study import Cell, Study, read_study
from experiments.compare.tables import Entry, as_csv, as_latex, as_markdown, as_rich, entries, value_of
from experiments.engines import EngineError
from experiments.html import Section, drawing, page, paragraph, preformatted, table
from snnfl.config import to_yaml
from snnfl.spiking.storage import write_bytes
from strategies.run_directory import ENVIRONMENT_FILE, read_metrics


def compare(path: Path, overrides: Sequence[str], *, dry_run: bool, jobs: int | None, console: Console) -> None:
    """Run what a study lacks; write ``table.{md,csv,tex}``, ``rounds.{svg,png}`` and ``report.html``.

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
    """Write table, figure and report of the finished cells."""
    found, folder = entries(study, finished), study.directory
    for name, text in (("table.md", as_markdown), ("table.csv", as_csv), ("table.tex", as_latex)):
        write_bytes(folder / name, text(study, found).encode())
    figure = rounds_figure(study, finished)
    for suffix in ("svg", "png"):
        figure.savefig(folder / f"rounds.{suffix}")
    write_bytes(folder / "report.html", _report(study, finished, found, figure).encode())
    console.print(as_rich(study, found))
    console.print(f"results: {folder}/ (report.html, table.md, table.csv, table.tex, rounds.svg)", highlight=False)


def rounds_figure(study: Study, finished: Sequence[Cell]) -> Figure:
    """Draw the study's value by round: mean over the seeds, with a band of one standard deviation."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot(xlabel="round", ylabel=study.value)
    curves: dict[str, list[list[float]]] = {}
    for cell in finished:
        rows = read_metrics(cell.path)
        values = [value_of(rows[: n + 1], study.value) for n in range(len(rows))]
        curves.setdefault(", ".join(cell.labels.values()), []).append(values)
    for label, found in curves.items():
        length = min(map(len, found))
        columns = [[values[n] for values in found] for n in range(length)]
        means = [sum(column) / len(column) for column in columns]
        spreads = [
            (sum((v - m) ** 2 for v in c) / max(1, len(c) - 1)) ** 0.5 for c, m in zip(columns, means, strict=True)
        ]
        rounds = range(1, length + 1)
        (line,) = axes.plot(rounds, means, marker=".", label=label)
        low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
        axes.fill_between(rounds, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.legend(fontsize="small")
    return figure


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


def _report(study: Study, finished: Sequence[Cell], found: Sequence[Entry], figure: Figure) -> str:
    head = [study.rows, study.columns or "", "mean", "deviation", "seeds", "paper", "difference"]
    rows = [
        [e.row, e.column, f"{e.mean:.4f}", "–" if e.deviation is None else f"{e.deviation:.4f}", len(e.values),
         "–" if e.paper is None else f"{e.paper:.4f}", "–" if e.paper is None else f"{e.mean - e.paper:+.4f}"]
        for e in found
    ]  # fmt: skip
    costs = [
        [cell.name, f"{row['bytes_up'] / 1e6:.2f}", f"{row['bytes_down'] / 1e6:.2f}", f"{row['seconds_round']:.2f}"]
        for cell in finished for row in read_metrics(cell.path)[-1:]
    ]  # fmt: skip
    first = finished[0]
    plain = replace(first.config, run=replace(first.config.run, name="cell"))
    environment = (first.path / ENVIRONMENT_FILE).read_text(encoding="utf-8")
    sections = [
        Section(title="Table", body=table(head, rows, caption=f"{study.value} after the last round; {study.source}.")),
        Section(title="By round", body=drawing(figure, "Mean over seeds, and one standard deviation.")),
        Section(title="Cost", body=table(["cell", "MB up", "MB down", "seconds"], costs, caption="Last round.")),
        Section(title="Configuration", body=paragraph(f"Of {first.name}.") + preformatted(to_yaml(plain))),
        Section(title="Environment", body=preformatted(environment)),
    ]
    return page(f"Study: {study.name}", sections, lead=f"{len(finished)} of {len(study.cells)} cells are finished.")
