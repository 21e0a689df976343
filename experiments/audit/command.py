"""``snnfl audit``: attack what recorded runs kept, score it, and write the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from experiments.audit.data import data_files
from experiments.audit.found import Audit
from experiments.audit.report import write_report
from snnfl.attacks import Budget, get_attack
from snnfl.audit.bias_errors import bias_errors
from snnfl.audit.controls import MULTIPLIERS, noised, plain_twin
from snnfl.audit.detecting import judge_recording, recorded_thresholds
from snnfl.audit.recording import RecordingError
from snnfl.audit.scorecard import Entry, as_csv, entries, write_json
from snnfl.audit.suite import Outcome, applicable, attack_all, check_pictures
from snnfl.audit.victims import Scope, Victim, victims_of
from snnfl.config import Config, compose
from snnfl.spiking.storage import write_bytes
from snnfl.workspace import Workspace
from strategies.run_directory import AUDIT, CONFIG_FILE, read_metrics

NOISE_ATTACK = "inverting_gradients"
"""The attack of the control curve."""

CONTROL_ATTACKS = ("closed_form", "inverting_gradients", "inverting_statistics")
"""Plain counterparts of the attacks on S-updates, on clients' plain twins unless plain attacks are named."""


def audit_runs(
    runs: Sequence[Path],
    attacks: Sequence[str],
    scope: Scope,
    budget: Budget,
    *,
    controls: bool,
    output: Path | None,
    console: Console,
) -> None:
    """Attack runs and write the report; a user's mistake is found before the first attack.

    Args:
        runs: Their folders.
        attacks: Names; empty for all that apply.
        scope: Rounds, clients and threat model.
        budget: Of each attack, per victim.
        controls: Whether plain twins of an S-run's clients, and plain updates with noise, are attacked too.
        output: Folder of the report; ``None`` for ``audit/`` of the first run.
        console: Shows progress and the scorecard.

    Raises:
        ConfigError: For an unknown attack.
        RecordingError: For a folder without a run or a recording, or a damaged one.
    """
    for name in attacks:
        get_attack(name)
    with attack_progress(console) as progress:
        audits = [audit_run(path, attacks, scope, budget, controls=controls, progress=progress) for path in runs]
    folder = output or runs[0] / AUDIT
    write_audits(folder, audits, budget)
    found = [entry for each in audits for entry in each.entries]
    for table in _tables(found):
        console.print(table)
    console.print(f"report: {folder / 'report.html'}; the same numbers: *.json and *.csv beside it", highlight=False)


def write_audits(folder: Path, audits: Sequence[Audit], budget: Budget) -> None:
    """Write what audits found: ``report.html``, and the same numbers as JSON and CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    found = [entry for each in audits for entry in each.entries]
    curve = [{"noise_multiplier": z, **entry} for each in audits for z, entry in each.noise]
    write_json(folder / "scorecard.json", [*found, *curve])
    write_bytes(folder / "scorecard.csv", as_csv(found).encode())
    for name, text in data_files(audits).items():
        write_bytes(folder / name, text.encode())
    write_report(folder / "report.html", audits, budget)


def audit_run(
    path: Path, attacks: Sequence[str], scope: Scope, budget: Budget, *, controls: bool, progress: Progress
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
    twins = [twin for victim in victims if controls and (twin := plain_twin(victim)) is not None]
    plain = [] if not controls else twins if config.strategy.spiking else victims
    chosen, on_twins = _chosen(attacks, config.strategy.spiking)
    curve = MULTIPLIERS if plain else ()
    rounds = len({victim.server_round for victim in victims})
    steps = len(chosen) + (len(on_twins) if twins else 0) + len(curve)
    task = progress.add_task(path.name, total=rounds * steps)

    def attack(some: Sequence[Victim], names: Sequence[str]) -> list[Outcome]:
        return attack_all(work, some, names, budget, done=lambda outcome: progress.advance(task)) if some else []

    outcomes, on_control = attack(victims, chosen), attack(twins, on_twins)
    points: list[tuple[float, Entry]] = []
    twin_config = plain_twins(config) if config.strategy.spiking else config
    for z in curve:
        found = attack(noised(plain, z, config.run.seed), [NOISE_ATTACK])
        points += [(z, entry) for entry in entries(twin_config, found)]
    return Audit(
        path=path,
        config=config,
        metrics=read_metrics(path),
        outcomes=outcomes,
        controls=on_control,
        entries=[*entries(config, outcomes, on_control), *entries(twin_config, on_control)],
        noise=points,
        biases=bias_errors(victims),
        judged=judge_recording(work, path / AUDIT, sorted(scope.rounds)),
        thresholds=recorded_thresholds(work, path / AUDIT, sorted(scope.rounds)),
    )


def plain_twins(config: Config) -> Config:
    """Return the configuration that the scorecard shows for the plain twins of an S-run's clients."""
    run = replace(config.run, name=f"{config.run.name}, plain twins")
    return replace(config, run=run, strategy=replace(config.strategy, spiking=False))


def _chosen(attacks: Sequence[str], spiking: bool) -> tuple[Sequence[str], Sequence[str]]:
    """Return the attacks on a run, and those on the plain twins of its clients."""
    of_plain, of_spiking = ([name for name in attacks if name in applicable(kind)] for kind in (False, True))
    if not spiking:
        return of_plain or applicable(False), ()
    return of_spiking or applicable(True), of_plain or CONTROL_ATTACKS


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
