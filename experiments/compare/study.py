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
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from experiments.compare.extras import NOTHING, Extras, read_extras
from experiments.compare.views import SOURCES, View, read_figures, read_tables
from snnfl.auditing.suite import applicable
from snnfl.config import Config, ConfigError, nearest, to_yaml, update_kind, validate
from snnfl.plugins import Plugin, load_installed, load_listed, resolve, used
from snnfl.workspace import Workspace
from strategies.server_app import build_strategy
from strategies.tracking import find_tracker

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
    study = Study(
        name=str(content.get("name", path.stem)),
        cells=tuple(_cells(path, content, axes, _seeds(path, content), extras, overrides, [*own, *plugins])),
        tables=tables,
        figures=figures,
    )
    _check_views(path, study, content)
    return study


def _cells(
    path: Path,
    content: Mapping[str, Any],
    axes: Mapping[str, Mapping[str, list[str]]],
    seeds: Sequence[int],
    extras: Extras,
    overrides: Sequence[str],
    plugins: Sequence[str | Path],
) -> Sequence[Cell]:
    base, name = content.get("base"), str(content.get("name", path.stem))
    options = [*assignments_of(content.get("options", {})), *overrides]
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


def _seeds(path: Path, content: Mapping[str, Any]) -> list[int]:
    seeds = content.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(isinstance(seed, int) for seed in seeds):
        raise ConfigError(f"{path}: seeds={seeds}: expected a list of whole numbers")
    return list(dict.fromkeys(seeds))


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
    if not path.is_file():
        raise ConfigError(f"{path}: no such study")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # YAML, encoding and permission errors alike are the file's fault
        raise ConfigError(f"{path}: cannot be read as YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping with {', '.join(keys)}")
    for key in content:
        if key not in keys:
            raise ConfigError(f"{path}: unknown key {key!r}{nearest(str(key), keys)}")
    return {str(key): value for key, value in content.items()}


def labelled(path: Path, axis: str, values: Any) -> dict[str, list[str]]:
    """Return an axis as assignments by label."""
    if isinstance(values, dict) and values and all(isinstance(options, dict) for options in values.values()):
        return {str(label): assignments_of(options) for label, options in values.items()}
    if isinstance(values, list) and values:
        return {str(value): assignments_of({axis: value}) for value in values}
    raise ConfigError(f"{path}: matrix.{axis}: expected a list of values, or options by label")


def assignments_of(options: Mapping[str, Any]) -> list[str]:
    """Return options as ``key=value`` each."""
    return [f"{key}={'null' if value is None else value}" for key, value in options.items()]
