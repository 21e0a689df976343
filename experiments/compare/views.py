"""What a study shows: tables and figures over the axes of its matrix and of what its runs measured."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from snnfl.auditing.measures import COMMON, MEASURES
from snnfl.config import ConfigError, nearest

AUDITED = tuple({metric.name: metric for measures in MEASURES.values() for metric in measures.metrics}.values())
"""What is measured of reconstructions, of any kind of data."""

Axes: TypeAlias = Mapping[str, Sequence[str]]
"""Labels by axis of the matrix."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A kind of measurement: axes beside those of the matrix, and values.

    Attributes:
        axes: What one run has several of.
        values: What can be shown.
        needs: What a study must ask for to have it.
        over: What a mean and its deviation are over.
    """

    axes: tuple[str, ...]
    values: tuple[str, ...]
    needs: str = ""
    over: str = "seeds"


SOURCES: Mapping[str, Source] = {
    "rounds": Source(
        axes=("round",),
        values=(
            "accuracy", "server_snn_accuracy", "server_ann_accuracy", "client_ann_accuracy_mean",
            "client_ann_accuracy_std", "client_snn_accuracy_mean", "client_snn_accuracy_std",
            "client_received_accuracy_mean", "client_received_accuracy_std", "client_received_accuracy_weighted",
            "client_received_loss_weighted", "attack_success_snn", "attack_success_ann", "train_loss",
            "bytes_up", "bytes_down", "bytes_total", "seconds_train",
            "seconds_convert", "seconds_client_evaluate", "seconds_exchange", "seconds_aggregate",
            "seconds_server_evaluate", "seconds_round", "seconds_total", "replies", "refused", "failed", "excluded",
            "states_lost", "firing_rate", "synaptic_operations", "multiply_accumulates", "nanojoules",
            "nanojoules_with_memory", "epsilon", "epsilon_empirical",
        ),
    ),
    "lengths": Source(axes=("round", "T"), values=("accuracy_at_T",), needs="evaluation.curve"),
    "detectors": Source(
        axes=("round", "detector"),
        values=("true_positive_rate", "false_positive_rate"),
        needs="detection.detectors",
    ),
    "suspects": Source(
        axes=("round", "detector", "client", "role"),
        values=("detection_score", "threshold_last_but_one", "threshold_last"),
        needs="detection.detectors",
    ),
    "energy": Source(
        axes=("network",), values=("energy", "energy_with_memory", "operations"), needs="the key energy"
    ),
    "attacks": Source(
        axes=("round", "attack", "iterations", "colluding", "differences"),
        values=(
            *(metric.name for metric in AUDITED), *(metric.name for metric in COMMON),
            *(f"floor_{metric.name}" for metric in AUDITED if metric.judged),
            *(f"{measures.metrics[0].name}_gain" for measures in MEASURES.values()),
        ),
        needs="the key audit",
    ),
    "best attacks": Source(
        axes=("round", "iterations", "colluding", "differences"),
        values=("best_attack", "best_attack_gain"),
        needs="the key audit",
    ),
    "biases": Source(
        axes=("round", "client", "guess"),
        values=("bias_distance", "bias_relative_distance", "bias_equal"),
        needs="the key audit",
    ),
    "membership": Source(
        axes=("attack",), values=("auc", "tpr_at_1", "control_auc"), over="targets",
        needs="networks, and run it by snnfl membership",
    ),
    "overfitting": Source(
        axes=(), values=("train_accuracy", "test_accuracy", "gap"), needs="networks, and run it by snnfl membership",
        over="targets",
    ),
    "thresholds": Source(axes=("round", "client", "role", "layer"), values=("threshold",), needs="the key audit"),
}  # fmt: skip
"""``accuracy`` is that of what the server holds: in an S-run its spiking network, else its ANN; of SOLO its clients."""

LAST, AVERAGED = ("round", "iterations", "colluding", "differences"), ("client", "role", "layer")
"""Axes of a run that a view needn't name: of these the last label counts, over those a run is averaged."""

_HIGH = ("accuracy", "accuracy_at_T", "server_snn_accuracy", "server_ann_accuracy", "client_ann_accuracy_mean",
         "client_snn_accuracy_mean", "client_received_accuracy_mean", "client_received_accuracy_weighted",
         "true_positive_rate")  # fmt: skip
_LOW = ("train_loss", "client_received_loss_weighted",
        "false_positive_rate", "energy", "energy_with_memory", "operations", "synaptic_operations",
        "multiply_accumulates", "nanojoules", "nanojoules_with_memory")  # fmt: skip


def better(value: str) -> int:
    """Return 1 where more is better, -1 where less is, 0 where it depends on whose side one is."""
    return 1 if value in _HIGH else -1 if value in _LOW or value.startswith(("bytes", "seconds")) else 0


