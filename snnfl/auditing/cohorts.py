"""Who is in the sums of a recording, and who isn't."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from snnfl.auditing.recording import RecordingError, read_summands


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Who is in a recorded sum.

    Attributes:
        server_round: Counted from 1.
        clients: Partitions of those in it, ascending.
        absent: Partitions of the federation's other clients.
    """

    server_round: int
    clients: tuple[int, ...]
    absent: tuple[int, ...]


def cohorts(clients: int, folder: Path, rounds: frozenset[int] = frozenset()) -> list[Cohort]:
    """Return who is in each of a recording's sums.

    Args:
        clients: How many the federation has.
        folder: ``runs/NAME/audit``.
        rounds: Those to read; empty for all.

    Raises:
        RecordingError: If there is no recording, or a file of it is damaged.
    """
    return [
        Cohort(
            server_round=found.server_round,
            clients=found.clients,
            absent=tuple(client for client in range(clients) if client not in found.clients),
        )
        for found in read_summands(folder, rounds)
    ]


def check_present(found: Sequence[Cohort], asked: Iterable[int]) -> None:
    """Look whether the clients that are asked for are in a sum.

    Raises:
        RecordingError: Naming the first that isn't, and those that are.
    """
    there = {client for cohort in found for client in cohort.clients}
    known = there | {client for cohort in found for client in cohort.absent}
    missing = sorted({*asked} - there)
    if not found or not missing:
        return
    if missing[0] in known:
        raise RecordingError(f"--client {missing[0]}: it is in no sum of these rounds; in them are {listed(there)}")
    raise RecordingError(f"--client {missing[0]}: there is no such client; the run has {listed(known)}")


def listed(clients: Iterable[int]) -> str:
    """Write which clients, three and more in a row by their ends.

    >>> listed([4, 0, 1, 2, 7]), listed([3]), listed([])
    ('clients 0 to 2, 4 and 7', 'client 3', 'no client')
    """
    numbers = sorted({*clients})
    if not numbers:
        return "no client"
    rows = [[n for _, n in row] for _, row in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
    parts = [part for row in rows for part in ([f"{row[0]} to {row[-1]}"] if len(row) > 2 else map(str, row))]
    joined = f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
    return f"client{'s' if len(numbers) > 1 else ''} {joined}"
