"""Poisonings by name: a function with one decorator, which makes the trigger, is a poisoning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from snnfl.config import PoisoningConfig
from snnfl.poisoning.triggers import Trigger
from snnfl.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Attacker:
    """Who puts a trigger on images or recordings.

    Attributes:
        seed: Of the run.
        number: Of the attacker, counted from 0; ``None`` for the whole trigger, by which success is measured.
    """

    seed: int
    number: int | None = None


MakeTrigger: TypeAlias = Callable[[PoisoningConfig, Sequence[int], Attacker], Trigger | None]
"""``(options, shape of an image or a recording, attacker) -> trigger``, or ``None`` if labels alone are changed.

Raises :class:`~snnfl.poisoning.triggers.TriggerError` for a trigger that doesn't fit the images.
"""


@dataclass(frozen=True, kw_only=True)
class Poisoning:
    """A registered poisoning.

    Attributes:
        name: Of ``poisoning.attack``.
        source: Paper and section.
        trigger: Makes the trigger.
        fraction: Part of an attacker's images of other labels that is poisoned if the configuration says none.
        scales: Whether attackers scale what leaves, so that it survives averaging.
    """

    name: str
    source: str
    trigger: MakeTrigger
    fraction: float = 0.5
    scales: bool = False


POISONINGS = Registry[Poisoning]("poisoning", "poisoning.attack")


def register(
    name: str, *, source: str, fraction: float = 0.5, scales: bool = False
) -> Callable[[MakeTrigger], MakeTrigger]:
    """Make the decorated function the poisoning ``name``; arguments as the attributes of :class:`Poisoning`.

    Raises:
        ValueError: If the name is taken.
    """

    def decorate(trigger: MakeTrigger) -> MakeTrigger:
        made = Poisoning(name=name, source=source, trigger=trigger, fraction=fraction, scales=scales)
        POISONINGS.add(name, made, home=trigger.__module__)
        return trigger

    return decorate


def names() -> tuple[str, ...]:
    """Return the names of all poisonings, sorted."""
    return POISONINGS.names()
