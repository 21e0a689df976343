"""``snnfl audit``: attack what recorded runs kept, score it, and write the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from experiments.audit.found import Audit
from experiments.audit.report import write_report
from snnfl.attacks import Budget, get_attack
from snnfl.audit.controls import MULTIPLIERS, noised
from snnfl.audit.detecting import judge_recording
from snnfl.audit.recording import RecordingError
from snnfl.audit.scorecard import Entry, as_csv, entries, write_json
from snnfl.audit.suite import applicable, attack_all, bias_errors, check_pictures
from snnfl.audit.victims import Scope, victims_of
from snnfl.config import compose
from snnfl.spiking.storage import write_bytes
from snnfl.workspace import Workspace
from strategies.run_directory import AUDIT, CONFIG_FILE, read_metrics

NOISE_ATTACK = "inverting_gradients"
"""The attack of the control curve."""


def audit_runs(
    runs: Sequence[Path],
    attacks: Sequence[str],
    scope: Scope,
    budget: Budget,
    *,
    noise: bool,
    output: Path | None,
    console: Console,
) -> None:
    """Attack runs and write the report; a user's mistake is found before the first attack.

    Args:
        runs: Their folders.
        attacks: Names; empty for all that apply.
        scope: Rounds, clients and threat model.
        budget: Of each attack, per victim.
        noise: Whether noised updates of plain runs are attacked too.
        output: Folder of the report; ``None`` for ``audit/`` of the first run.
        console: Shows progress and the scorecard.

    Raises:
        ConfigError: For an unknown attack.
        RecordingError: For a folder without a run or a recording, or a damaged one.
    """
    for name in attacks:
        get_attack(name)
    with attack_progress(console) as progress:
        audits = [audit_run(path, attacks, scope, budget, noise=noise, progress=progress) for path in runs]
    folder = output or runs[0] / AUDIT
    folder.mkdir(parents=True, exist_ok=True)
    found = [entry for each in audits for entry in each.entries]
    curve = [{"noise_multiplier": z, **entry} for each in audits for z, entry in each.noise]
    write_json(folder / "scorecard.json", [*found, *curve])
    write_bytes(folder / "scorecard.csv", as_csv(found).encode())
    write_report(folder / "report.html", audits, budget)
    for table in _tables(found):
        console.print(table)
    console.print(f"report: {folder / 'report.html'}; the same numbers: scorecard.json, scorecard.csv", highlight=False)


def audit_run(
    path: Path, attacks: Sequence[str], scope: Scope, budget: Budget, *, noise: bool, progress: Progress
) -> Audit:
    """Attack one recorded run.

    Raises:
        RecordingError: If the folder holds no run, or no recording.
        ThreatModelError: If labels are granted that nobody told.
    """
    if not (path / CONFIG_FILE).exists():
        raise RecordingError(f"{path}: no {CONFIG_FILE} of a run here; give the folder of a run, such as runs/demo")
    config = compose(path / CONFIG_FILE)
    config = replace(config, run=replace(config.run, name=path.name))
    work = Workspace(config)
    _ = work.initial_state  # before anybody loads other weights
    check_pictures(work)
    victims = victims_of(work, path / AUDIT, scope)
    kind = applicable(config.strategy.spiking)
    chosen = [name for name in attacks if name in kind] if attacks else kind
    curve = MULTIPLIERS if noise and not config.strategy.spiking else ()
    count = len({victim.server_round for victim in victims})
    task = progress.add_task(path.name, total=count * len(chosen) + len(curve) * count)
    outcomes = attack_all(work, victims, chosen, budget, done=lambda outcome: progress.advance(task))
    points: list[tuple[float, Entry]] = []
    for z in curve:
        disturbed = noised(victims, z, config.run.seed)
        found = attack_all(work, disturbed, [NOISE_ATTACK], budget, done=lambda outcome: progress.advance(task))
        points += [(z, entry) for entry in entries(config, found)]
    return Audit(
        path=path,
        config=config,
        metrics=read_metrics(path),
        outcomes=outcomes,
        entries=entries(config, outcomes),
        noise=points,
        biases=bias_errors(victims),
        judged=judge_recording(work, path / AUDIT, sorted(scope.rounds)),
    )


def attack_progress(console: Console) -> Progress:
    """Make the bar that :func:`audit_run` advances."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} attacks"))
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True)


def _tables(found: Sequence[Entry]) -> Iterator[Table]:
    """Show a table per run and round; what was refused stands in the report with its reason."""
    for (run, server_round), group in groupby(found, key=lambda entry: (entry["run"], entry["round"])):
        table = Table(title=f"{run}, round {server_round}")
        for name in ("attack", "images", "labels", "PSNR (floor)", "SSIM (floor)"):
            table.add_column(name, no_wrap=True)
        for entry in group:
            if entry["value"] is None:
                table.add_row(entry["attack"], entry["verdict"])
                continue
            metrics, floor = entry["metrics"], entry["floor"]
            label = f"{metrics['label_accuracy']['value']:.0%} {entry['label_verdict']}"
            psnr, ssim = f"{entry['value']:.1f} ({floor['psnr']:.1f})", f"{metrics['ssim']['value']:.2f}"
            table.add_row(entry["attack"], entry["verdict"], label, psnr, f"{ssim} ({floor['ssim']:.2f})")
        yield table
