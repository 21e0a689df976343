"""``snnfl privatesnn``: synthesise images, convert, encrypt, and measure what was made."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.ending import RunFailedError, keeping
from experiments.privatesnn.measure import evaluations, measured
from experiments.privatesnn.network import Network, Report, network_of, run_file, training_images
from experiments.privatesnn.report import rich_tables, sentences, write_results
from experiments.privatesnn.stages import convert_network, encrypt_network, synthesise_images
from experiments.privatesnn.study import PrivateStudy, Setting, read_private_study
from experiments.progress import BarsOrLines
from snnfl.config import ConfigError, to_yaml
from snnfl.files import write_bytes
from snnfl.heap import keep_freed_memory
from snnfl.training import TrainingDivergedError
from snnfl.workspace import Workspace
from strategies.lock import locked

STAGES = ("synthesize", "convert", "encrypt", "run")
SECONDS, OPTIONS = "seconds.json", "privatesnn.json"


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
    keep_freed_memory()
    for setting in study.settings:
        setting.path.mkdir(parents=True, exist_ok=True)
        with locked(setting.path), keeping(lambda: "what is complete is kept; the same command goes on"):
            write_bytes(setting.path / "config.yaml", to_yaml(setting.config).encode())
            _check_options(setting)
            try:
                _do(stage, setting, console)
            except TrainingDivergedError as error:
                raise RunFailedError(f"{setting.name}: {error}") from None
    if stage == "run":
        _show(study, console)
    return study


def _check_options(setting: Setting) -> None:
    """Write down which network is published and how; refuse to mix it with what was made of the same run otherwise.

    Raises:
        ConfigError: Naming the first option that differs, or that the run was played again.
    """
    file, asked = setting.path / OPTIONS, json.loads(json.dumps(asdict(setting.private)))
    network = None if setting.run is None else hashlib.sha256(run_file(setting.run).read_bytes()).hexdigest()
    if not file.exists():
        write_bytes(file, json.dumps({**asked, "network": network}, indent=1).encode())
        return
    made = json.loads(file.read_text())
    if made["network"] != network:
        raise ConfigError(f"{setting.path}: it was made of another network, for the run was played again; delete it")
    for section, options in asked.items():
        for key, value in options.items():
            if made[section][key] != value:
                raise ConfigError(
                    f"{section}.{key}={value}: {setting.path} was made with {made[section][key]}; give that, or delete "
                    "the folder"
                )


def _do(stage: str, setting: Setting, console: Console) -> None:
    if stage == "run" and setting.results.exists():
        return
    network = _network(setting, console)
    todo: dict[str, Callable[[], None]] = {
        "synthesize": lambda: _synthesise(setting, network, console),
        "convert": lambda: convert_network(setting, network),
        "encrypt": lambda: _encrypt(setting, network, console),
    }
    for name, work in todo.items():
        if stage in (name, "run"):
            with _timed(setting, name):
                work()
    if stage == "run":
        with _bar(console, f"{setting.name}: measuring", evaluations(setting), "simulations") as report:
            found = measured(setting, network, report)
        found["stages"] = _seconds(setting)
        write_bytes(setting.results, json.dumps(found, indent=1).encode())
    else:
        console.print(f"{setting.path}/", highlight=False, soft_wrap=True)


def _network(setting: Setting, console: Console) -> Network:
    if setting.run is not None or setting.ann.exists():
        return network_of(setting)
    total = training_images(Workspace(setting.config))
    with _timed(setting, "train"), _bar(console, f"{setting.name}: training", total, "images") as report:
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


@contextmanager
def _timed(setting: Setting, stage: str) -> Iterator[None]:
    """Add up the seconds of a stage, over all the times that it was called."""
    start, begun = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        found = _seconds(setting)
        before = found.get(stage, {"seconds": 0.0, "processor": 0.0})
        found[stage] = {
            "seconds": before["seconds"] + time.perf_counter() - start,
            "processor": before["processor"] + time.process_time() - begun,
        }
        write_bytes(setting.path / SECONDS, json.dumps(found).encode())


def _seconds(setting: Setting) -> dict[str, dict[str, float]]:
    file = setting.path / SECONDS
    found: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.exists() else {}
    return found


def _show(study: PrivateStudy, console: Console) -> None:
    results: list[dict[str, Any]] = [json.loads(setting.results.read_text()) for setting in study.settings]
    write_results(study.directory, study.name, results)
    for table in rich_tables(results):
        console.print(table)
    for sentence in sentences(results):
        console.print(sentence, highlight=False, soft_wrap=True)
    console.print(f"results: {study.directory}/ (results.csv, tables.md, figures)", highlight=False)
