"""Triggers: a pattern and the weight with which it replaces each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PARTS = 4
"""Pieces of a distributed trigger (Xie et al. 2020, Fig. 3)."""

GAP = 2
"""Pixels between two pieces, down and across (Xie et al. 2020: "trigger gap")."""


class TriggerError(ValueError):
    """A trigger that doesn't fit the images; one line."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trigger:
    """``x -> (1 - w) x + w k``, pixel by pixel.

    Attributes:
        weight: ``w`` in [0, 1], shape ``[H, W]`` or that of ``pattern``; 0 leaves a pixel as it is, exactly.
        pattern: ``k`` in [0, 1], shape ``[C, H, W]``, the same in all frames of a recording; or ``[T, C, H, W]``.
        unit: Stored value that a pattern of 1 means; ``None`` is the brightest of the data.
    """

    weight: Tensor
    pattern: Tensor
    unit: float | None = None

    def stamp(self, images: Tensor, *, white: float) -> Tensor:
        """Put the trigger on images.

        Args:
            images: Stored values, shape ``[N, C, H, W]`` or ``[N, T, C, H, W]``: ``uint8``, or ``float32`` in
                0..``white``.
            white: The brightest value: 255 of pictures in ``uint8``, of events the largest count.

        Returns:
            Images of the same type and shape; ``uint8`` is rounded to the nearest value.
        """
        weight, unit = self.weight.expand_as(self.pattern), white if self.unit is None else self.unit
        touched = weight > 0
        mixed = torch.lerp(images[..., touched].float(), self.pattern[touched] * unit, weight[touched])
        stamped = images.clone()
        stamped[..., touched] = mixed.round().to(images.dtype) if images.dtype == torch.uint8 else mixed
        return stamped


def square_trigger(shape: Sequence[int], *, size: int = 3) -> Trigger:
    """Return a square of bright pixels in the bottom right corner (BadNets, Gu et al. 2017, section 4.1).

    With size 1 it is the paper's single bright pixel.

    Args:
        shape: Of an image, ``(C, H, W)``, or of a recording, ``(T, C, H, W)``, whose frames are all alike.
        size: Side of the square in pixels.

    Raises:
        TriggerError: If it doesn't fit.
    """
    channels, height, width = _picture(shape)
    if size > min(height, width):
        raise TriggerError(f"poisoning.trigger_size={size}: images have {height}x{width} pixels")
    weight = torch.zeros(height, width)
    weight[height - size :, width - size :] = 1
    return Trigger(weight=weight, pattern=torch.ones(channels, height, width))


def blended_trigger(shape: Sequence[int], *, strength: float = 0.2, generator: torch.Generator) -> Trigger:
    """Return a random pattern that is mixed into the whole image (Chen et al. 2017, section 4.2, "random pattern").

    ``(1 - strength) x + strength k`` with ``k`` uniform in [0, 1].

    Args:
        shape: Of an image, ``(C, H, W)``, or of a recording, ``(T, C, H, W)``, whose frames are all alike.
        strength: The paper poisons with 0.2.
        generator: Draws the pattern.

    Raises:
        TriggerError: If the examples are no images.
    """
    channels, height, width = _picture(shape)
    pattern = torch.rand(channels, height, width, generator=generator)
    return Trigger(weight=torch.full((height, width), strength), pattern=pattern)


def distributed_trigger(shape: Sequence[int], *, size: int = 4, part: int | None = None) -> Trigger:
    """Return one or all of four bright horizontal bars in the top left corner (DBA, Xie et al. 2020, section 4.1).

    The bars are one pixel high and stand two by two, :data:`GAP` pixels apart. An attacker trains with one of them,
    the trigger that the attack is evaluated with is all four.

    Args:
        shape: Of an image, ``(C, H, W)``, or of a recording, ``(T, C, H, W)``, whose frames are all alike.
        size: Length of a bar in pixels (the paper's "trigger size": 4 of MNIST).
        part: From 0 to 3, row by row; ``None`` is all.

    Raises:
        TriggerError: If the four bars don't fit.
    """
    channels, height, width = _picture(shape)
    if 2 * size + GAP > width or height < 2 + GAP:
        raise TriggerError(
            f"poisoning.trigger_size={size}: two bars and {GAP} pixels between them don't fit on {height}x{width} "
            f"pixels; at most {max(0, (width - GAP) // 2)} do"
        )
    weight = torch.zeros(height, width)
    for number in range(PARTS) if part is None else [part]:
        row, left = number // 2 * (1 + GAP), number % 2 * (size + GAP)
        weight[row, left : left + size] = 1
    return Trigger(weight=weight, pattern=torch.ones(channels, height, width))


def _picture(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return channels, height and width of a picture, or of each frame of a recording."""
    if len(shape) not in (3, 4):
        raise TriggerError(f"examples of shape {list(shape)} are no images: a trigger needs some; try label_flip")
    channels, height, width = shape[-3:]
    return channels, height, width
