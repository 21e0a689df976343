"""Replay a recording through the detectors of poisoned clients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

from snnfl.auditing.checked import read_checked
from snnfl.detection import Detector, DetectorError, RoundView, Verdict, get_detector, names
from snnfl.protocol import EXAMPLES
from snnfl.workspace import Workspace


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """A detector's verdict on a recorded round.

    Attributes:
        server_round: Counted from 1.
        detector: Its name.
        partitions: Of the clients, in the order of the verdict's scores.
        verdict: Scores and flags; ``None`` if the detector failed.
        failure: Why it did, or ``None``.
    """

    server_round: int
    detector: str
    partitions: tuple[int, ...]
    verdict: Verdict | None
    failure: str | None = None


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A spiking layer's threshold in a recorded update; of thresholds per channel their mean."""

    server_round: int
    partition: int
    layer: str
    value: float


def recorded_thresholds(work: Workspace, folder: Path, rounds: Iterable[int] = ()) -> list[Threshold]:
    """Read the thresholds of all recorded clients of an S-run, first layer first; of a plain run there are none.

    Raises:
        RecordingError: If the recording isn't there or is damaged.
    """
    return [
        Threshold(
            server_round=each.server_round,
            partition=each.partition,
            layer=name.removesuffix(".threshold"),
            value=float(each.exchange.received[name].mean()),
        )
        for each in read_checked(work, folder, frozenset(rounds))
        for name in work.format.threshold_names
    ]


def judge_recording(work: Workspace, folder: Path, rounds: Iterable[int] = ()) -> list[Judged]:
    """Let every detector that applies judge each recorded round, as far as its clients are recorded.

    Args:
        work: Of the run.
        folder: ``runs/NAME/audit``.
        rounds: Empty for all.

    Raises:
        RecordingError: If the recording isn't there or is damaged.
    """
    detectors = [get_detector(name) for name in names() if get_detector(name).refusal(work.format) is None]
    judged: list[Judged] = []
    for server_round, group in groupby(read_checked(work, folder, frozenset(rounds)), key=lambda r: r.server_round):
        received = list(group)
        view = RoundView(
            updates=[r.exchange.received for r in received],
            sent=received[0].exchange.sent,
            examples=[int(r.metrics[EXAMPLES]) for r in received],
            format=work.format,
        )
        partitions = tuple(r.partition for r in received)
        judged += [_judged(detector, view, server_round, partitions) for detector in detectors]
    return judged


def _judged(detector: Detector, view: RoundView, server_round: int, partitions: tuple[int, ...]) -> Judged:
    """Let a detector judge a round; that it fails is a finding, too."""
    about = partial(Judged, server_round=server_round, detector=detector.name, partitions=partitions)
    try:
        return about(verdict=detector(view))
    except DetectorError as error:
        return about(verdict=None, failure=str(error))
