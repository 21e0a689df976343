"""A study's YAML file: which runs, and what is shown of them.

.. code-block:: yaml

    name: table1_iid
    base: ../../conf/snfl_fashion_mnist.yaml        # beside this file; options replace its own
    options: {run.rounds: 5, training.epochs: 1}
    matrix:                                         # every combination is a cell
      algorithm:                                    # an axis: label -> options
        FedAvg: {strategy.name: fedavg, strategy.spiking: false}
        S-FedAvg: {strategy.name: fedavg}
      data.clients: [5, 10]                         # or an option's values, which label themselves
    seeds: [0, 1, 2]
    tables:
      - {rows: algorithm, columns: data.clients, paper: {source: SNFL Table 1, S-FedAvg: {10: 0.953}}}
    figures:
      - {x: round}
      - {x: data.clients}
    energy: {images: 64}                            # of each S-cell's final network
    audit: {attacks: [snn_naive, dlg], rounds: [1]}  # of each cell with audit.record=true
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments.compare.extras import NOTHING, Extras, read_extras
from experiments.compare.views import SOURCES, View, read_figures, read_tables
from snnfl.auditing.suite import applicable
from snnfl.config import Config, ConfigError, nearest, options, to_yaml, update_kind, validate
from snnfl.config.reading import read_yaml
from snnfl.plugins import Plugin, load_installed, load_listed, resolve, used
from snnfl.workspace import Workspace
from strategies.server_app import build_strategy
from strategies.tracking import find_tracker

OWN = {
    "run.seed": "list seeds under the key seeds",
    "run.name": "the study is called by the key name",
    "run.resume": "a cell that was broken off goes on by itself",
    "run.overwrite": "delete the folder of a cell to run it anew",
}
"""Options that every cell has from the study, and where to say what is meant."""

KEYS = ("name", "plugins", "base", "options", "matrix", "seeds", "tables", "figures", "energy", "audit")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a study.

    Attributes:
        labels: Its place in the matrix: label by axis.
        seed: Of the run.
        config: Resolved; its name holds a hash of all that decides the result, so a changed one is another cell.
        extras: What is measured when it is finished.
        plugins: That all this is made with.
    """

    labels: Mapping[str, str]
    seed: int
    config: Config
    extras: Extras = field(default=NOTHING)
    plugins: Sequence[Plugin] = ()

    @property
    def name(self) -> str:
        """For people: labels and seed."""
        return ", ".join([*(f"{axis}={label}" for axis, label in self.labels.items()), f"seed={self.seed}"])

    @property
    def path(self) -> Path:
        """Folder of the run."""
        return Path(self.config.run.directory) / self.config.run.name


@dataclass(frozen=True, kw_only=True)
class Study:
    """A checked study.

    Attributes:
        name: Its folder below ``runs/``.
        cells: In the order of the matrix, seeds last.
        tables: To write.
        figures: To draw.
    """

    name: str
    cells: Sequence[Cell]
    tables: Sequence[View]
    figures: Sequence[View]

    @property
    def directory(self) -> Path:
        """Folder of the study: its runs, tables, figures and report."""
        return Path(self.cells[0].config.run.directory)

    @property
    def axes(self) -> dict[str, list[str]]:
        """The labels of each axis of the matrix, in their order."""
        return {axis: list(dict.fromkeys(cell.labels[axis] for cell in self.cells)) for axis in self.cells[0].labels}


def read_study(path: Path, overrides: Sequence[str] = (), plugins: Sequence[str | Path] = ()) -> Study:
    """Read and check a study: a cell that cannot run is an error with its name, before anything runs.

    Args:
        path: YAML file.
        overrides: ``key=value`` for every cell.
        plugins: Beside those that the file lists, relative to the current folder.

    Raises:
        ConfigError: Naming the file, the key or the cell.
    """
    content = read_file(path, KEYS)
    load_installed()
    try:
        own = [plugin.path or plugin.name for plugin in load_listed(content.get("plugins", ()), path.parent)]
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    load_listed([*plugins], None)
    matrix = content.get("matrix")
    if not isinstance(matrix, dict) or not matrix:
        raise ConfigError(f"{path}: matrix is empty; give at least one axis, such as algorithm")
    axes = {str(axis): labelled(path, str(axis), values) for axis, values in matrix.items()}
    labels = {axis: list(chosen) for axis, chosen in axes.items()}
    try:
        extras = read_extras(content.get("energy"), content.get("audit"))
        tables, figures = read_tables(content.get("tables"), labels), read_figures(content.get("figures"), labels)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    content = {**content, "name": name_of(path, content)}
    with _each_line_once():
        cells = tuple(_cells(path, content, axes, seeds_of(path, content), extras, overrides, [*own, *plugins]))
    study = Study(name=content["name"], cells=cells, tables=tables, figures=figures)
    _check_different(path, study.cells)
    _check_views(path, study, content)
    return study


