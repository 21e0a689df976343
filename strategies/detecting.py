"""Where detectors run: on the checked updates of a round, before they are aggregated.

They judge by the updates alone. Who attacks is the configuration's to know; here it serves to count, in
:func:`detection_columns`, how often a verdict was right.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from snnfl.config import Config, ConfigError
from snnfl.detection import DetectorError, RoundView, Verdict, get_detector
from snnfl.updates import UpdateFormat
from strategies.update import Update

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Screening:
    """What the detectors made of a round.

    Attributes:
        partitions: Of the clients that were judged, in the order of the updates.
        verdicts: One per detector that judged.
        kept: Whether each update goes into the aggregate, boolean ``[clients]``.
        failed: Why each other detector didn't, by its name.
    """

    partitions: tuple[int, ...]
    verdicts: tuple[Verdict, ...]
    kept: Tensor
    failed: Mapping[str, str] = field(default_factory=dict)


class Detecting:
    """Judge the updates of each round, and say which of them are kept.

    Without ``exclude`` all are kept, and a run is bit for bit what it would be without detectors. A detector that fails
    has no verdict in that round; if it is the one that excludes, nothing is kept: an update that a defence cannot judge
    must not enter by making it fail.

    Args:
        detectors: Their names.
        exclude: The one of them whose flagged clients are left out.
        format: Of the updates.

    Raises:
        ConfigError: For an unknown detector, or one that looks at what a plain run doesn't have.
    """

    def __init__(
        self,
        detectors: Sequence[str],
        format: UpdateFormat,
        *,
        exclude: str | None = None,
    ) -> None:
        self.detectors = [get_detector(name) for name in detectors]
        for detector in self.detectors:
            if (reason := detector.refusal(format)) is not None:
                raise ConfigError(reason)
        self.exclude = exclude
        self.format = format
        self.sent: Mapping[str, Tensor] = {}

    def screen(self, updates: Sequence[Update], partitions: Sequence[int]) -> Screening:
        """Judge the checked updates of a round; :attr:`sent` is what the server had sent."""
        view = RoundView(
            updates=[update.arrays for update in updates],
            sent=self.sent,
            examples=[update.examples for update in updates],
            format=self.format,
        )
        verdicts: list[Verdict] = []
        failed: dict[str, str] = {}
        for detector in self.detectors:
            try:
                verdicts.append(detector(view))
            except DetectorError as error:
                failed[detector.name] = str(error)
        kept = torch.full((len(updates),), self.exclude not in failed)
        for verdict in verdicts:
            if verdict.detector == self.exclude:
                kept = ~verdict.flagged
        return Screening(partitions=tuple(partitions), verdicts=tuple(verdicts), kept=kept, failed=failed)


def build_detecting(config: Config, format: UpdateFormat) -> Detecting | None:
    """Build the detectors of a run, if it has any.

    Raises:
        ConfigError: As :class:`Detecting`.
    """
    detection = config.detection
    if not detection.detectors:
        return None
    if detection.exclude is not None:
        logger.warning("detection.exclude=%s: a defence; whom it flags is left out of the aggregate", detection.exclude)
    return Detecting(detection.detectors, format, exclude=detection.exclude)


def detection_columns(screening: Screening | None, attackers: Collection[int]) -> dict[str, Any] | None:
    """Summarise the verdicts of a round by detector, for ``metrics.jsonl``; ``None`` without detectors.

    Args:
        screening: Of the round.
        attackers: Partitions of the clients that attacked in it: the ground truth, used for the two rates alone.

    Returns:
        Of each detector ``scores`` by partition, ``flagged`` partitions, ``points`` by partition where it has a
        picture, ``true_positive_rate`` (``None`` if no attacker replied) and ``false_positive_rate`` (``None`` if
        nobody else did); of one that failed these are empty, and ``failed`` is
        the reason.
    """
    if screening is None:
        return None
    guilty = torch.tensor([partition in attackers for partition in screening.partitions], dtype=torch.bool)
    names = [str(partition) for partition in screening.partitions]
    judged: dict[str, Any] = {
        verdict.detector: {
            "scores": dict(zip(names, verdict.scores.tolist(), strict=True)),
            "flagged": [p for p, flag in zip(screening.partitions, verdict.flagged.tolist(), strict=True) if flag],
            "points": None if verdict.points is None else dict(zip(names, verdict.points.tolist(), strict=True)),
            "true_positive_rate": _share(verdict.flagged[guilty]),
            "false_positive_rate": _share(verdict.flagged[~guilty]),
        }
        for verdict in screening.verdicts
    }
    nothing: dict[str, Any] = {
        "scores": {},
        "flagged": [],
        "points": None,
        "true_positive_rate": None,
        "false_positive_rate": None,
    }
    return judged | {name: {**nothing, "failed": reason} for name, reason in screening.failed.items()}


def _share(flags: Tensor) -> float | None:
    return float(flags.double().mean()) if len(flags) else None
