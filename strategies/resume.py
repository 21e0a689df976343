"""Where a run that ended early goes on, whether it may, and what is kept of one that was broken off."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from snnfl.checksummed import round_files
from snnfl.config import Config, ConfigError, options, value_of
from snnfl.plugins import check_same, used
from strategies.checkpoint import Checkpoint, intact_checkpoints
from strategies.run_directory import (
    ANN_FILE,
    CHECKPOINTS,
    CONFIG_FILE,
    SNN_FILE,
    RunFileError,
    check_places,
    holds_results,
    read_config,
    read_environment,
    read_metrics,
    run_path,
)

logger = logging.getLogger(__name__)

MAY_DIFFER = frozenset(
    {
        "run.name",
        "run.directory",
        "run.overwrite",
        "run.resume",
        "run.rounds",
        "run.keep_checkpoints",
        "run.tracking",
        "data.root",
    }
) | {key for key, _, _ in options() if key.startswith("engine.")}
"""Options that decide where a run takes place, where things lie, how far it goes and who is told, but no weight."""


def require_run(config: Config) -> None:
    """Look whether there is a run to go on with.

    Raises:
        ConfigError: If not, with the names of runs that are there; a new run is never begun in the place of one that
            was meant to go on.
        RunFileError: If there is one whose configuration is missing, unless ``run.overwrite`` is on.
    """
    path = run_path(config)
    if (path / CONFIG_FILE).exists():
        return
    if holds_results(path):
        if config.run.overwrite:
            return
        raise RunFileError(f"{path / CONFIG_FILE} is missing; put it back, or set run.overwrite=true to start anew")
    there = _runs(path.parent)
    near = difflib.get_close_matches(config.run.name, there, n=3, cutoff=0.4) or there[:3]
    known = f"; there are {', '.join(near)}{' and others' if len(there) > len(near) else ''}" if near else ""
    raise ConfigError(
        f"run.resume=true: there is no run {config.run.name} in {path.parent}{known}; without --resume it begins"
    )


def check_run(path: Path) -> None:
    """Look whether the files of a run are whole, as far as it needs them to go on or to be shown.

    Raises:
        RunFileError: Naming the first that isn't.
    """
    check_places(path)
    read_config(path)
    read_environment(path)
    try:
        read_metrics(path, max(round_files(path / CHECKPOINTS), default=0))
    except RunFileError:
        if _last_complete(path) is None:
            raise


def _last_complete(path: Path) -> Checkpoint | None:
    """Return the newest intact checkpoint whose rounds' rows are there; ``None`` without any checkpoint.

    Raises:
        RunFileError: If rows are missing or damaged that were on the disk, so that no power cut has taken them.
    """
    lost: RunFileError | None = None
    for checkpoint in intact_checkpoints(path / CHECKPOINTS):
        try:
            read_metrics(path, checkpoint.server_round)
        except RunFileError as error:
            if checkpoint.synced:
                raise
            lost = error
            logger.warning("%s; its checkpoint wasn't yet on the disk either, and is skipped", error)
            continue
        return checkpoint
    if lost is not None:
        raise lost
    return None


def find_checkpoint(config: Config) -> Checkpoint | None:
    """Return the last complete round of the run that lies where a configuration points; ``None`` to start anew.

    Nothing is written.

    Raises:
        ConfigError: If there is no run, the configuration isn't that run's, or it has complete rounds, but kept nothing
            to go on from: only ``run.overwrite`` throws rounds away.
        RunFileError: If a file that the run needs to go on is damaged.
    """
    path = run_path(config)
    require_run(config)
    if not (path / CONFIG_FILE).exists():
        return None
    _check_same_run(config, read_config(path))
    check_places(path)
    if (mistake := check_same(read_environment(path).get("plugins"), used(config))) is not None:
        raise ConfigError(f"run.resume=true: {path}: {mistake}")
    if (checkpoint := _last_complete(path)) is not None:
        return checkpoint
    if not config.run.overwrite and (lost := _would_lose(path)) is not None:
        raise ConfigError(f"run.resume=true: the run in {path} {lost}; set run.overwrite=true to repeat it")
    logger.warning("run.resume=true: no round of %s has an intact checkpoint; the run starts anew", path)
    return None


class RunBrokenOffError(RuntimeError):
    """A run that the system doesn't let write: names the file, why, what is kept and how to go on.

    Attributes:
        reason: The file and why.
    """

    def __init__(self, reason: str, kept: str) -> None:
        super().__init__(f"{reason}; {kept}")
        self.reason = reason


@contextmanager
def told_if_broken_off(config: Config) -> Iterator[None]:
    """Say of a run that fails at a file of its folder what is kept of it.

    Raises:
        RunBrokenOffError: In the place of the system's error, such as that of a full disk.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None or not Path(error.filename).is_relative_to(run_path(config)):
            raise  # of a network, or a file of another's
        raise RunBrokenOffError(f"{error.filename}: {error.strerror}", what_is_kept(config)) from None


def what_is_kept(config: Config, way: str = "the same command with --resume goes on") -> str:
    """Say what a run that is broken off leaves, and how to go on.

    Args:
        config: Of the run.
        way: How to go on where that can be done.
    """
    path = run_path(config)
    if not (path / CONFIG_FILE).exists():
        return f"nothing is written to {path}"
    if not config.run.keep_checkpoints:
        return f"{path} keeps the metrics, but with run.keep_checkpoints=0 nothing to go on from"
    complete = max(round_files(path / CHECKPOINTS), default=0)
    if not complete:
        return f"no round in {path} is complete; {way} from the start"
    return f"{complete} of {config.run.rounds} rounds in {path} are complete; {way} after them"


def _would_lose(path: Path) -> str | None:
    """Say what beginning anew would throw away; the one round that a run was killed in is nothing."""
    if (path / ANN_FILE).exists() or (path / SNN_FILE).exists():
        return "is finished and left no checkpoint"
    if damaged := round_files(path / CHECKPOINTS):
        return f"has completed {max(damaged)} rounds, but no checkpoint is intact"
    try:
        rounds = len(read_metrics(path, growing=True))
    except RunFileError:
        rounds = 0
    return f"has played {rounds} rounds and left no checkpoint" if rounds > 1 else None


def _runs(directory: Path) -> list[str]:
    """Return the names of the runs in a folder, sorted."""
    try:
        return sorted(path.name for path in directory.iterdir() if (path / CONFIG_FILE).is_file())
    except OSError:
        return []


def _check_same_run(config: Config, earlier: Config) -> None:
    for key, _, _ in options():
        given, found = value_of(config, key), value_of(earlier, key)
        if key not in MAY_DIFFER and given != found:
            raise ConfigError(
                f"run.resume=true: {key}={given}, but the run was started with {key}={found}; a run goes on with the "
                "options that it was started with, for others choose another run.name"
            )