class _Once(logging.Handler):
    """Hands each line on once: what a run warns of, all cells of a study would."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if (line := record.getMessage()) not in self.said:
            self.said.add(line)
            logging.getLogger().callHandlers(record)


@contextmanager
def _each_line_once() -> Iterator[None]:
    logger, once = logging.getLogger("strategies"), _Once()
    logger.addHandler(once)
    propagated, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.propagate = propagated
        logger.removeHandler(once)


def name_of(path: Path, content: Mapping[str, Any]) -> str:
    """Return the name of a study, which its folder in ``run.directory`` has: by default that of its file.

    Raises:
        ConfigError: If no folder can have it.
    """
    name = content.get("name", path.stem)
    if not re.fullmatch(r"[^/\\\x00]+", str(name or "")) or str(name) in (".", ".."):
        raise ConfigError(f"{path}: name={name}: expected a plain folder name, without '/'")
    return str(name)


def seeds_of(path: Path, content: Mapping[str, Any]) -> list[int]:
    """Return the seeds of a study, each once.

    Raises:
        ConfigError: If they are no list of whole numbers, or one is given twice.
    """
    seeds = content.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise ConfigError(f"{path}: seeds={seeds}: expected a list of whole numbers, such as [0, 1, 2]")
    _check_unique(path, "seeds", [str(seed) for seed in seeds])
    return seeds


def _cells(
    path: Path,
    content: Mapping[str, Any],
    axes: Mapping[str, Mapping[str, list[str]]],
    seeds: Sequence[int],
    extras: Extras,
    overrides: Sequence[str],
    plugins: Sequence[str | Path],
) -> Sequence[Cell]:
    base, name = content.get("base"), str(content["name"])
    options = [*assignments_of(path, "options", content.get("options", {})), *overrides]
    of_axes = [each for axis in axes.values() for given in axis.values() for each in given]
    _check_own(path, [*options, *of_axes])
    for override in overrides:
        if override.partition("=")[0] in {each.partition("=")[0] for each in of_axes}:
            raise ConfigError(f"{path}: {override}: the matrix sets this option; change it there")
    cells = []
    for choice in itertools.product(*axes.values()):
        labels = dict(zip(axes, choice, strict=True))
        chosen = [assignment for axis, label in labels.items() for assignment in axes[axis][label]]
        for seed in seeds:
            cell = Cell(labels=labels, seed=seed, config=Config())
            try:
                file = None if base is None else path.parent / str(base)
                config = resolve(file, [*options, *chosen, f"run.seed={seed}"], plugins)
                measured = extras.of(config)
                config = _placed(name, config, measured, labels, seed)
                cells.append(replace(cell, config=config, extras=measured, plugins=_plugins(config, measured)))
            except ConfigError as error:
                raise ConfigError(f"{path}: cell {cell.name}: {error}") from None
    return cells


def _plugins(config: Config, extras: Extras) -> Sequence[Plugin]:
    """Return what a cell is made with; an audit by all attacks is made with all installed ones that register any."""
    attacks = extras.audit.attacks if extras.audit else ()
    named = used(config, attacks)
    if extras.audit is None or attacks:
        return named
    every = used(config, applicable(update_kind(config)))
    return tuple(plugin for plugin in every if plugin.installed or plugin in named)


def _placed(study: str, config: Config, extras: Extras, labels: Mapping[str, str], seed: int) -> Config:
    """Check the configuration of a cell, and give it its folder."""
    if config.engine.name != "in_process":
        raise ConfigError(f"engine.name={config.engine.name}: a study's cells run in process; leave it out")
    find_tracker(config)
    kept = replace(config.run, name="cell", directory="runs", overwrite=False, resume=False, tracking=None)
    plain = replace(config, run=kept)
    decides = to_yaml(plain) + "".join(f"{plugin.name} {plugin.version}\n" for plugin in _plugins(plain, extras))
    digest = hashlib.sha256(decides.encode()).hexdigest()[:10]
    slug = re.sub(r"[^A-Za-z0-9.-]+", "_", "-".join(labels.values()))
    run = replace(
        config.run, name=f"{slug}-{seed}-{digest}", directory=str(Path(config.run.directory) / study), resume=True
    )
    config = replace(config, run=run)
    validate(config)
    build_strategy(Workspace(config))  # what only the data and the model can tell
    return config


def _check_different(path: Path, cells: Sequence[Cell]) -> None:
    """Refuse two settings that have the same options."""
    earlier: dict[Config, Cell] = {}
    for cell in cells:
        config = replace(cell.config, run=replace(cell.config.run, name="cell"))
        if config in earlier:
            both = f"{earlier[config].name} and {cell.name}"
            raise ConfigError(f"{path}: {both} are one and the same run; leave one out, or give it other options")
        earlier[config] = cell


def _check_views(path: Path, study: Study, content: Mapping[str, Any]) -> None:
    """Refuse a table or figure of what no cell will measure."""
    has = {
        "evaluation.curve": any(cell.config.evaluation.curve for cell in study.cells),
        "detection.detectors": any(cell.config.detection.detectors for cell in study.cells),
        "the key energy": "energy" in content,
        "the key audit": "audit" in content,
    }
    for view in (*study.tables, *study.figures):
        needs = SOURCES[view.source].needs
        if needs and not has.get(needs, False):
            raise ConfigError(f"{path}: {view.title}: no cell measures {view.value}; set {needs}")
    if "audit" in content and not any(cell.extras.audit for cell in study.cells):
        raise ConfigError(
            f"{path}: audit: no cell records what its server sees; set options: {{audit.record: true, "
            "audit.ground_truth: true}"
        )


def read_file(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Read a study's file, and check its keys.

    Raises:
        ConfigError: Naming the file, and the key if one is unknown.
    """
    content = read_yaml(path, f"the keys of a study, such as matrix and {'seeds' if 'seeds' in keys else 'attacks'}")
    for key in content:
        if key not in keys:
            known = {name.partition(".")[0] for name, _, _ in options()}
            other = f"; a configuration is run by: snnfl run {path}" if key in known else nearest(str(key), keys)
            raise ConfigError(f"{path}: unknown key {key!r}{other}")
    return content


