"""A study's YAML file: which runs, which table.

.. code-block:: yaml

    name: table1_iid
    base: ../../conf/snfl_fashion_mnist.yaml        # beside this file; options replace its own
    options: {run.rounds: 5, data.clients: 10}
    matrix:                                         # every combination is a cell
      algorithm:                                    # an axis: label -> options
        FedAvg: {strategy.name: fedavg, strategy.spiking: false}
        S-FedAvg: {strategy.name: fedavg}
      conversion.steps: [32, 64]                    # or an option's values, which label themselves
    seeds: [0, 1, 2]
    table: {rows: algorithm, columns: conversion.steps, value: accuracy}
    paper: {source: SNFL Table 1, S-FedAvg / 32: 0.75}
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from snnfl.config import Config, ConfigError, compose, nearest, to_yaml
from snnfl.workspace import Workspace
from strategies.server_app import build_strategy

KEYS = ("name", "base", "options", "matrix", "seeds", "table", "paper")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a study.

    Attributes:
        labels: Its place in the matrix: label by axis.
        seed: Of the run.
        config: Resolved; its name holds a hash of all that decides the result, so a changed one is another cell.
    """

    labels: Mapping[str, str]
    seed: int
    config: Config

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
        rows: Axis that the table's rows are.
        columns: Axis of its columns, ``None`` for one column.
        value: ``accuracy`` or a column of ``metrics.jsonl``, of the last round.
        paper: Published values by ``row / column``.
        source: Where those stand.
    """

    name: str
    cells: Sequence[Cell]
    rows: str
    columns: str | None
    value: str
    paper: Mapping[str, float]
    source: str

    @property
    def directory(self) -> Path:
        """Folder of the study: its runs, tables, figures and report."""
        return Path(self.cells[0].config.run.directory)


def read_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read and check a study: a cell that cannot run is an error with its name, before anything runs.

    Args:
        path: YAML file.
        overrides: ``key=value`` for every cell.

    Raises:
        ConfigError: Naming the file, the key or the cell.
    """
    content = _read(path)
    axes = {axis: _labelled(path, axis, values) for axis, values in content.get("matrix", {}).items()}
    if not axes:
        raise ConfigError(f"{path}: matrix is empty; give at least one axis, such as algorithm")
    seeds = content.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(isinstance(seed, int) for seed in seeds):
        raise ConfigError(f"{path}: seeds={seeds}: expected a list of whole numbers")
    name, base = content.get("name", path.stem), content.get("base")
    options = _assignments(content.get("options", {}))
    cells = [
        _cell(path, name, None if base is None else path.parent / base, [*options, *overrides], labels, axes, seed)
        for labels in (dict(zip(axes, choice, strict=True)) for choice in itertools.product(*axes.values()))
        for seed in seeds
    ]
    table, paper = content.get("table", {}), dict(content.get("paper", {}))
    rows = table.get("rows", next(iter(axes)))
    columns = table.get("columns", next((axis for axis in axes if axis != rows), None))
    for axis in filter(None, (rows, columns)):
        if axis not in axes:
            raise ConfigError(f"{path}: table: {axis!r} is no axis of the matrix{nearest(str(axis), list(axes))}")
    source = str(paper.pop("source", "paper"))
    return Study(
        name=name,
        cells=cells,
        rows=rows,
        columns=columns,
        value=table.get("value", "accuracy"),
        paper=paper,
        source=source,
    )


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{path}: no such study")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # YAML, encoding and permission errors alike are the file's fault
        raise ConfigError(f"{path}: cannot be read as YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping with {', '.join(KEYS)}")
    for key in content:
        if key not in KEYS:
            raise ConfigError(f"{path}: unknown key {key!r}{nearest(str(key), KEYS)}")
    return {str(key): value for key, value in content.items()}


def _labelled(path: Path, axis: str, values: Any) -> dict[str, list[str]]:
    """Return an axis as assignments by label."""
    if isinstance(values, dict) and all(isinstance(options, dict) for options in values.values()):
        return {str(label): _assignments(options) for label, options in values.items()}
    if isinstance(values, list) and values:
        return {str(value): _assignments({axis: value}) for value in values}
    raise ConfigError(f"{path}: matrix.{axis}: expected a list of values, or options by label")


def _assignments(options: Mapping[str, Any]) -> list[str]:
    return [f"{key}={'null' if value is None else value}" for key, value in options.items()]


def _cell(
    path: Path,
    study: str,
    base: Path | None,
    options: Sequence[str],
    labels: Mapping[str, str],
    axes: Mapping[str, Mapping[str, list[str]]],
    seed: int,
) -> Cell:
    chosen = [assignment for axis, label in labels.items() for assignment in axes[axis][label]]
    here = Cell(labels=labels, seed=seed, config=Config())
    try:
        config = compose(base, [*options, *chosen, f"run.seed={seed}"])
        build_strategy(Workspace(config))  # what only the data and the model can tell
    except ConfigError as error:
        raise ConfigError(f"{path}: cell {here.name}: {error}") from None
    plain = replace(config, run=replace(config.run, name="cell", directory="runs", overwrite=False, resume=False))
    digest = hashlib.sha256(to_yaml(plain).encode()).hexdigest()[:10]
    slug = re.sub(r"[^A-Za-z0-9.-]+", "_", "-".join(labels.values()))
    run = replace(
        config.run, name=f"{slug}-{seed}-{digest}", directory=str(Path(config.run.directory) / study), resume=True
    )
    return replace(here, config=replace(config, run=run))
