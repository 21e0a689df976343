"""What a server sent and received, on disk: one folder per round and client, each file under a checksum.

::

    audit/recording/round-000003/sent.safetensors                      ANN arrays that every client of the round got
    audit/recording/round-000003/partition-000007/received.safetensors the client's update, and its metrics
    audit/recording/round-000003/partition-000007/sent.safetensors     where that client got other arrays
    audit/recording/round-000003/sum.safetensors                       with secure aggregation, in their place: the
                                                                       sum of the updates, and who is in it
    audit/truth/round-000003/partition-000007/truth.safetensors        with consent alone: what scoring may know
    audit/truth/round-000003/partition-000007/vector.safetensors       with secure aggregation: what is in the sum
                                                                       of it, which a client that colludes tells

In a run of ours a client is known by its partition, in the recording of another Flower app by its node's id.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnfl.auditing.ground_truth import GroundTruth
from snnfl.checksummed import DamagedFileError, read_checksummed, write_checksummed
from snnfl.files import make_private
from snnfl.threat import Exchange

logger = logging.getLogger(__name__)

SCHEMA = 2
RECORDING, TRUTH = "recording", "truth"
SENT, RECEIVED, SECRET = "sent.safetensors", "received.safetensors", "truth.safetensors"
SUM, VECTOR = "sum.safetensors", "vector.safetensors"
NUMBERS, KNOWN = "numbers", "known/"
_FOLDER = re.compile(r"(round|partition)-(\d{6,})")


class RecordingError(ValueError):
    """A recording that isn't there, lacks something or is damaged: names the file, in one line."""


