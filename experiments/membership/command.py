"""``snnfl membership``: train what a study lacks, attack it, and write its tables, figures and report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from experiments.compare.tables import as_csv, as_latex, as_markdown, as_rich
from experiments.ending import keeping
from experiments.engines import EngineError
from experiments.membership.cell import Cell, cells_of, packed
from experiments.membership.figures import roc_figure
from experiments.membership.progress import Forecast, processes
from experiments.membership.report import filled_tables, membership_page, sentences
from experiments.membership.study import MembershipStudy, read_membership_study
from experiments.progress import Bars
from snnfl.config import counted
from snnfl.files import write_bytes
from snnfl.membership_attacks import MEMBERSHIP_ATTACKS
from strategies.figures import save_figure
from strategies.lock import locked

LOOK_SECONDS = 0.5
PATIENCE_SECONDS = 10.0
"""How long a process may take to end when it is told to."""

LOG = "study.log"


@dataclass(frozen=True, kw_only=True)
class Studied:
    """A study whose settings are attacked.

    Attributes:
        study: As its file says.
        results: Of each setting, as ``results.json`` has them.
    """

    study: MembershipStudy
    results: Sequence[dict[str, Any]]


def attacks_table() -> Table:
    """List the attacks."""
    table = Table("attack", "needs", "what it does", "source", show_lines=True)
    table.columns[0].no_wrap = True
    for attack in MEMBERSHIP_ATTACKS:
        what = attack.summary + (" A diagnosis." if attack.setting == "diagnostic" else "")
        table.add_row(attack.name, ", ".join(sorted(attack.needs)), what, attack.source)
    return table


def plan(
    path: Path, overrides: Sequence[str], plugins: Sequence[str | Path], *, jobs: int | None, console: Console
) -> None:
    """List the cells of a study and what they will cost.

    Raises:
        ConfigError: For a study with a mistake.
    """
    study = read_membership_study(path, overrides, plugins)
    cells = cells_of(study)
    forecast, several = Forecast(cells), processes(cells, jobs)
    left = _duration(forecast.left(several))
    title = f"{study.name}: {counted(len(cells), 'cell')}; about {left} left, {several} at a time"
    table = Table("cell", "state", "seconds", title=title, caption="Estimated from a step and a forward pass.")
    for cell in cells:
        expected = forecast.expected.get(cell.name)
        table.add_row(cell.name, *(("finished", "") if expected is None else ("to do", f"{expected:.1f}")))
    console.print(table)


def study_members(
    path: Path,
    overrides: Sequence[str] = (),
    plugins: Sequence[str | Path] = (),
    *,
    jobs: int | None = None,
    console: Console,
) -> Studied:
    """Train and attack what a study lacks; write ``tables.{md,csv,tex}``, ROC plots, ``results.json``, ``report.html``.

    Args:
        path: YAML file of the study.
        overrides: ``key=value`` for every setting.
        plugins: Beside those that the file lists.
        jobs: Processes at a time; ``None`` for one per core.
        console: Shows progress, the tables and what they say.

    Raises:
        ConfigError: For a study with a mistake, before anything is trained.
        FolderInUseError: If another process runs the study.
        EngineError: If a network cannot be trained; the others are finished.
        BrokenOffError: If the system doesn't let the results be written.
    """
    study = read_membership_study(path, overrides, plugins)
    cells = cells_of(study)
    study.directory.mkdir(parents=True, exist_ok=True)

    def kept() -> str:
        finished = sum(cell.finished for cell in cells)
        return f"{finished} of {len(cells)} cells are finished; the same command goes on with the others"

    with locked(study.directory), keeping(kept):
        reason = _run(study, cells, jobs, console)
        results = [json.loads(s.results.read_text()) for s in study.settings if s.results.exists()]
        if results:
            write_results(study, results, console)
    if reason:
        raise EngineError(f"{reason}; {kept()}")
    return Studied(study=study, results=results)


def write_results(study: MembershipStudy, results: Sequence[dict[str, Any]], console: Console) -> None:
    """Write tables, figures and report of the settings that are attacked, and show what they say."""
    folder, tables = study.directory, filled_tables(study.tables, results)
    for name, text in (("md", as_markdown), ("csv", as_csv), ("tex", as_latex)):
        write_bytes(folder / f"tables.{name}", text(tables).encode())
    write_bytes(folder / "results.json", json.dumps(results, indent=1).encode())
    write_bytes(folder / "report.html", membership_page(f"Membership: {study.name}", results, tables).encode())
    for setting, result in zip(study.settings, results, strict=False):
        for suffix in ("svg", "png"):
            save_figure(roc_figure(result), folder / f"{setting.path.name}.{suffix}")
    for filled in tables:
        console.print(as_rich(filled))
    for sentence in sentences(results):
        console.print(sentence, highlight=False, soft_wrap=True)
    console.print(f"results: {folder}/ (report.html, tables.md, tables.csv, results.json, figures)", highlight=False)


def _run(study: MembershipStudy, cells: Sequence[Cell], jobs: int | None, console: Console) -> str:
    """Start equal processes and show what is left; return why they couldn't do all, or nothing."""
    if all(cell.finished for cell in cells):
        return ""
    several, forecast = processes(cells, jobs), Forecast(cells)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} cells"))
    with Bars(*columns, TimeElapsedColumn(), TextColumn("{task.fields[left]}"), console=console) as progress:
        task = progress.add_task(study.name, total=len(cells), left="")
        workers = [_start(study) for _ in range(several)]
        since, finished = time.monotonic(), forecast.look()
        try:
            while any(worker.poll() is None for worker in workers):
                now = forecast.look()
                if now > finished:
                    since, finished = time.monotonic(), now
                left = forecast.left(several, busy=time.monotonic() - since)
                progress.update(task, completed=finished, left=f"about {_duration(left)} left")
                time.sleep(LOOK_SECONDS)
        finally:
            _end(workers)
        progress.update(task, completed=forecast.look(), left="")
    if all(cell.finished for cell in cells):
        return ""
    lines = (study.directory / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{lines[-1]} (all of it: {study.directory / LOG})" if lines else "a process ended without a word"


def _start(study: MembershipStudy) -> subprocess.Popen[bytes]:
    threads = study.settings[0].config.run.threads
    command = [sys.executable, "-P", "-m", "snnfl.launch", "experiments.membership.cell", str(os.getpid())]
    with (study.directory / LOG).open("ab") as log:
        worker = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": str(threads)}
        )
    if worker.stdin is not None:
        with worker.stdin as stream:
            stream.write(packed(study))
    return worker


def _end(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        worker.terminate()
    for worker in workers:
        try:
            worker.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
