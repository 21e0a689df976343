"""Who attacks in which round, and with which trigger: all from the configuration, which is the ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from snnfl import rng
from snnfl.config import Config, ConfigError
from snnfl.poisoning.registry import POISONINGS, Attacker
from snnfl.poisoning.triggers import Trigger, TriggerError


def attackers(config: Config) -> tuple[int, ...]:
    """Return the partitions of the poisoning clients, in the order of the draw; none without an attack.

    The first of ``n`` are the same for every ``n``.
    """
    if config.poisoning.attack == "none":
        return ()
    draw = rng.generator(config.run.seed, "attackers")
    order: list[int] = torch.randperm(config.data.clients, generator=draw).tolist()
    return tuple(order[: config.poisoning.attackers])


def attacks_in(config: Config, server_round: int) -> tuple[int, ...]:
    """Return the partitions of the clients that attack in a round, counted from 1, if they are selected."""
    return attackers(config) if server_round >= config.poisoning.first_round else ()


def trigger(config: Config, shape: Sequence[int], *, partition: int | None = None) -> Trigger | None:
    """Return the run's trigger, or ``None`` where the attack has none.

    Args:
        config: Of the run.
        shape: Of an image, ``(C, H, W)``, or of a recording, ``(T, C, H, W)``.
        partition: Of an attacker, who may train with a part of it; of anybody else, or ``None``: the whole one.

    Raises:
        ConfigError: If it doesn't fit the images, or nothing has the poisoning's name.
    """
    poisoning = config.poisoning
    if poisoning.attack == "none":
        return None
    order = attackers(config)
    number = order.index(partition) if partition in order else None
    try:
        function = POISONINGS.find(poisoning.attack).trigger
        who = Attacker(seed=config.run.seed, number=number)
        make = partial(function, poisoning, shape, who)
        return POISONINGS.made(poisoning.attack, make, Trigger, type(None), through=(TriggerError,))
    except TriggerError as error:
        raise ConfigError(f"poisoning.attack={poisoning.attack}: {error}") from None


def check_poisoning(config: Config, shape: Sequence[int], classes: int) -> None:
    """Check what only the data can tell.

    Raises:
        ConfigError: For an unknown poisoning, a label that doesn't exist, or a trigger that doesn't fit the images.
    """
    for name in ("target", "source"):
        label = getattr(config.poisoning, name)
        if label is not None and label >= classes:
            raise ConfigError(
                f"poisoning.{name}={label}: data.source={config.data.source} has labels 0 to {classes - 1}"
            )
    trigger(config, shape)
