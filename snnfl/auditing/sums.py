"""What a server with secure aggregation has of a round, as updates: the sum of all, or of those who don't collude.

A sum of clients that take a step each is the update of one client with all their images. So attacks get it as that,
and the threat model says of how many it is (:attr:`~snnfl.threat.Knowledge.clients`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnfl.auditing.checked import check_arrays
from snnfl.auditing.recording import (
    RECORDING,
    SENT,
    SUM,
    TRUTH,
    Received,
    RecordingError,
    Summands,
    read_summands,
    read_vector,
    round_folder,
)
from snnfl.config import ConfigError, sampled_clients
from snnfl.masking import FieldError
from snnfl.protocol import EXAMPLES
from snnfl.threat import Exchange
from snnfl.training.local import MAXIMUM_VALUE
from snnfl.updates import Sum, Summed, summed
from snnfl.updates.coordinates import origin
from snnfl.updates.noised import NoisySum, noisy_sum
from snnfl.workspace import Workspace


def read_sums(
    work: Workspace, colluding: int, folder: Path, rounds: frozenset[int] = frozenset()
) -> Iterator[Received]:
    """Read the recorded sums of a run with secure aggregation as updates, in the order of rounds.

    A server that colludes with ``k`` of a round's ``n`` clients takes what these have put into the sum out of it:
    exactly, in the ring, with their rounding and their noise. Each client is to be attacked once, so by their numbers
    ``n - k`` clients at a time are those who don't collude, and all others do. Of fewer that are left nobody is
    attacked.

    Args:
        work: Of the run.
        colluding: ``k``.
        folder: ``runs/NAME/audit``.
        rounds: Those to read; empty for all.

    Raises:
        ConfigError: If nobody would be left.
        RecordingError: Naming the file and what is wrong in it, or whom it lacks.
    """
    for found in read_summands(folder, rounds):
        if colluding >= (count := len(found.clients)):
            raise ConfigError(
                f"--colluding {colluding}: round {found.server_round} has {count} clients, and one at least is to be "
                "attacked; take fewer"
            )
        layout = checked_layout(work, found, folder)
        vectors = _vectors(found, folder, layout) if colluding else {}
        for group in groups(found.clients, count - colluding):
            rest = found.numbers.view(layout.field.dtype)
            for client in vectors.keys() - {*group}:
                rest = rest - vectors[client]
            update = decoded(layout, found, rest, folder, clients=len(group))
            arrays = layout.as_update(update)
            check_arrays(sum_path(folder, found.server_round), arrays, work.format.specs)
            members = {c: n for c, n in zip(found.clients, found.images, strict=True) if c in group}
            yield Received(
                server_round=found.server_round,
                partition=group[0],
                exchange=Exchange(server_round=found.server_round, sent=found.sent, received=arrays),
                metrics={**update.metrics, EXAMPLES: sum(members.values())},
                members=members,
                colluding=colluding,
                about=found.about,
            )


def groups(clients: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """Cut clients into groups of a size; fewer that are left are in none.

    >>> groups([1, 4, 5, 7, 9], 2)
    [(1, 4), (5, 7)]
    """
    return [tuple(clients[start : start + size]) for start in range(0, len(clients) - size + 1, size)]


def sum_path(folder: Path, server_round: int) -> Path:
    """Return the file of a round's sum, in the folder of an audit."""
    return round_folder(folder / RECORDING, server_round) / SUM


