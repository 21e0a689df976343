"""``snnfl privatesnn``: synthesise images, convert, encrypt, and measure what was made."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.privatesnn.checking import check_images, check_networks
from experiments.privatesnn.folder import seconds_of, working_in
from experiments.privatesnn.measure import evaluations, measured
from experiments.privatesnn.network import Network, Report, network_of, training_images
from experiments.privatesnn.report import rich_tables, rows_of, sentences, write_results
from experiments.privatesnn.setting import PrivateStudy, Setting
from experiments.privatesnn.stages import convert_network, encrypt_network, synthesise_images
from experiments.privatesnn.study import read_private_study
from experiments.progress import BarsOrLines
from snnfl.files import write_bytes
from snnfl.heap import keep_freed_memory
from snnfl.workspace import Workspace

STAGES = ("synthesize", "convert", "encrypt", "run")


def make_published(
    stage: str,
    path: Path,
    overrides: Sequence[str] = (),
    plugins: Sequence[str | Path] = (),
    *,
    console: Console,
) -> PrivateStudy:
    """Do one stage of every setting of a study, or all of them.

    Args:
        stage: One of :data:`STAGES`.
        path: YAML file of a study, or the folder of a finished run.
        overrides: ``key=value``.
        plugins: Beside those that the file lists.
        console: Shows progress, and what was measured.

    Raises:
        ConfigError: For a mistake, or a stage whose predecessor isn't done.
        FolderInUseError: If another process works there.
        RunFailedError: If training or encryption diverges.
        BrokenOffError: If the system doesn't let it go on.
    """
    study = read_private_study(path, overrides, plugins)
    check_networks(study)
    if stage in ("encrypt", "run"):
        check_images(study)
    keep_freed_memory()
    for setting in study.settings:
        with working_in(setting):
            _do(stage, setting, console)
    if stage == "run":
        _show(study, console)
    return study


def _do(stage: str, setting: Setting, console: Console) -> None:
    if stage == "run" and setting.results.exists() and setting.published.exists():
        return
    network = _network(setting, console)
    todo: dict[str, Callable[[], None]] = {
        "synthesize": lambda: _synthesise(setting, network, console),
        "convert": lambda: convert_network(setting, network),
        "encrypt": lambda: _encrypt(setting, network, console),
    }
    for name, work in todo.items():
        if stage in (name, "run"):
            work()
    if stage == "run":
        with _bar(console, f"{setting.name}: measuring", evaluations(setting), "simulations") as report:
            found = measured(setting, network, report)
        found["stages"] = seconds_of(setting)
        write_bytes(setting.results, json.dumps(found, indent=1).encode())
    else:
        made = {"synthesize": setting.synthetic, "convert": setting.converted, "encrypt": setting.published}[stage]
        console.print(str(made), highlight=False, soft_wrap=True)


def _network(setting: Setting, console: Console) -> Network:
    if setting.run is not None or setting.ann.exists():
        return network_of(setting)
    total = training_images(Workspace(setting.config))
    with _bar(console, f"{setting.name}: training", total, "images") as report:
        return network_of(setting, report)


def _synthesise(setting: Setting, network: Network, console: Console) -> None:
    config = setting.private.synthesis
    with _bar(console, f"{setting.name}: images", config.images * config.iterations, "iterations") as report:
        synthesise_images(setting, network, report)


def _encrypt(setting: Setting, network: Network, console: Console) -> None:
    for config in (None, *setting.variants):
        how = setting.private.encryption if config is None else config
        what = "encrypting" if config is None else f"variant m={how.distillation:g}, {how.images} images"
        with _bar(console, f"{setting.name}: {what}", how.images * how.epochs, "images") as report:
            encrypt_network(setting, network, report, config)


@contextmanager
def _bar(console: Console, title: str, total: int, unit: str) -> Iterator[Report]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    with BarsOrLines(*columns, TimeElapsedColumn(), TimeRemainingColumn(), unit=unit, console=console) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.advance(task, done)


def _show(study: PrivateStudy, console: Console) -> None:
    results = [results_of(setting) for setting in study.settings]
    write_results(study.directory, study.name, results)
    for table in rich_tables(results):
        console.print(table)
    for sentence in sentences(results):
        console.print(sentence, highlight=False, soft_wrap=True)
    for setting in study.settings:
        console.print(f"{setting.name}: published as {setting.published}", highlight=False, soft_wrap=True)
    console.print(f"results: {study.directory}/ (results.csv, tables.md, figures)", highlight=False, soft_wrap=True)


def results_of(setting: Setting) -> dict[str, Any]:
    """Read what was measured of a setting, under its labels: a setting of the same options has others."""
    found: dict[str, Any] = json.loads(setting.results.read_text())
    return {**found, "labels": dict(setting.labels)}


def accuracies_of(setting: Setting) -> list[dict[str, Any]]:
    """Return each accuracy of a setting: of the ANN without a number of steps, of spiking networks at each length."""
    return [
        {
            "setting": row.setting,
            "seed": row.seed,
            "network": row.network,
            "steps": int(row.at[2:]) if row.at else None,
            "accuracy": row.value,
        }
        for row in rows_of(results_of(setting))
        if row.quantity == "accuracy" and not row.at.startswith("images=")
    ]