def is_share(value: str) -> bool:
    """Tell whether a value lies in [0, 1] and is shown in percent."""
    return "accuracy" in value or "attack_success" in value or value.endswith("_rate") or value in _SHARES


_SHARES = (
    "tpr_at_1",
    "gap",
    "identified",
    "identified_by_run",
    "exact_frames",
    "recognised",
    "bias_equal",
    "bias_relative_distance",
)

UNITS = {"energy": "nJ per image", "energy_with_memory": "nJ per image", "operations": "per image", "psnr": "dB",
         "registered_psnr": "dB", "floor_psnr": "dB", "log_spectral": "dB", "psnr_gain": "dB above the best guess",
         **dict.fromkeys(("synaptic_operations", "multiply_accumulates", "nanojoules", "nanojoules_with_memory"),
                         "per sample")}  # fmt: skip


def title_of(value: str) -> str:
    """Name a value with its unit, for an axis."""
    unit = "%" if is_share(value) else "bytes" if value.startswith("bytes") else UNITS.get(value)
    unit = "s" if value.startswith("seconds") else unit
    name = "accuracy at length T" if value == "accuracy_at_T" else value.replace("_", " ")
    return f"{name} ({unit})" if unit else name


@dataclass(frozen=True, kw_only=True)
class View:
    """A table or a figure.

    Attributes:
        title: Above it; of a figure also its file's name.
        value: What is shown.
        source: Where the value comes from: a key of :data:`SOURCES`.
        down: Axes whose labels make a row, or a line of a figure.
        across: Axes whose labels make a column; of a figure its x axis. A value of the same source: a scatter plot.
        where: Labels that count, by axis.
        paper: Published numbers by row and column.
        cited: Where those stand.
    """

    title: str
    value: str
    source: str
    down: tuple[str, ...]
    across: tuple[str, ...]
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    paper: Mapping[tuple[str, str], float] = field(default_factory=dict)
    cited: str = ""

    @property
    def slug(self) -> str:
        """The title as a file's name."""
        return re.sub(r"[^A-Za-z0-9.-]+", "_", self.title).strip("_").lower()

    @property
    def scatter(self) -> bool:
        """Whether the x axis is a value."""
        return bool(self.across) and self.across[0] in SOURCES[self.source].values

    @property
    def over(self) -> str:
        """What a mean and its deviation are over."""
        return SOURCES[self.source].over

    @property
    def percent(self) -> bool:
        """Whether it shows percentages."""
        return is_share(self.value)


def read_tables(given: Any, axes: Axes) -> tuple[View, ...]:
    """Check ``tables``; by default there is one of the accuracy.

    Raises:
        ConfigError: Naming the table and the key.
    """
    return tuple(_read_table(f"tables[{n}]", item, axes) for n, item in enumerate(_list("tables", given, [{}])))


def read_figures(given: Any, axes: Axes) -> tuple[View, ...]:
    """Check ``figures``; by default there is one of the accuracy by round.

    Raises:
        ConfigError: Naming the figure and the key.
    """
    items = _list("figures", given, [{}])
    views = tuple(_read_figure(f"figures[{n}]", item, axes) for n, item in enumerate(items))
    for n, view in enumerate(views):
        if view.slug in [other.slug for other in views[:n]]:
            raise ConfigError(f"figures[{n}].title={view.title}: another figure has it; files are named after titles")
    return views


def _read_table(where: str, given: Any, axes: Axes) -> View:
    item = _mapping(where, given, ("title", "value", "rows", "columns", "where", "paper"))
    value, source = _value(where, item)
    kept = _where(where, item, axes, source)
    across = _axes(f"{where}.columns", item.get("columns"), axes, source, None)
    rest = tuple(axis for axis in _open(axes, kept) if axis not in across)
    down = _axes(f"{where}.rows", item.get("rows"), axes, source, None) or rest or tuple(axes)[:1]
    if "columns" not in item and "rows" in item:
        across = tuple(axis for axis in rest if axis not in down)
    _all_named(where, axes, kept, source, (*down, *across))
    paper, cited = _paper(where, item, down, across, axes)
    return View(
        title=str(item.get("title", value)), value=value, source=source, down=down, across=across, where=kept,
        paper=paper, cited=cited,
    )  # fmt: skip


def _read_figure(where: str, given: Any, axes: Axes) -> View:
    item = _mapping(where, given, ("title", "value", "x", "lines", "where"))
    value, source = _value(where, item)
    kept = _where(where, item, axes, source)
    own = SOURCES[source]
    x = item.get("x", "round" if "round" in own.axes else next(iter(axes)))
    across = (x,) if x in own.values else _axes(f"{where}.x", x, axes, source, None)
    if len(across) != 1:
        raise ConfigError(f"{where}.x={x}: expected one axis")
    rest = tuple(axis for axis in _open(axes, kept) if axis not in across)
    down = _axes(f"{where}.lines", item.get("lines"), axes, source, rest)
    _all_named(where, axes, kept, source, (*down, *across))
    title = item.get("title", f"{value} by {across[0]}")
    return View(title=str(title), value=value, source=source, down=down, across=across, where=kept)