def checked_layout(work: Workspace, found: Summands, folder: Path) -> Summed:
    """Return how the numbers of a sum stand; they, and what was sent, are checked against the run.

    Raises:
        RecordingError: Naming the file and what is wrong in it.
    """
    path = sum_path(folder, found.server_round)
    check_arrays(path.parent / SENT, found.sent, work.format.sent_specs)
    most = len(work.dataset.train_labels) or MAXIMUM_VALUE
    if not all(1 <= count <= most for count in found.images):
        raise RecordingError(f"{path}: says that its clients have {list(found.images)} images; expected 1 to {most:g}")
    said, given = found.layout, dict[str, float]()
    for name in ("examples", "norm", "noise"):
        value = said.get(name)
        if not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= MAXIMUM_VALUE:
            raise RecordingError(f"{path}: {name} is {value!r}; expected a number of at least 0")
        given[name] = value
    layout: Summed
    if work.config.privacy.mechanism == "distributed":
        layout = noisy_sum(work.config, work.format)
        layout.norm, layout.noise = given["norm"], given["noise"]
        expected = {name: tuple(array.shape) for name, array in origin(work.format, found.sent).items()}
        sound = all(array.is_floating_point() and bool(array.isfinite().all()) for array in found.known.values())
        if not sound or {name: tuple(array.shape) for name, array in found.known.items()} != expected:
            raise RecordingError(f"{path}: what everybody knew isn't of the run beside it")
    else:
        examples, follows = max(1, int(given["examples"])), bool(said.get("follows"))
        layout = summed(work.config, work.format, examples=examples, follows=follows)
    layout = _at(layout, found.known)
    most_clients = sampled_clients(work.config)
    if found.numbers.dtype != f"i{layout.field.dtype.itemsize}" or found.numbers.shape != (layout.length,):
        raise RecordingError(f"{path}: holds no sum of the run beside it, which has {layout.length} numbers")
    if len(found.clients) > most_clients or found.clients[-1] >= work.config.data.clients:
        raise RecordingError(f"{path}: is of clients {list(found.clients)}, of which the run has none or not as many")
    return layout


def decoded(
    layout: Summed,
    found: Summands,
    numbers: NDArray[np.unsignedinteger[Any]],
    folder: Path,
    *,
    clients: int | None = None,
) -> Sum:
    """Read a sum, or what is left of it.

    Args:
        layout: Of :func:`checked_layout`.
        found: The recorded sum.
        numbers: What is to be read, elements of the ring.
        folder: ``runs/NAME/audit``.
        clients: Of how many it is; ``None`` for all.

    Raises:
        RecordingError: If it is the sum of none.
    """
    try:
        return _at(layout, found.known).decode(numbers, found.sent, clients or len(found.clients))
    except FieldError as error:
        path = sum_path(folder, found.server_round)
        raise RecordingError(f"{path}: {error}; it isn't of the run beside it") from None


def _at(layout: Summed, known: Mapping[str, Tensor]) -> Summed:
    """Return a layout of noised sums with what everybody knew, which reading one moves; any other as it is."""
    return layout.at(known) if isinstance(layout, NoisySum) else layout


def _vectors(found: Summands, folder: Path, layout: Summed) -> dict[int, NDArray[np.unsignedinteger[Any]]]:
    """Read what clients that may collude have put into a sum.

    Raises:
        RecordingError: Naming the first that didn't tell.
    """
    told = dict[int, NDArray[np.unsignedinteger[Any]]]()
    for client in found.clients:
        numbers = read_vector(folder / TRUTH, found.server_round, client)
        if numbers is None or numbers.shape != found.numbers.shape or numbers.dtype != found.numbers.dtype:
            raise RecordingError(
                f"{folder / TRUTH}: client {client} hasn't told what it put into the sum of round "
                f"{found.server_round}; run with audit.ground_truth=true"
            )
        told[client] = numbers.view(layout.field.dtype)
    return told


def joined_orders(orders: Sequence[Tensor | None]) -> Tensor | None:
    """Return the orders of several clients' images as those of one that has all of them, client by client.

    Args:
        orders: ``[epochs, images]`` each; ``None`` for one that nobody knows.
    """
    found, start = list[Tensor](), 0
    for order in orders:
        if order is None:
            return None
        found.append(order + start)
        start += order.shape[1]
    return torch.cat(found, dim=1)
