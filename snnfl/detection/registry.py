"""Detectors by name: a function with one decorator is a detector."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from snnfl.config import ConfigError
from snnfl.detection.view import RoundView
from snnfl.registry import Registry
from snnfl.updates import UpdateFormat


@dataclass(frozen=True, kw_only=True, eq=False)
class Verdict:
    """What a detector says of the clients of a round.

    Attributes:
        detector: Its name.
        scores: How unusual each client is, ``[clients]``, float64, finite; comparable within one round alone.
        flagged: Whom it takes for an attacker, boolean ``[clients]``.
        points: Where to draw each client in a plane, ``[clients, 2]``, if the detector has a picture.
    """

    detector: str
    scores: Tensor
    flagged: Tensor
    points: Tensor | None = None


class DetectorError(RuntimeError):
    """A detector that failed, or returned what is no verdict; one line that names it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """What a detector function returns.

    Attributes:
        scores: How unusual each client is, ``[clients]``, floating point, finite.
        flagged: Whom it takes for an attacker, boolean ``[clients]``.
        points: Where to draw each client in a plane, ``[clients, 2]``, floating point, finite; ``None`` for no picture.
    """

    scores: Tensor
    flagged: Tensor
    points: Tensor | None = None


Judge: TypeAlias = Callable[[RoundView], Findings]


@dataclass(frozen=True, kw_only=True)
class Detector:
    """A registered detector.

    Attributes:
        name: In configurations and reports.
        source: Paper and section.
        needs_thresholds: Whether only updates with thresholds have what it looks at: S-runs, or learned ones.
        judge: The detector itself.
    """

    name: str
    source: str
    needs_thresholds: bool
    judge: Judge

    def refusal(self, format: UpdateFormat) -> str | None:
        """Return why the detector cannot judge such updates, or ``None`` if it can."""
        if self.needs_thresholds and not format.threshold_names:
            return (
                f"detector {self.name}: these updates hold no thresholds to look at; set strategy.spiking=true, or "
                "model.learn_threshold=true of networks that are trained as spiking ones"
            )
        return None

    def __call__(self, view: RoundView) -> Verdict:
        """Judge the updates of a round. Of fewer than three nobody stands out: the scores are 0.

        Raises:
            ConfigError: If the run hasn't what the detector looks at.
            DetectorError: If the detector fails, or what it returns isn't as :class:`Findings` says.
        """
        if (reason := self.refusal(view.format)) is not None:
            raise ConfigError(reason)
        if (count := len(view.updates)) < 3:
            zeros = torch.zeros(count, dtype=torch.float64)
            return Verdict(detector=self.name, scores=zeros, flagged=zeros > 0)
        try:
            found = self.judge(view)
        except Exception as error:  # of code that anybody may have written, about whatever a client may have sent
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise DetectorError(f"{self.name}: {reason}") from error
        if (mistake := _mistake(found, count)) is not None:
            raise DetectorError(f"{self.name}: {mistake}")
        return Verdict(detector=self.name, scores=found.scores, flagged=found.flagged, points=found.points)


def _mistake(found: object, clients: int) -> str | None:
    """Say what is wrong with what a detector returned, or return ``None``."""
    if not isinstance(found, Findings):
        return f"expected Findings, found {type(found).__name__}"
    shapes: dict[str, tuple[int, ...]] = {"scores": (clients,), "flagged": (clients,)}
    if found.points is not None:
        shapes["points"] = (clients, 2)
    for name, shape in shapes.items():
        array = getattr(found, name)
        if not isinstance(array, Tensor) or array.shape != shape:
            what = list(array.shape) if isinstance(array, Tensor) else type(array).__name__
            return f"{name}: expected a tensor of shape {list(shape)}, found {what}"
        if name == "flagged" and array.dtype != torch.bool:
            return f"flagged: expected booleans, found {array.dtype}"
        if name != "flagged" and not (array.is_floating_point() and bool(torch.isfinite(array).all())):
            return f"{name}: expected finite floating-point numbers"
    return None


DETECTORS = Registry[Detector]("detector")


def register(name: str, *, source: str, needs_thresholds: bool = False) -> Callable[[Judge], Judge]:
    """Make the decorated function the detector ``name``.

    Raises:
        ValueError: If the name is taken.
    """

    def decorate(judge: Judge) -> Judge:
        detector = Detector(name=name, source=source, needs_thresholds=needs_thresholds, judge=judge)
        DETECTORS.add(name, detector, home=judge.__module__)
        return judge

    return decorate


def names() -> tuple[str, ...]:
    """Return the names of all detectors, sorted."""
    return DETECTORS.names()


def get_detector(name: str) -> Detector:
    """Return a detector by name.

    Raises:
        ConfigError: With the nearest known name.
    """
    return DETECTORS.find(name)


def detect(
    name: str,
    updates: Sequence[Mapping[str, Tensor]],
    sent: Mapping[str, Tensor],
    *,
    examples: Sequence[int],
    format: UpdateFormat,
) -> Verdict:
    """Judge one round by one detector; of several it is cheaper to make one :class:`RoundView` for all.

    Args:
        name: Of the detector.
        updates: Checked arrays of each client: finite, bounded, of the right names and shapes.
        sent: What the server had sent.
        examples: One number per update.
        format: Of the updates.

    Raises:
        ConfigError: For an unknown detector, or one that the run hasn't the arrays for.
    """
    return get_detector(name)(RoundView(updates=updates, sent=sent, examples=examples, format=format))
