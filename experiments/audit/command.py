"""``snnfl audit``: attack what recorded runs kept, score it, and write the report."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from experiments.audit.attendance import attendance_lines, in_sums
from experiments.audit.choice import Choice, check_names, choose
from experiments.audit.data import data_files
from experiments.audit.found import Audit, InSum
from experiments.audit.membership import membership_line, refused_by_name, side_channel_line
from experiments.audit.proof import proof_in_terminal
from experiments.audit.report import write_report
from experiments.audit.scores import guess
from experiments.audit.summary import summary
from experiments.ending import NotAsConfiguredError
from experiments.progress import BarsOrLines
from snnfl.attacks import Budget
from snnfl.auditing.best import best_attacks
from snnfl.auditing.bias_errors import BiasError, bias_errors
from snnfl.auditing.controls import MULTIPLIERS, noised, plain_twin
from snnfl.auditing.detecting import Judged, Threshold, judge_recording, recorded_thresholds
from snnfl.auditing.federated_membership import federated_membership, tries, unasked
from snnfl.auditing.label_counts import LabelCounts, label_counts
from snnfl.auditing.recording import RECORDING, RecordingError
from snnfl.auditing.scorecard import Entry, as_csv, entries, write_json
from snnfl.auditing.setting import Setting
from snnfl.auditing.side_channel import SideChannel, side_channels
from snnfl.auditing.suite import Outcome, attack_all
from snnfl.auditing.verdicts import judged_metrics
from snnfl.auditing.victims import Scope, Victim, setting_of, victims_of
from snnfl.config import Config, ConfigError, client_side
from snnfl.files import make_private, write_bytes
from snnfl.plugins import check_same, loaded
from snnfl.workspace import Workspace
from strategies.lock import locked
from strategies.resume import check_run
from strategies.run_directory import AUDIT, CONFIG_FILE, read_config, read_environment, read_metrics

REPORT = "report.html"

NOISE_ATTACK = "inverting_gradients"
"""The attack of the control curve."""

NO_THRESHOLDS = "asks thresholds of S-updates, and no client here sends any"


def audit_runs(
    runs: Sequence[Path],
    attacks: Sequence[str],
    scope: Scope,
    budget: Budget,
    *,
    controls: bool,
    side_channel: bool = False,
    output: Path | None,
    console: Console,
) -> tuple[Path, list[Audit]]:
    """Attack runs and write the report; a user's mistake is found before the first attack.

    Args:
        runs: Their folders.
        attacks: Names; empty for all that apply.
        scope: Rounds, clients and threat model.
        budget: Of each attack, per victim.
        controls: Whether plain twins of an S-run's clients, and plain updates with noise, are attacked too.
        side_channel: Whether thresholds of S-updates are asked for members and properties of calibration images.
        output: Folder of the report; ``None`` for ``audit/`` of the first run.
        console: Shows progress and the scorecard.

    Returns:
        The folder of the report, and what was found in each run. Where every attack was refused, a report that is there
        stays, and none of this is written.

    Raises:
        ConfigError: For an unknown attack, or named ones of which none applies.
        RunFileError: For a folder without a run, or a damaged one.
        RecordingError: For a folder without a recording, or a damaged one.
        FolderInUseError: If another process writes its report there.
    """
    prepared = [prepare(path, attacks, scope, controls=controls, side_channel=side_channel) for path in runs]
    if side_channel and all(each.setting.format.kind != "converted" for each in prepared):
        raise ConfigError(f"--side-channel: {NO_THRESHOLDS}; leave it out")
    return audit_prepared(prepared, attacks, budget, output=output, console=console)


def audit_prepared(
    prepared: Sequence[Prepared], attacks: Sequence[str], budget: Budget, *, output: Path | None, console: Console
) -> tuple[Path, list[Audit]]:
    """Attack what was read and checked, and write the report: what :func:`audit_runs` does last.

    Raises:
        ConfigError: For named attacks of which none applies.
        FolderInUseError: If another process writes its report there.
    """
    for line in (line for each in prepared for line in (*each.choice_notes, *each.notes)):
        console.print(line, highlight=False, markup=False)
    if not any(each.choice.some for each in prepared):
        named = f"--attack {', '.join(attacks)}" if attacks else "no attack is against their kind of update"
        raise ConfigError(f"{named}: nothing to attack in these runs")
    folder = output or prepared[0].folder
    make_private(folder)  # the pages show clients' images
    with locked(folder), attack_progress(console) as progress:
        audits = [audit_run(each, budget, progress) for each in prepared]
        kept = (folder / REPORT).exists() and all(audit.refused for audit in audits)
        if not kept:
            write_audits(folder, audits, budget)
    found = [entry for each in audits for entry in each.entries]
    for audit in audits:
        console.print(f"{audit.path.name}:", highlight=False, markup=False)
        for word, text in summary(audit):
            console.print(f"  [bold]{word}[/bold] {escape(text)}", highlight=False)
        for line in attendance_lines(audit):
            console.print(f"  {line}", highlight=False, markup=False)
    for table in (*_tables(found), *filter(None, [proof_in_terminal(audits)])):
        console.print(table)
    for said in (line(audit) for audit in audits for line in (membership_line, side_channel_line)):
        if said is not None:
            console.print(said, highlight=False, markup=False)
    for each, audit in zip(prepared, audits, strict=True):
        for line in refused_by_name(audit) if each.choice.named else ():
            console.print(line, highlight=False, markup=False)
    written = f"{folder / REPORT}; the same numbers: *.json and *.csv beside it"
    instead = f"{folder / REPORT} stays the earlier one, for every attack was refused; --output writes another"
    console.print(f"report: {instead if kept else written}", highlight=False, markup=False, soft_wrap=True)
    return folder, audits


def check_attacks(audits: Sequence[Audit]) -> None:
    """Look whether any attack ran, and each that did came to its end.

    Raises:
        NotAsConfiguredError: With a line for each that didn't, or a single one where all were refused.
    """
    if audits and all(audit.refused for audit in audits):
        raise NotAsConfiguredError(["no attack ran: each was refused, for the reason that stands with it"])
    failed = [entry for audit in audits for entry in audit.entries if entry["verdict"] == "failed"]
    if failed:
        raise NotAsConfiguredError([f"{e['run']}, round {e['round']}: {e['verdict_text']}" for e in failed])


def write_audits(folder: Path, audits: Sequence[Audit], budget: Budget) -> None:
    """Write what audits found: ``report.html``, and the same numbers as JSON and CSV."""
    make_private(folder)
    found = [entry for each in audits for entry in each.entries]
    curve = [{"noise_multiplier": z, **entry} for each in audits for z, entry in each.noise]
    write_json(folder / "scorecard.json", [*found, *curve])
    write_bytes(folder / "scorecard.csv", as_csv(found).encode())
    for name, text in data_files(audits).items():
        write_bytes(folder / name, text.encode())
    write_report(folder / REPORT, audits, budget)


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A recorded run, read and checked, and what is to be attacked in it.

    Attributes:
        path: Of the run.
        folder: Where its report goes, if nobody says.
        setting: Of the federation, as its auditor sees it.
        config: Of the run; ``None`` for another Flower app.
        metrics: Its rows.
        environment: Where it took place.
        victims: The clients in scope.
        twins: Plain twins of an S-run's clients.
        choice: The attacks.
        controls: Whether plain updates with noise are attacked, too.
        notes: What the command says before it attacks, beside which named attacks don't apply.
        biases: How far guesses of private biases are off.
        labels: How well labels are counted.
        side: What thresholds tell beside the weights.
        judged: What detectors say.
        thresholds: Of spiking layers.
        sums: Who is in each sum.
        unread: Who sent something that isn't of the model, and what, a line each.
        denied: Facts that were taken from the attacker.
    """

    path: Path
    folder: Path
    setting: Setting
    config: Config | None
    metrics: Sequence[dict[str, Any]]
    environment: Mapping[str, Any]
    victims: Sequence[Victim]
    twins: Sequence[Victim]
    choice: Choice
    controls: bool
    notes: Sequence[str]
    biases: Sequence[BiasError]
    labels: Sequence[LabelCounts]
    side: Sequence[SideChannel]
    judged: Sequence[Judged]
    thresholds: Sequence[Threshold]
    sums: Sequence[InSum] = ()
    unread: Sequence[str] = ()
    denied: Collection[str] = ()

    @property
    def choice_notes(self) -> list[str]:
        """A line for each named attack that doesn't apply."""
        return [f"{self.path.name}: {name} {reason}" for name, reason in self.choice.left.items()]


