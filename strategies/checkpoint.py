"""What a run needs to go on after a complete round, in one file that is there as a whole or not at all."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord
from numpy.typing import NDArray
from torch import Tensor

from snnfl.checksummed import DamagedFileError, read_checksummed, round_file, round_files, write_checksummed
from snnfl.files import sync_file
from strategies.guarded import Guarded
from strategies.state import StrategyState, pack, restore, unpack

logger = logging.getLogger(__name__)

SCHEMA = 1

SYNC_SECONDS = 1.0
"""How long what a power cut would take may have been on its way to the disk."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A run after a complete round. Whatever else it needs follows from its configuration and the number of the round.

    Attributes:
        server_round: The round, counted from 1.
        token: The run's random name, by which clients find their own state.
        arrays: What the server would send next.
        network: Parameters of the server's spiking network, if it has one.
        base: State of the base strategy.
        synced: Whether it was seen to the disk, and before it the rows of its rounds. Of one that wasn't, a power cut
            may leave the checkpoint and not the rows.
        privacy: What differential privacy has spent, and its key; ``None`` without.
    """

    server_round: int
    token: str
    arrays: ArrayRecord
    network: dict[str, Tensor] | None
    base: StrategyState
    synced: bool = True
    privacy: dict[str, Any] | None = None

    def restore(self, strategy: Guarded) -> None:
        """Give a freshly built strategy the state of the run's.

        Raises:
            ConfigError: If its base is of another kind.
        """
        restore(strategy.base, self.base)
        if strategy.privacy is not None and self.privacy is not None:
            strategy.privacy.restore(self.privacy)
        if self.network is not None:
            strategy.network = strategy.network_of(self.network)


class Checkpoints:
    """Write the checkpoints of a run, and delete those that it no longer needs.

    A process that is killed loses nothing that was written. A power cut may take what the system hasn't yet seen to the
    disk; to wait for that costs a round of a small model more than its training. So the disk is waited for once in
    :data:`SYNC_SECONDS`, and the newest checkpoint that is surely on it stays until a newer one is: a power cut takes
    the rounds of about a second, and what it damages is noticed.

    Args:
        folder: Of the checkpoints.
        metrics: The file whose rows must be on the disk before the checkpoint of their round is.
        keep: How many stay, beside the newest that is surely on the disk.
        rounds: Of the run; the disk is waited for after the last one.
    """

    def __init__(self, folder: Path, metrics: Path, *, keep: int, rounds: int) -> None:
        self.folder, self.metrics, self.keep, self.rounds = folder, metrics, keep, rounds
        self._synced: int | None = None  # the first one is waited for, before any other goes
        self._synced_at = -math.inf

    @property
    def oldest(self) -> int:
        """The oldest round that the run could be resumed after; 0 if that is its start."""
        return min(round_files(self.folder), default=0)

    def write(self, strategy: Guarded, *, server_round: int, token: str, arrays: ArrayRecord) -> None:
        """Write the checkpoint of a round, with which the round is complete.

        Raises:
            ConfigError: If the base strategy holds something that cannot be written.
        """
        content: dict[str, NDArray[Any]] = {}
        network = strategy.network
        state = {
            "token": token,
            "arrays": arrays,
            "network": None if network is None else {name: a.detach() for name, a in network.parameters.items()},
            "strategy": strategy.base,
            "privacy": None if strategy.privacy is None else strategy.privacy.state,
        }
        packed = {name: pack(value, name, content) for name, value in state.items()}
        sync = server_round == self.rounds or time.monotonic() - self._synced_at >= SYNC_SECONDS
        about = {"schema": SCHEMA, "round": server_round, "synced": sync, **packed}
        self.folder.mkdir(exist_ok=True)
        if sync:
            sync_file(self.metrics)
        secret = strategy.privacy is not None  # whoever reads its key can take the noise off
        write_checksummed(round_file(self.folder, server_round), content, about, sync=sync, private=secret)
        if sync:
            self._synced, self._synced_at = server_round, time.monotonic()
        files = round_files(self.folder)
        for obsolete in list(files)[: -self.keep]:
            if obsolete != self._synced:
                files[obsolete].unlink()


def check_state(strategy: Guarded) -> None:
    """Find out before the first round whether the state of a strategy can be written.

    Raises:
        ConfigError: If not, with the attribute.
    """
    pack(strategy.base, "strategy", {})


def intact_checkpoints(folder: Path) -> Iterator[Checkpoint]:
    """Read the intact checkpoints, newest first; each damaged one is skipped with a warning."""
    for path in reversed(round_files(folder).values()):
        try:
            yield _read(path)
        except DamagedFileError as error:
            logger.warning("%s; this checkpoint is skipped", error)


def discard_newer(folder: Path, server_round: int) -> None:
    """Delete the checkpoints of rounds that will be repeated."""
    for found, path in round_files(folder).items():
        if found > server_round:
            path.unlink()


def _read(path: Path) -> Checkpoint:
    arrays, about = read_checksummed(path)
    if not isinstance(about, dict) or about.get("schema") != SCHEMA:
        raise DamagedFileError(f"{path}: not a checkpoint of schema {SCHEMA}, which this version of snnfl reads")
    return Checkpoint(
        server_round=about["round"],
        token=about["token"],
        arrays=unpack(about["arrays"], arrays),
        network=unpack(about["network"], arrays),
        base=unpack(about["strategy"], arrays),
        synced=about.get("synced", True),
        privacy=unpack(about.get("privacy"), arrays),
    )
