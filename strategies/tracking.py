"""Trackers by name: who else is told each round, beside ``metrics.jsonl``. A function with one decorator is a tracker.

.. code-block:: python

    from strategies.tracking import numbers, register

    @register("wandb", package="wandb")
    def wandb(config, folder, first_round):
        run = wandb_library.init(project="snnfl", name=config.run.name, dir=folder)
        return lambda row: run.log(numbers(row), step=row["round"])

and then ``run.tracking=wandb``, in a process that has imported this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from snnfl.config import Config, ConfigError, nearest
from strategies.run_directory import TENSORBOARD

Told: TypeAlias = Callable[[Mapping[str, Any]], object]
"""Is told each round's row of ``metrics.jsonl``, when that is on the disk."""

Open: TypeAlias = Callable[[Config, Path, int], Told]
"""Takes the configuration, the run's folder and the first round that it will be told: a resumed run's isn't 1."""


@dataclass(frozen=True, kw_only=True)
class Tracker:
    """A registered tracker.

    Attributes:
        name: In ``run.tracking``.
        package: What must be installed.
        extra: The extra of snnfl that installs it, if one does.
        open: The tracker itself.
    """

    name: str
    package: str
    extra: str | None
    open: Open


_TRACKERS: dict[str, Tracker] = {}


def register(name: str, *, package: str, extra: str | None = None) -> Callable[[Open], Open]:
    """Make the decorated function the tracker ``name``.

    Raises:
        ValueError: If the name is taken.
    """

    def decorate(function: Open) -> Open:
        if name in _TRACKERS:
            raise ValueError(f"tracker {name!r} is already registered; choose another name")
        _TRACKERS[name] = Tracker(name=name, package=package, extra=extra, open=function)
        return function

    return decorate


def find_tracker(config: Config) -> Tracker | None:
    """Return the tracker that a configuration names, ``None`` if it names none.

    Raises:
        ConfigError: For an unknown name, or a package that isn't installed.
    """
    name = config.run.tracking
    if name is None:
        return None
    if name not in _TRACKERS:
        raise ConfigError(f"run.tracking={name}: unknown tracker{nearest(name, list(_TRACKERS))}")
    tracker = _TRACKERS[name]
    if find_spec(tracker.package) is None:
        what = tracker.package if tracker.extra is None else f"snnfl[{tracker.extra}]"
        raise ConfigError(f"run.tracking={name}: {tracker.package} is not installed; type: pip install '{what}'")
    return tracker


def numbers(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers of a row by name, those of a mapping as ``name/key``.

    >>> numbers({"round": 3, "server_snn_accuracy": None, "server_snn_accuracy_at": {"8": 0.5}, "aggregated": True})
    {'round': 3.0, 'server_snn_accuracy_at/8': 0.5}
    """
    found: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + key] = float(value)
    return found


@register("tensorboard", package="tensorboard", extra="tensorboard")
def tensorboard(config: Config, folder: Path, first_round: int) -> Told:
    """Write scalars to ``tensorboard/`` of the run's folder: ``tensorboard --logdir runs``."""
    from torch.utils.tensorboard import SummaryWriter

    # Rounds that a killed run had told but not completed are told anew.
    writer = SummaryWriter(folder / TENSORBOARD, purge_step=first_round)

    def told(row: Mapping[str, Any]) -> None:
        for name, value in numbers(row).items():
            if name != "round":
                writer.add_scalar(name, value, row["round"])
        writer.flush()

    return told