def prepare(
    path: Path, attacks: Sequence[str], scope: Scope, *, controls: bool, side_channel: bool = False
) -> Prepared:
    """Read and check all that an audit of a run needs, before anything is attacked.

    Raises:
        ConfigError: For an unknown attack, or a SOLO run.
        RunFileError: If the folder holds no run, or a file of it is damaged.
        RecordingError: If it holds no recording, or something of that is damaged or missing.
        ThreatModelError: If labels are granted that nobody told.
    """
    check_names(attacks)
    if (path / RECORDING).is_dir() and not (path / CONFIG_FILE).exists():
        if (path.parent / CONFIG_FILE).exists():
            raise RecordingError(f"{path}: the recording of a run; give the folder of the run: {path.parent}")
        raise RecordingError(f"{path}: holds the recording of another Flower app; say what it trains, by --model")
    check_run(path)
    config = read_config(path)
    if not client_side(config).uploads:
        raise ConfigError(f"{path}: in a SOLO run no weight leaves a client, so there is nothing to attack")
    if not config.audit.record and not (path / AUDIT / RECORDING).exists():
        again = f"snnfl run {path / CONFIG_FILE} run.name=NEW audit.record=true"
        raise RecordingError(f"{path}: the run kept no recording of its updates; repeat it with one: {again}")
    config = replace(config, run=replace(config.run, name=path.name))
    metrics, environment = read_metrics(path), read_environment(path)
    if (missing := check_same(environment.get("plugins"), loaded(), versions=False)) is not None:
        raise ConfigError(f"{path}: {missing}")
    work = Workspace(config)
    setting = setting_of(
        work, scope.colluding, differences=scope.differences
    )  # its initial state is taken before anybody loads other weights
    kind = setting.format.kind
    victims = victims_of(setting, path / AUDIT, scope)
    twins = [twin for victim in victims if controls and (twin := plain_twin(victim)) is not None]
    crafted = config.audit.crafted != "none"
    choice = choose(attacks, kind, crafted=crafted, twins=bool(twins))
    return Prepared(
        path=path,
        folder=path / AUDIT,
        setting=setting,
        config=config,
        metrics=metrics,
        environment=environment,
        victims=victims,
        twins=twins,
        choice=choice,
        controls=controls,
        notes=_untold(scope, victims),
        biases=bias_errors(victims),
        labels=label_counts(victims, config.run.seed),
        side=side_channels(victims, config.run.seed) if side_channel else [],
        judged=judge_recording(work, path / AUDIT, sorted(scope.rounds)),
        thresholds=recorded_thresholds(work, path / AUDIT, sorted(scope.rounds)),
        sums=in_sums(setting, path / AUDIT, scope, victims),
        denied=scope.denied,
    )


