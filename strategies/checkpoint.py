"""What a run needs to go on after a complete round, in one file that is there as a whole or not at all."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord
from numpy.typing import NDArray
from torch import Tensor

from snnfl.sealed import DamagedFileError, read_sealed, round_file, round_files, write_sealed
from strategies.guarded import Guarded
from strategies.state import StrategyState, pack, restore, unpack

logger = logging.getLogger(__name__)

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A run after a complete round. Whatever else it needs follows from its configuration and the number of the round.

    Attributes:
        server_round: The round, counted from 1.
        token: The run's random name, by which clients find their own state.
        arrays: What the server would send next.
        network: Parameters of the server's spiking network, if it has one.
        base: State of the base strategy.
    """

    server_round: int
    token: str
    arrays: ArrayRecord
    network: dict[str, Tensor] | None
    base: StrategyState

    def restore(self, strategy: Guarded) -> None:
        """Give a freshly built strategy the state of the run's.

        Raises:
            ConfigError: If its base is of another kind.
        """
        restore(strategy.base, self.base)
        if self.network is not None:
            strategy.network = strategy.network_of(self.network)


def write_checkpoint(
    folder: Path, strategy: Guarded, *, server_round: int, token: str, arrays: ArrayRecord, keep: int
) -> None:
    """Write the checkpoint of a round, then delete all but the last ``keep``.

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
    }
    packed = {name: pack(value, name, content) for name, value in state.items()}
    folder.mkdir(exist_ok=True)
    write_sealed(round_file(folder, server_round), content, {"schema": SCHEMA, "round": server_round, **packed})
    for path in list(round_files(folder).values())[:-keep]:
        path.unlink()


def check_state(strategy: Guarded) -> None:
    """Find out before the first round whether the state of a strategy can be written.

    Raises:
        ConfigError: If not, with the attribute.
    """
    pack(strategy.base, "strategy", {})


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Read the newest intact checkpoint, ``None`` if there is none; each damaged one is skipped with a warning."""
    for path in reversed(round_files(folder).values()):
        try:
            return _read(path)
        except DamagedFileError as error:
            logger.warning("%s; this checkpoint is skipped", error)
    return None


def discard_newer(folder: Path, server_round: int) -> None:
    """Delete the checkpoints of rounds that will be repeated."""
    for found, path in round_files(folder).items():
        if found > server_round:
            path.unlink()


def _read(path: Path) -> Checkpoint:
    arrays, about = read_sealed(path)
    if not isinstance(about, dict) or about.get("schema") != SCHEMA:
        raise DamagedFileError(f"{path}: not a checkpoint of schema {SCHEMA}, which this version of snnfl reads")
    return Checkpoint(
        server_round=about["round"],
        token=about["token"],
        arrays=unpack(about["arrays"], arrays),
        network=unpack(about["network"], arrays),
        base=unpack(about["strategy"], arrays),
    )
