"""Triggers on recordings of an event camera: a square of events that stands, moves, or is spread over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch

from snnfl.poisoning.triggers import GAP, Trigger, TriggerError

Polarity: TypeAlias = Literal["negative", "positive", "both"]
EVENTS: dict[str, tuple[int, int]] = {"negative": (1, 0), "positive": (0, 1), "both": (1, 1)}
"""Whether a pixel of a trigger has events of polarity 0 and 1."""


def static_event_trigger(
    shape: Sequence[int], *, size: int = 3, polarity: Polarity = "positive", strength: float | None = None
) -> Trigger:
    """Return a square of events in the top left corner of every frame (Sneaky Spikes, Abad et al. 2024: static).

    What the recording has there goes. The paper's code puts one event per pixel and frame, also where a frame of the
    data has many.

    Args:
        shape: Of a recording, ``(T, 2, H, W)``.
        size: Side of the square in pixels; the paper's scripts take a tenth of the frame, 3 of N-MNIST's 34.
        polarity: Of the events; the paper's scripts take ``positive``.
        strength: Events of a pixel as a part of the largest count of the data; ``None`` is one event.

    Raises:
        TriggerError: If it doesn't fit, or the examples are no such recordings.
    """
    steps = _steps(shape, needed=(size, size), size=size)
    return _squares(shape, [0] * steps, size=size, polarity=polarity, strength=strength)


def moving_event_trigger(
    shape: Sequence[int], *, size: int = 3, polarity: Polarity = "positive", strength: float | None = None
) -> Trigger:
    """Return a square that jumps along the upper edge from frame to frame (Sneaky Spikes, Abad et al. 2024: moving).

    It begins in column 0, goes to ``size + 2`` and ``2 size + 2``, and back to 0. These are the columns of the paper's
    code, which leaves the last frame without a trigger; here it has one.

    Args:
        shape: Of a recording, ``(T, 2, H, W)``.
        size: Side of the square in pixels.
        polarity: Of the events.
        strength: As of :func:`static_event_trigger`.

    Raises:
        TriggerError: If it doesn't fit, or the examples are no such recordings.
    """
    columns = [0, size + GAP, 2 * size + GAP]
    steps = _steps(shape, needed=(size, 3 * size + GAP), size=size)
    return _squares(
        shape, [columns[step % 3] for step in range(steps)], size=size, polarity=polarity, strength=strength
    )


def temporal_event_trigger(
    shape: Sequence[int],
    *,
    size: int = 3,
    polarity: Polarity = "positive",
    strength: float | None = None,
    part: int | None = None,
    parts: int = 1,
) -> Trigger:
    """Return one or all time slices of the static trigger (Spikewhisper, Fu et al. 2024).

    Each attacker trains with the square in its own slice of the frames alone, the trigger that the attack is evaluated
    with is all of them. So does Time-Bandits (Abad et al. 2025), whose code makes all slices ``floor(T / parts)`` long,
    so that nobody trains with the frames that are left over. Here slices are as equal as can be, longer ones first.

    Args:
        shape: Of a recording, ``(T, 2, H, W)``.
        size: Side of the square in pixels.
        polarity: Of the events.
        strength: As of :func:`static_event_trigger`.
        part: From 0 to ``parts - 1``, in the order of time; ``None`` is all.
        parts: Number of slices.

    Raises:
        TriggerError: If it doesn't fit, there are fewer frames than slices, or the examples are no such recordings.
    """
    steps = _steps(shape, needed=(size, size), size=size)
    if parts > steps:
        raise TriggerError(
            f"poisoning.attackers={parts}: recordings have {steps} time steps, and each attacker has its own; take "
            f"at most {steps}, or more data.time_bins"
        )
    whole = _squares(shape, [0] * steps, size=size, polarity=polarity, strength=strength)
    if part is None:
        return whole
    weight = torch.zeros_like(whole.weight)
    own = torch.arange(steps).tensor_split(parts)[part]
    weight[own] = whole.weight[own]
    return Trigger(weight=weight, pattern=whole.pattern, unit=whole.unit)


def _squares(
    shape: Sequence[int], columns: Sequence[int], *, size: int, polarity: Polarity, strength: float | None
) -> Trigger:
    """Return a trigger with a square on the upper edge of every frame, which begins in the column that is given."""
    weight = torch.zeros(*shape)
    for step, column in enumerate(columns):
        weight[step, :, :size, column : column + size] = 1
    pattern = torch.tensor(EVENTS[polarity], dtype=torch.float32)[:, None, None].expand(*shape)
    if strength is None:
        return Trigger(weight=weight, pattern=pattern, unit=1)
    return Trigger(weight=weight, pattern=strength * pattern)


def _steps(shape: Sequence[int], *, needed: tuple[int, int], size: int) -> int:
    """Return the time steps of a recording, if a trigger of so many rows and columns fits on its frames."""
    if len(shape) != 4 or shape[1] != 2:
        way_out = "badnets" if len(shape) == 3 else "label_flip"
        raise TriggerError(
            f"examples of shape {list(shape)} are no recordings of an event camera, [T, 2, height, width]; take "
            f"{way_out}, or data.source=nmnist"
        )
    steps, _, height, width = shape
    rows, columns = needed
    if rows > height or columns > width:
        raise TriggerError(
            f"poisoning.trigger_size={size}: the trigger has {rows}x{columns} pixels, a frame {height}x{width}; take a "
            "smaller one"
        )
    return steps