def _untold(scope: Scope, victims: Sequence[Victim]) -> list[str]:
    """Say who isn't attacked though asked for: whom differences of rounds don't tell from the others."""
    told = {client for victim in victims for client in (victim.members or {victim.partition})}
    if not scope.differences or not (untold := sorted(scope.partitions - told)):
        return []
    return [f"--differences: not told from the others, so not attacked: {', '.join(f'client {c}' for c in untold)}"]


def audit_run(run: Prepared, budget: Budget, progress: Progress, multipliers: Sequence[float] = MULTIPLIERS) -> Audit:
    """Attack one recorded run, and plain updates with noise of these multiples of the clipping norm."""
    kind = run.setting.format.kind
    plain = {"converted": run.twins, "plain": run.victims if run.controls else []}.get(kind, [])
    choice = run.choice
    curve = multipliers if plain and (choice.on_run or choice.on_twins) else ()
    rounds = len({victim.server_round for victim in run.victims})
    total = rounds * (len(choice.on_run) + len(choice.on_twins) + bool(curve))
    task = progress.add_task(run.path.name, total=total, doing="")

    def attack(some: Sequence[Victim], names: Sequence[str]) -> list[Outcome]:
        doing = ""

        def begun(name: str, server_round: int) -> None:
            nonlocal doing
            doing = f"{name}, round {server_round}"
            progress.update(task, doing=doing)

        def watch(iteration: int, iterations: int) -> None:
            progress.update(task, doing=f"{doing}, iteration {iteration} of {iterations}")

        watched = replace(budget, watch=watch)
        return attack_all(run.setting, some, names, watched, begun=begun, done=lambda outcome: progress.advance(task))

    outcomes, on_control = attack(run.victims, choice.on_run), attack(run.twins, choice.on_twins)
    of_plain = plain_twins(run.setting) if kind == "converted" else run.setting
    noisy = {z: noised(plain, z, run.setting.seed) for z in curve}
    together = sorted((victim for each in noisy.values() for victim in each), key=lambda victim: victim.server_round)
    found = attack(together, [NOISE_ATTACK]) if together else []  # at once, for one choice of the prior serves all
    points = [(z, entry) for z, each in noisy.items() for entry in entries(of_plain, outcomes_of(each, found))]
    progress.update(task, doing="")
    asked = tries(run.setting, run.victims, choice.members)
    asking = progress.add_task(f"{run.path.name}, members", total=asked, doing="")
    members = federated_membership(run.setting, run.victims, choice.members, done=lambda: progress.advance(asking))
    return Audit(
        path=run.path,
        setting=run.setting,
        config=run.config,
        metrics=run.metrics,
        environment=run.environment,
        outcomes=outcomes,
        controls=on_control,
        entries=[*entries(run.setting, outcomes, on_control), *entries(of_plain, on_control)],
        best=best_attacks(outcomes, on_control),
        noise=points,
        biases=run.biases,
        labels=run.labels,
        membership=members,
        side=run.side,
        judged=run.judged,
        thresholds=run.thresholds,
        sums=run.sums,
        left=choice.left,
        unread=run.unread,
        denied=run.denied,
        unasked=unasked(run.setting, run.victims, choice.members) if choice.named and not members else {},
    )


