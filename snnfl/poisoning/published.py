"""The published poisonings: a trigger on images or recordings, a changed label, and a scaled update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from snnfl import rng
from snnfl.config import PoisoningConfig
from snnfl.poisoning.event_triggers import (
    Polarity,
    moving_event_trigger,
    static_event_trigger,
    temporal_event_trigger,
)
from snnfl.poisoning.registry import Attacker, register
from snnfl.poisoning.triggers import PARTS, Trigger, blended_trigger, distributed_trigger, square_trigger

SQUARE, BAR, STRENGTH = 3, 4, 0.2
"""What null stands for: the side of a square and the length of a bar in pixels, the weight of a blended pattern."""

POLARITY: Polarity = "positive"
"""What null stands for."""


@register("model_replacement", source="Bagdasaryan et al. 2020, section 4.2", scales=True)
@register("badnets", source="Gu et al. 2017, section 4.1")
def square(poisoning: PoisoningConfig, shape: Sequence[int], attacker: Attacker) -> Trigger:
    """Put a bright square into the bottom right corner, of a recording in every frame."""
    return square_trigger(shape, size=poisoning.trigger_size or SQUARE)


@register("blended", source="Chen et al. 2017, section 4.2")
def blended(poisoning: PoisoningConfig, shape: Sequence[int], attacker: Attacker) -> Trigger:
    """Mix a random pattern into the whole image."""
    draw = rng.generator(attacker.seed, "blended pattern")
    return blended_trigger(shape, strength=poisoning.strength or STRENGTH, generator=draw)


@register("distributed", source="Xie et al. 2020, section 4.1")
def distributed(poisoning: PoisoningConfig, shape: Sequence[int], attacker: Attacker) -> Trigger:
    """Let each attacker train with one of four bars."""
    part = None if attacker.number is None else attacker.number % PARTS
    return distributed_trigger(shape, size=poisoning.trigger_size or BAR, part=part)


@register("event_static", source="Sneaky Spikes, Abad et al. 2024")
def event_static(poisoning: PoisoningConfig, shape: Sequence[int], attacker: Attacker) -> Trigger:
    """Put a square of events into every frame."""
    return static_event_trigger(shape, **_square(poisoning))


@register("event_moving", source="Sneaky Spikes, Abad et al. 2024")
def event_moving(poisoning: PoisoningConfig, shape: Sequence[int], attacker: Attacker) -> Trigger:
    """Put a square of events into every frame, at one of three places in turn."""
    return moving_event_trigger(shape, **_square(poisoning))


@register("event_temporal", source="Spikewhisper, Fu et al. 2024; Time-Bandits, Abad et al. 2025")
def event_temporal(poisoning: PoisoningConfig, shape: Sequence[int], attacker: Attacker) -> Trigger:
    """Let each attacker train with the square of events in a time slice of its own."""
    parts = max(1, poisoning.attackers)
    return temporal_event_trigger(shape, **_square(poisoning), part=attacker.number, parts=parts)


def _square(poisoning: PoisoningConfig) -> dict[str, Any]:
    """Return the options of a square of events."""
    return {
        "size": poisoning.trigger_size or SQUARE,
        "polarity": poisoning.polarity or POLARITY,
        "strength": poisoning.strength,
    }


@register("label_flip", source="Tolpegin et al. 2020, section 3", fraction=1.0)
def label_flip(poisoning: PoisoningConfig, shape: Sequence[int], attacker: Attacker) -> None:
    """Change labels alone, of all images."""