def _value(where: str, item: Mapping[str, Any]) -> tuple[str, str]:
    value = item.get("value", "accuracy")
    for name, source in SOURCES.items():
        if value in source.values:
            return value, name
    known = [value for source in SOURCES.values() for value in source.values]
    raise ConfigError(f"{where}.value={value}: unknown{nearest(str(value), known)}")


def _where(where: str, item: Mapping[str, Any], axes: Axes, source: str) -> dict[str, tuple[str, ...]]:
    kept: dict[str, tuple[str, ...]] = {}
    for axis, labels in _mapping(f"{where}.where", item.get("where", {}), None).items():
        _axes(f"{where}.where", axis, axes, source, None)
        kept[axis] = tuple(map(str, labels if isinstance(labels, list) else [labels]))
        for label in kept[axis]:
            if axis in axes and label not in axes[axis]:
                raise ConfigError(f"{where}.where.{axis}={label}: no such label{nearest(label, list(axes[axis]))}")
    return kept


def _axes(where: str, given: Any, axes: Axes, source: str, default: tuple[str, ...] | None) -> tuple[str, ...]:
    if given is None:
        return default or ()
    names = tuple(map(str, given if isinstance(given, list) else [given]))
    known = [*axes, *SOURCES[source].axes]
    for name in names:
        if name not in known:
            raise ConfigError(f"{where}: {name!r} is no axis of the matrix or of what is shown{nearest(name, known)}")
    return names


def _open(axes: Axes, kept: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return the axes of the matrix that several labels of are shown."""
    return [axis for axis, labels in axes.items() if len(kept.get(axis, labels)) > 1]


def _all_named(
    where: str, axes: Axes, kept: Mapping[str, tuple[str, ...]], source: str, named: tuple[str, ...]
) -> None:
    """Refuse to average what differs in kind."""
    own = [axis for axis in SOURCES[source].axes if axis not in (*LAST, *AVERAGED) and len(kept.get(axis, "ab")) > 1]
    if named and named[-1] in SOURCES[source].values:  # a scatter plot averages nothing
        own = []
    for axis in (*_open(axes, kept), *own):
        if axis not in named:
            raise ConfigError(
                f"{where}: the axis {axis!r} is not shown, and different settings are never averaged; name it, or "
                f"choose by where: {{{axis}: {axes[axis][0] if axis in axes else '...'}}}"
            )


def _paper(
    where: str, item: Mapping[str, Any], down: Sequence[str], across: Sequence[str], axes: Axes
) -> tuple[dict[tuple[str, str], float], str]:
    """Read ``{source: ..., ROW: NUMBER}`` or ``{source: ..., ROW: {COLUMN: NUMBER}}``."""
    given = dict(_mapping(f"{where}.paper", item.get("paper", {}), None))
    cited, numbers = str(given.pop("source", "the paper")), dict[tuple[str, str], float]()
    for row, cells in given.items():
        _known_label(f"{where}.paper", row, down, axes)
        for column, number in (cells if isinstance(cells, dict) else {"": cells}).items():
            if not isinstance(number, int | float):
                raise ConfigError(f"{where}.paper.{row}={number}: expected a number, or numbers by column")
            if bool(across) != (column != ""):
                raise ConfigError(f"{where}.paper.{row}: expected " + ("numbers by column" if across else "one number"))
            _known_label(f"{where}.paper.{row}", column, across, axes)
            numbers[str(row), str(column)] = float(number)
    return numbers, cited


def _known_label(where: str, label: Any, names: Sequence[str], axes: Axes) -> None:
    """Check the label of one axis of the matrix; of what runs measure the labels aren't known before."""
    if len(names) == 1 and names[0] in axes and str(label) not in axes[names[0]]:
        raise ConfigError(f"{where}: {label!r} is no label of {names[0]}{nearest(str(label), list(axes[names[0]]))}")


def _list(where: str, given: Any, default: list[Any]) -> list[Any]:
    if given is None:
        return default
    if not isinstance(given, list):
        raise ConfigError(f"{where}: expected a list of mappings")
    return given


def _mapping(where: str, given: Any, keys: Sequence[str] | None) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ConfigError(f"{where}={given}: expected a mapping" + (f" with {', '.join(keys)}" if keys else ""))
    for key in given:
        if keys is not None and key not in keys:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(str(key), keys)}")
    return {str(key): value for key, value in given.items()}