def labelled(path: Path, axis: str, values: Any, own: Sequence[str] = ()) -> dict[str, list[str]]:
    """Return an axis as assignments by label; ``own`` are options beside those of a run."""
    where = f"matrix.{axis}"
    if isinstance(values, dict) and values and all(isinstance(options, dict) for options in values.values()):
        _check_unique(path, where, [str(label) for label in values])
        return {str(label): assignments_of(path, f"{where}.{label}", options) for label, options in values.items()}
    if isinstance(values, list) and values:
        known = [*own, *(name for name, _, _ in options())]
        if axis not in known:
            hint = nearest(axis, known, listing=False)
            way = f"options by label, such as {axis}: {{{values[0]}: {{strategy.name: fedavg}}}}"
            raise ConfigError(f"{path}: {where}: {axis!r} is no option, so it needs {way}{hint}")
        _check_unique(path, where, [str(value) for value in values])
        return {str(value): assignments_of(path, where, {axis: value}) for value in values}
    raise ConfigError(f"{path}: {where}: expected a list of values, or options by label")


def _check_unique(path: Path, where: str, labels: Sequence[str]) -> None:
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"{path}: {where}: {label} is given twice; each counts once")


def assignments_of(path: Path, where: str, options: Any) -> list[str]:
    """Return options as ``key=value`` each.

    Raises:
        ConfigError: Naming the place in the file that holds none.
    """
    if not isinstance(options, dict):
        raise ConfigError(f"{path}: {where}: expected options such as {{run.rounds: 5}}, found {options}")
    return [f"{key}={'null' if value is None else value}" for key, value in options.items()]


def _check_own(path: Path, given: Sequence[str]) -> None:
    """Refuse options that the study sets itself in every cell."""
    for key, way in OWN.items():
        if any(each.partition("=")[0] == key for each in given):
            raise ConfigError(f"{path}: {key} is the study's own in every cell; {way}")