@dataclass
class Recording:
    """The recording of a run, written round by round.

    It never disturbs the run: a full disk or a spent budget ends the recording, with one line in the log.

    Attributes:
        folder: ``runs/NAME/audit``.
        max_bytes: Size at which it stops.
        rounds: Those that are recorded; empty for all.
        partitions: Those that are recorded; empty for all.
    """

    folder: Path
    max_bytes: int
    rounds: frozenset[int] = frozenset()
    partitions: frozenset[int] = frozenset()
    _size: int = field(init=False)
    _stopped: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        """Count what an earlier attempt of a resumed run has left."""
        self._size = sum(path.stat().st_size for path in (self.folder / RECORDING).rglob("*") if path.is_file())

    def wants(self, server_round: int, partition: int | None = None) -> bool:
        """Tell whether a round, or an update of it, is recorded."""
        chosen = not self.rounds or server_round in self.rounds
        if partition is not None:
            chosen = chosen and (not self.partitions or partition in self.partitions)
        return chosen and not self._stopped

    def write_sent(
        self, server_round: int, arrays: Mapping[str, Tensor], about: Mapping[str, Any] | None = None
    ) -> None:
        """Record what the server sends to every client of a round, and what else it says to them."""
        path = round_folder(self.folder / RECORDING, server_round) / SENT
        self._write(path, arrays, {**(about or {}), "round": server_round})

    def write_sent_to(self, server_round: int, partition: int, arrays: Mapping[str, Tensor]) -> None:
        """Record what the server sends to one client, where that isn't what the round's others get."""
        path = client_folder(self.folder / RECORDING, server_round, partition) / SENT
        self._write(path, arrays, {"round": server_round, "partition": partition})

    def write_received(
        self, server_round: int, partition: int, arrays: Mapping[str, Tensor], metrics: Mapping[str, float]
    ) -> None:
        """Record a checked update."""
        about = {"round": server_round, "partition": partition, "metrics": dict(metrics)}
        self._write(client_folder(self.folder / RECORDING, server_round, partition) / RECEIVED, arrays, about)

    def write_sum(
        self,
        server_round: int,
        numbers: NDArray[np.unsignedinteger[Any]],
        known: Mapping[str, Tensor],
        about: Mapping[str, Any],
    ) -> None:
        """Record the sum of a round's updates.

        Args:
            server_round: Counted from 1.
            numbers: The sum, in the ring.
            known: What everybody knew, from which noised updates differ; empty without.
            about: Who is in it, and how it is laid out (:class:`Summands`).
        """
        arrays = {NUMBERS: _signed(numbers)} | {f"{KNOWN}{name}": array for name, array in known.items()}
        path = round_folder(self.folder / RECORDING, server_round) / SUM
        self._write(path, arrays, {**about, "round": server_round})

    def _write(self, path: Path, arrays: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        size = sum(array.numel() * array.element_size() for array in arrays.values())
        if self._stopped or self._size + size > self.max_bytes:
            self._stop(f"audit.max_bytes={self.max_bytes} is spent")
            return
        try:
            make_private(path.parent)
            _write(path, arrays, about)
            self._size += size
        except OSError as error:
            self._stop(f"{path} cannot be written ({error.strerror})")

    def _stop(self, reason: str) -> None:
        if not self._stopped:
            logger.warning("the recording for the audit ends here, the run goes on: %s", reason)
        self._stopped = True


@dataclass(frozen=True, kw_only=True)
class Received:
    """A recorded update.

    Attributes:
        server_round: Counted from 1.
        partition: Of the client.
        exchange: What went to it and came back.
        metrics: That came with it.
        members: Of a sum, how many images each of its clients has, by partition; empty for a client's own update.
            ``partition`` is the first.
        colluding: How many further clients have told what is theirs in the sum, so that it is taken out.
        rounds: Of how many rounds' sums it is an estimate (:mod:`snnfl.auditing.differences`); 1 if it was received.
        about: What else the recording says of the round; of a run of ours, whose folder says it, nothing.
    """

    server_round: int
    partition: int
    exchange: Exchange
    metrics: Mapping[str, float]
    members: Mapping[int, int] = field(default_factory=dict)
    colluding: int = 0
    rounds: int = 1
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Summands:
    """A recorded sum.

    Attributes:
        server_round: Counted from 1.
        sent: What every client of the round got.
        numbers: The sum, as signed integers of the ring's size.
        known: As :meth:`Recording.write_sum`.
        clients: Partitions of those in it, ascending.
        images: How many each of them has.
        layout: What else says how to read it: ``examples``, ``follows``, ``norm`` and ``noise``.
        about: What else the recording says of the round.
    """

    server_round: int
    sent: Mapping[str, Tensor]
    numbers: NDArray[np.signedinteger[Any]]
    known: Mapping[str, Tensor]
    clients: tuple[int, ...]
    images: tuple[int, ...]
    layout: Mapping[str, Any]
    about: Mapping[str, Any]


def read_recording(folder: Path, rounds: frozenset[int] = frozenset()) -> Iterator[Received]:
    """Read a recording, in the order of rounds and partitions.

    Args:
        folder: ``runs/NAME/audit``.
        rounds: Those to read; empty for all.

    Raises:
        RecordingError: If there is none, or a file is missing or damaged.
    """
    for server_round, path in _rounds(folder, rounds):
        of_all, about = _placed(path / SENT, server_round, None)
        for partition, client in _numbered(path, "partition").items():
            if not (client / RECEIVED).exists() and (client / SENT).exists():
                continue  # it was sent arrays of its own, and no update of it was recorded
            received, of_update = _placed(client / RECEIVED, server_round, partition)
            sent = _placed(client / SENT, server_round, partition)[0] if (client / SENT).exists() else of_all
            yield Received(
                server_round=server_round,
                partition=partition,
                exchange=Exchange(server_round=server_round, sent=sent, received=received),
                metrics=of_update.get("metrics", {}),
                about=_further(about),
            )


def read_summands(folder: Path, rounds: frozenset[int] = frozenset()) -> Iterator[Summands]:
    """Read the sums of a recording, in the order of rounds; a round whose sum stayed masked has none.

    Args:
        folder: ``runs/NAME/audit``.
        rounds: Those to read; empty for all.

    Raises:
        RecordingError: If there is none, or a file is missing or damaged.
    """
    for server_round, path in _rounds(folder, rounds):
        if not (path / SUM).exists():
            continue
        sent, about = _placed(path / SENT, server_round, None)
        arrays, said = _placed(path / SUM, server_round, None)
        clients, images = (_whole(path / SUM, said.get(name)) for name in ("clients", "images"))
        if clients != sorted({*clients}) or len(clients) != len(images) or NUMBERS not in arrays:
            raise RecordingError(f"{path / SUM}: expected a sum of clients that are each in it once")
        yield Summands(
            server_round=server_round,
            sent=sent,
            numbers=arrays[NUMBERS].numpy(),
            known={name.removeprefix(KNOWN): array for name, array in arrays.items() if name.startswith(KNOWN)},
            clients=tuple(clients),
            images=tuple(images),
            layout=said,
            about=_further(about),
        )


def _rounds(folder: Path, rounds: frozenset[int]) -> Iterator[tuple[int, Path]]:
    """Yield the recorded rounds that are asked for, in their order, with their folders."""
    check_rounds(folder, rounds)
    for server_round, path in _numbered(folder / RECORDING, "round").items():
        if not rounds or server_round in rounds:
            yield server_round, path


def _further(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a recording says of a round beyond what its folder does."""
    return {name: value for name, value in about.items() if name not in ("schema", "round")}


def write_vector(folder: Path, server_round: int, partition: int, numbers: NDArray[np.unsignedinteger[Any]]) -> None:
    """Write what a client has put into a round's sum, on its own disk, in the folder of all truths."""
    path = client_folder(folder, server_round, partition) / VECTOR
    make_private(path.parent)
    _write(path, {NUMBERS: _signed(numbers)}, {"round": server_round, "partition": partition})


def read_vector(folder: Path, server_round: int, partition: int) -> NDArray[np.signedinteger[Any]] | None:
    """Read what a client has put into a round's sum; ``None`` if it told nothing.

    Raises:
        RecordingError: If the file is damaged.
    """
    path = client_folder(folder, server_round, partition) / VECTOR
    if not path.exists():
        return None
    arrays, _ = _placed(path, server_round, partition)
    if NUMBERS not in arrays:
        raise RecordingError(f"{path}: holds no numbers; record the run again")
    return arrays[NUMBERS].numpy()


def check_rounds(folder: Path, rounds: frozenset[int]) -> None:
    """Look whether there is a recording, and whether it has some rounds, without reading it.

    Raises:
        RecordingError: Naming the first round that is missing.
    """
    found = _numbered(folder / RECORDING, "round")
    if not found:
        raise RecordingError(f"{folder}: no recording; run with audit.record=true, or another Flower app with Audited")
    if missing := sorted(rounds - found.keys()):
        raise RecordingError(f"{folder / RECORDING}: round {missing[0]} is not recorded, only {sorted(found)}")


def write_truth(folder: Path, server_round: int, partition: int, truth: GroundTruth) -> None:
    """Write a client's secrets of a round, on its own disk.

    Args:
        folder: Of all truths, ``runs/NAME/audit/truth``.
        server_round: Counted from 1.
        partition: Of the client.
        truth: What it tells.
    """
    path = truth_path(folder, server_round, partition)
    sides = {"biases": truth.biases, "trained_biases": truth.trained_biases}
    biases = {f"{side}/{name}": array for side, arrays in sides.items() for name, array in arrays.items()}
    make_private(path.parent)
    _write(
        path,
        {"images": truth.images, "labels": truth.labels, **biases},
        {"round": server_round, "partition": partition},
    )


def read_truth(folder: Path, server_round: int, partition: int) -> GroundTruth | None:
    """Read what a client consented to tell of a round; ``None`` if it told nothing.

    Args:
        folder: Of all truths, ``runs/NAME/audit/truth``.
        server_round: Counted from 1.
        partition: Of the client.

    Raises:
        RecordingError: If the file is damaged.
    """
    path = truth_path(folder, server_round, partition)
    if not path.exists():
        return None
    arrays, about = _unseal(path)
    if "round" in about:  # earlier versions of snnfl didn't say
        _check_place(path, about, server_round, partition)
    images, labels = (arrays.get(name, torch.empty(())) for name in ("images", "labels"))
    if not images.dim() or labels.dim() != 1 or not len(labels) or len(images) not in (0, len(labels)):
        raise RecordingError(f"{path}: expected images and as many labels; record the run again")
    sides: dict[str, dict[str, Tensor]] = {"biases": {}, "trained_biases": {}}
    for name, array in arrays.items():
        side, _, bias = name.partition("/")
        if side in sides:
            sides[side][bias] = array
    return GroundTruth(images=images, labels=labels, **sides)


def round_folder(folder: Path, server_round: int) -> Path:
    """Return a round's folder."""
    return folder / f"round-{server_round:06d}"


def client_folder(folder: Path, server_round: int, partition: int) -> Path:
    """Return the folder of a client in a round."""
    return round_folder(folder, server_round) / f"partition-{partition:06d}"


def truth_path(folder: Path, server_round: int, partition: int) -> Path:
    """Return the file of what a client tells of a round, in the folder of all truths."""
    return client_folder(folder, server_round, partition) / SECRET


def _numbered(folder: Path, kind: str) -> dict[int, Path]:
    matches = ((_FOLDER.fullmatch(path.name), path) for path in folder.glob(f"{kind}-*"))
    return dict(sorted((int(match[2]), path) for match, path in matches if match))


def _whole(path: Path, values: object) -> list[int]:
    """Return a list of whole numbers that a file says."""
    if not isinstance(values, list) or not values or not all(type(n) is int and n >= 0 for n in values):
        raise RecordingError(f"{path}: says {values!r} of its clients; expected whole numbers")
    return values


def _signed(numbers: NDArray[np.unsignedinteger[Any]]) -> Tensor:
    """Return elements of a ring as torch knows integers."""
    return torch.from_numpy(np.ascontiguousarray(numbers).view(f"<i{numbers.itemsize}"))


def _write(path: Path, arrays: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    plain = {name: array.detach().cpu().contiguous().numpy() for name, array in arrays.items()}
    write_checksummed(path, plain, {"schema": SCHEMA, **about}, sync=False, private=True)


def _unseal(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        arrays, about = read_checksummed(path)
    except DamagedFileError as error:
        raise RecordingError(f"{error}; record the run again, or move the folder away") from None
    if not isinstance(about, dict) or about.get("schema") != SCHEMA:
        raise RecordingError(f"{path}: not a recording of schema {SCHEMA}, which this version of snnfl reads")
    return {name: torch.from_numpy(array) for name, array in arrays.items()}, about


def _placed(path: Path, server_round: int, partition: int | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of a round, and of a client."""
    arrays, about = _unseal(path)
    _check_place(path, about, server_round, partition)
    return arrays, about


def _check_place(path: Path, about: Mapping[str, Any], server_round: int, partition: int | None) -> None:
    """Compare what a file says of itself with where it lies: another client's has a right checksum, too."""
    for name, expected in (("round", server_round), ("partition", partition)):
        if (found := about.get(name)) != expected:
            raise RecordingError(f"{path}: is of {name} {found}, expected {expected}; it was put here afterwards")
