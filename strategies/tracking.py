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

import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from snnfl.config import Config, ConfigError
from snnfl.registry import Registry
from strategies.run_directory import TENSORBOARD

logger = logging.getLogger(__name__)

Told: TypeAlias = Callable[[Mapping[str, Any]], object]
"""Is told each round's row of ``metrics.jsonl``, right before that is written."""

Track: TypeAlias = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Tells a tracker a row; returns the column ``tracking``: its name, and why it failed or ``None``."""

Open: TypeAlias = Callable[[Config, Path, int], Told]
"""Takes the configuration, the run's folder and the first round that it will be told: a resumed run's isn't 1."""


@dataclass(frozen=True, kw_only=True)
class Tracker:
    """A registered tracker.

    Attributes:
        name: In ``run.tracking``.
        package: What must be installed.
        extra: The extra of snnfl that installs it, if one does.
        function: The tracker itself.
    """

    name: str
    package: str
    extra: str | None
    function: Open

    def open(self, config: Config, folder: Path, first_round: int) -> Track:
        """Start tracking a run. Whatever a tracker does afterwards, the run goes on: a failure is a line in the log.

        Raises:
            ConfigError: If it doesn't start, or returns nothing that could be told a row.
        """
        try:
            told = self.function(config, folder, first_round)
        except Exception as error:  # of code that anybody may have written
            raise ConfigError(f"run.tracking={self.name}: {_named(error)}") from error
        if not callable(told):
            raise ConfigError(
                f"run.tracking={self.name}: expected a function that is told each row, found {type(told).__name__}"
            )

        def guarded(row: Mapping[str, Any]) -> dict[str, Any]:
            try:
                told(row)
            except Exception as error:
                message = "round %d is not tracked: run.tracking=%s: %s; metrics.jsonl has it"
                logger.warning(message, row["round"], self.name, _named(error))
                return {"name": self.name, "failed": _named(error)}
            return {"name": self.name, "failed": None}

        return guarded


TRACKERS = Registry[Tracker]("tracker", "run.tracking")


def register(name: str, *, package: str, extra: str | None = None) -> Callable[[Open], Open]:
    """Make the decorated function the tracker ``name``.

    Raises:
        ValueError: If the name is taken.
    """

    def decorate(function: Open) -> Open:
        tracker = Tracker(name=name, package=package, extra=extra, function=function)
        TRACKERS.add(name, tracker, home=function.__module__)
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
    tracker = TRACKERS.find(name)
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


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@register("tensorboard", package="tensorboard", extra="tensorboard")
def tensorboard(config: Config, folder: Path, first_round: int) -> Told:
    """Write scalars to ``tensorboard/`` of the run's folder: ``tensorboard --logdir runs``.

    Without TensorBoard's own writer, whose thread prints a traceback when the disk is full.
    """
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    path = folder / TENSORBOARD
    path.mkdir(exist_ok=True)
    file = path / f"events.out.tfevents.{time.time():010.0f}.{os.getpid()}"  # readers take files by name

    def write(**event: Any) -> None:
        size = file.stat().st_size if file.exists() else 0
        try:
            with file.open("ab") as opened:
                RecordWriter(opened).write(Event(wall_time=time.time(), **event).SerializeToString())
        except OSError:
            with suppress(OSError):  # a part of a record would hide those after it
                os.truncate(file, size)
            raise

    write(file_version="brain.Event:2")
    # Rounds that a killed run had told but not completed are told anew.
    write(step=first_round, session_log=SessionLog(status=SessionLog.START))

    def told(row: Mapping[str, Any]) -> None:
        scalars = {name: value for name, value in numbers(row).items() if name != "round"}
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        write(step=row["round"], summary=Summary(value=values))

    return told
