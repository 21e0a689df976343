"""Who was asked and what came of it: the private state that clients trained from, and what a run lacked in the end."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from snnfl.config import Config, client_side
from snnfl.protocol import STATE_ROUND, keeps_state

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A reply that entered nothing.

    Attributes:
        partition: Of the client; ``None`` for a node that holds none.
        message: What it was asked: ``train`` or ``evaluate``.
        verdict: Whether it failed, or the server refused it.
        reason: In one line.
    """

    partition: int | None
    message: str
    verdict: Literal["failed", "refused"]
    reason: str


class KnownStates:
    """In which round each client last trained, and so which private state it should train from in the next.

    A client says with each update after which round the state was written that it has trained from (0: it had none).
    An earlier one than it should have means that the state is lost.

    Args:
        config: Of the run.
        rows: Of the rounds so far.
    """

    def __init__(self, config: Config, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self.kept = keeps_state(config)
        self._trained: dict[int, int] = {}
        for row in rows:
            for partition in _valid(row, "train"):
                self._trained[partition] = row["round"]

    def count_lost(
        self, server_round: int, updates: Mapping[int, Mapping[str, float]], nodes: Mapping[int, int]
    ) -> int | None:
        """Return how many clients of a round have trained from an older state than they had, and warn of each.

        Args:
            server_round: Counted from 1.
            updates: Metrics of the valid updates, by partition.
            nodes: By partition.

        Returns:
            ``None`` where clients keep no state.
        """
        if not self.kept:
            return None
        lost = 0
        for partition, metrics in updates.items():
            expected, found = self._trained.get(partition, 0), int(metrics.get(STATE_ROUND, 0))
            self._trained[partition] = server_round
            if found < expected:
                lost += 1
                logger.warning(
                    "round %d: partition %d (node %d) has lost the private state of round %d; it trained from %s, so "
                    "the run differs from an undisturbed one",
                    server_round,
                    partition,
                    nodes.get(partition, -1),
                    expected,
                    f"that of round {found}" if found > 0 else "the common initial one",
                )
        return lost


def attendance_columns(
    config: Config, asked: Mapping[str, Sequence[int]], faults: Iterable[Fault], held: Iterable[int]
) -> dict[str, Any]:
    """Return the columns of ``metrics.jsonl`` that say who was asked in a round and whose reply entered nothing."""
    return {
        "asked": {message: list(partitions) for message, partitions in asked.items()},
        "faults": [asdict(fault) for fault in faults],
        "absent": sorted(set(range(config.data.clients)) - set(held)),
    }


def nothing_valid(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Say that no client sent a valid update in any round of a run, and why not in the last; ``None`` if one did."""
    if any(row.get("replies") for row in rows):
        return None
    if not rows:
        return "no round was played"
    return ": ".join(["no client sent a valid update in any round", *_reasons(rows[-1])[:1]])


def shortcomings(config: Config, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say in what a run that has all its rounds isn't what was configured: who and why, a line each.

    That is a last round whose weights are those of an earlier one, a client none of whose replies was valid in any
    round in which it was asked, or that took no part though every client was to in every round, and a detector or
    tracker that failed in every round.
    """
    if not rows:
        return ["no round was played"]
    last = rows[-1]
    found = []
    if not last.get("replies") or not (last.get("aggregated") or not client_side(config).uploads):
        asked = len(last.get("asked", {}).get("train", ()))
        valid = f"{last.get('replies', 0)} of {asked} replies were valid"
        kept = f"round {last['round']}, the last, kept the old weights; {valid}"
        found.append(": ".join([kept, *_reasons(last)[:1]]))
    found += [line for message in ("train", "evaluate") for line in _never(config, rows, message)]
    return [*found, *_never_worked(config, rows)]


def _reasons(row: Mapping[str, Any]) -> list[str]:
    return [f"partition {f['partition']} {f['verdict']}: {f['reason']}" for f in row.get("faults", ())]


def _never(config: Config, rows: Sequence[Mapping[str, Any]], message: str) -> Iterator[str]:
    """Say which clients have answered no message of a kind validly."""
    fine = {partition for row in rows for partition in _valid(row, message)}
    faults = {fault["partition"]: fault for row in rows for fault in _faults(row, message)}
    for partition, fault in sorted((p, fault) for p, fault in faults.items() if p is not None and p not in fine):
        times = sum(partition in row["asked"][message] for row in rows if "asked" in row)
        last = f"the last one {fault['verdict']}: {fault['reason']}"
        yield f"partition {partition} gave no valid reply to {times} of {times} {message} messages; {last}"
    if message == "train" and all("asked" in row for row in rows):  # earlier versions didn't tell
        everybody = config.strategy.fraction_train == 1 and config.strategy.participation == 1
        due = set(range(config.data.clients)).intersection(*([] if everybody else [row["absent"] for row in rows]))
        for partition in sorted(due - fine - faults.keys()):
            yield f"partition {partition} took no part: no node that holds it could be asked; the log says why"


def _never_worked(config: Config, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Say which detectors, and whether the tracker, failed in every round in which they were called."""
    called = {
        f"detector {name}": [row["detection"][name] for row in rows if name in (row.get("detection") or {})]
        for name in config.detection.detectors
    }
    told = [row["tracking"] for row in rows if "tracking" in row]
    called[f"tracker {config.run.tracking}"] = [each for each in told if each["name"] == config.run.tracking]
    for name, times in called.items():
        if times and all(each.get("failed") is not None for each in times):
            yield f"{name} failed in {len(times)} of {len(times)} rounds; the last time: {times[-1]['failed']}"


def _valid(row: Mapping[str, Any], message: str) -> set[int]:
    """Return the partitions that answered a kind of message validly in a round."""
    return set(row.get("asked", {}).get(message, ())) - {fault["partition"] for fault in _faults(row, message)}


def _faults(row: Mapping[str, Any], message: str) -> list[Mapping[str, Any]]:
    return [fault for fault in row.get("faults", ()) if fault["message"] == message]
