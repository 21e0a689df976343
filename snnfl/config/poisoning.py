"""Clients that poison the model, and the server's detectors of them (SNFL section 5.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from snnfl.config.declaration import answers_nearest, option


@answers_nearest
@dataclass(frozen=True, kw_only=True)
class PoisoningConfig:
    """Which clients attack, and how. They are the simulation's ground truth: a server learns of them by updates alone.

    What the named attack doesn't use must stay at its default.
    """

    attack: str = option(
        "none",
        doc="what poisoning clients do: badnets, blended or distributed put a trigger on images, event_static, "
        "event_moving or event_temporal on recordings of events, label_flip flips labels, model_replacement scales a "
        "triggered update; none",
    )
    attackers: int = option(
        1, low=0, doc="poisoning clients, drawn by the seed; 0: success is measured, nobody attacks"
    )
    target: int = option(0, low=0, doc="label that the attack wants")
    source: int | None = option(None, low=0, doc="label_flip: label that becomes the target; null: every other")
    fraction: float | None = option(
        None, above=0.0, high=1.0, doc="part of an attacker's images of other labels; null: 0.5, label_flip 1"
    )
    trigger_size: int | None = option(
        None, low=1, doc="pixels: side of the square (null: 3), of distributed the length of a bar (null: 4)"
    )
    polarity: Literal["negative", "positive", "both"] | None = option(
        None, doc="of the events that a trigger of event_static, event_moving and event_temporal has; null: positive"
    )
    strength: float | None = option(
        None,
        above=0.0,
        high=1.0,
        doc="blended: weight of the pattern (null: 0.2); on events: events of a pixel in a frame, as a part of the "
        "largest count of the data (null: one event)",
    )
    scale: float | None = option(
        None, above=0.0, doc="model_replacement: factor of the update; null: clients per round / attackers"
    )
    scale_ann: bool = option(
        False, doc="model_replacement of an S-run: scale the ANN before it is converted, not what leaves"
    )
    first_round: int = option(1, low=1, doc="round from which they attack")
    forge_thresholds: bool = option(
        False, doc="send the thresholds of an honest model beside the poisoned weights; S-runs alone"
    )


@answers_nearest
@dataclass(frozen=True, kw_only=True)
class DetectionConfig:
    """What the server makes of the updates of a round before it aggregates them."""

    detectors: tuple[str, ...] = option(
        (), doc="of thresholds, log_thresholds, norm, cosine, krum and hdbscan; they judge and change nothing"
    )
    exclude: str | None = option(
        None, doc="the detector whose verdict keeps updates out of the aggregate, which is then a defence; null: none"
    )
