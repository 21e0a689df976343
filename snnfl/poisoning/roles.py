"""Who attacks in which round, and with which trigger: all from the configuration, which is the ground truth."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from snnfl import rng
from snnfl.config import Config, ConfigError
from snnfl.poisoning.triggers import (
    PARTS,
    Trigger,
    TriggerError,
    blended_trigger,
    distributed_trigger,
    square_trigger,
)

SQUARE, BAR, STRENGTH = 3, 4, 0.2
"""What null stands for: the side of a square and the length of a bar in pixels, the weight of a blended pattern."""


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
        shape: Of an image, ``(C, H, W)``.
        partition: Of an attacker, who of a distributed trigger trains with a part; ``None``: the whole one.

    Raises:
        ConfigError: If it doesn't fit the images.
    """
    poisoning = config.poisoning
    if not poisoning.triggered:
        return None
    try:
        if poisoning.attack == "blended":
            draw = rng.generator(config.run.seed, "blended pattern")
            return blended_trigger(shape, strength=poisoning.strength or STRENGTH, generator=draw)
        if poisoning.attack == "distributed":
            part = None if partition is None else attackers(config).index(partition) % PARTS
            return distributed_trigger(shape, size=poisoning.trigger_size or BAR, part=part)
        return square_trigger(shape, size=poisoning.trigger_size or SQUARE)
    except TriggerError as error:
        raise ConfigError(f"poisoning.attack={poisoning.attack}: {error}") from None


def check_poisoning(config: Config, shape: Sequence[int], classes: int) -> None:
    """Check what only the data can tell.

    Raises:
        ConfigError: For a label that doesn't exist, or a trigger that doesn't fit the images.
    """
    for name in ("target", "source"):
        label = getattr(config.poisoning, name)
        if label is not None and label >= classes:
            raise ConfigError(
                f"poisoning.{name}={label}: data.source={config.data.source} has labels 0 to {classes - 1}"
            )
    trigger(config, shape)
