"""Where a run that ended early goes on, and whether it may."""

from __future__ import annotations

import logging

from snnfl.config import Config, ConfigError, compose, options, value_of
from strategies.checkpoint import Checkpoint, newest_checkpoint
from strategies.run_directory import ANN_FILE, CHECKPOINTS, CONFIG_FILE, run_path

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


def find_checkpoint(config: Config) -> Checkpoint | None:
    """Return the last complete round of the run that lies where a configuration points; ``None`` to start anew.

    Nothing is written.

    Raises:
        ConfigError: If the configuration isn't that run's, or the run is finished and kept nothing to go on from.
    """
    path = run_path(config)
    if not (path / CONFIG_FILE).exists():
        logger.warning("run.resume=true: there is no run in %s; it starts anew", path)
        return None
    _check_same_run(config, compose(path / CONFIG_FILE))
    checkpoint = newest_checkpoint(path / CHECKPOINTS)
    if checkpoint is not None:
        return checkpoint
    if (path / ANN_FILE).exists() and not config.run.overwrite:
        raise ConfigError(
            f"run.resume=true: the run in {path} is finished and left no checkpoint; "
            "set run.overwrite=true to repeat it"
        )
    logger.warning("run.resume=true: no round of %s has an intact checkpoint; the run starts anew", path)
    return None


def _check_same_run(config: Config, earlier: Config) -> None:
    for key, _, _ in options():
        given, found = value_of(config, key), value_of(earlier, key)
        if key not in MAY_DIFFER and given != found:
            raise ConfigError(
                f"run.resume=true: {key}={given}, but the run was started with {key}={found}; a run goes on with the "
                "options that it was started with, for others choose another run.name"
            )