def outcomes_of(victims: Sequence[Victim], outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return outcomes with what was found of some of their victims alone, whose noise is no client's training."""
    views, parts = {id(victim.view) for victim in victims}, list[Outcome]()
    for outcome in outcomes:
        found = [finding for finding in outcome.findings if id(finding.victim.view) in views]
        own = tuple(replace(each, result=replace(each.result, explained=True)) for each in found)
        known = own[0].victim.view.knowledge if own else outcome.knowledge
        parts.append(replace(outcome, findings=own, knowledge=known))
    return parts


def plain_twins(setting: Setting) -> Setting:
    """Return what the scorecard calls the plain twins of an S-run's clients."""
    algorithm = setting.algorithm.removeprefix("S-")
    return replace(setting, name=f"{setting.name}, plain twins", algorithm=algorithm, twins=True)


def attack_progress(console: Console) -> Progress:
    """Make the bar that :func:`audit_run` advances; in a log it is lines."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} attacks and controls"),
        TextColumn("{task.fields[doing]}"),
    )
    return BarsOrLines(
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        unit="attacks and controls",
    )


def _tables(found: Sequence[Entry]) -> Iterator[Table]:
    """Show a table per run and round, and below it why attacks were refused or failed, each reason once."""
    for (run, server_round), grouped in groupby(found, key=lambda entry: (entry["run"], entry["round"])):
        group = list(grouped)
        refused = [entry for entry in group if entry["refusal"]]
        by_reason: dict[str, dict[str, None]] = {}  # an ordered set of attacks for each
        for entry in refused:
            by_reason.setdefault(entry["refusal"].removeprefix(f"{entry['attack']}: "), {})[entry["attack"]] = None
        reasons = [f"{', '.join(attacks)}: {reason}" for reason, attacks in by_reason.items()]
        table = Table(title=f"{run}, round {server_round}", caption="\n".join(map(escape, reasons)) or None)
        metrics = judged_metrics(group[0]["kind"])
        short = [metric.title.removesuffix(" in dB") for metric in metrics]
        for name in ("attack", "verdict", "labels", *(f"{name} (guess)" for name in short)):
            table.add_column(name, no_wrap=True)
        for entry in group:
            if entry["value"] is None:
                table.add_row(entry["attack"], entry["verdict"])
                continue
            values = entry["metrics"]
            decided = [n for m, n in zip(metrics, short, strict=True) if entry["against_floor"][m.name] == "better"]
            verdict = f"{entry['verdict']}: {', '.join(decided)}" if decided else entry["verdict"]
            label = f"{values['label_accuracy']['value']:.0%} {entry['label_verdict']}"
            cells = [f"{values[m.name]['value']:{m.form}} ({guess(entry, m)})" for m in metrics]
            table.add_row(entry["attack"], verdict, label, *cells)
        yield table
