"""What an attack returns of one victim, and the check of it: an attack is code that anybody may have written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snnfl.threat import ServerView


class AttackError(RuntimeError):
    """An attack that failed, or returned what is no reconstruction; one line that names it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstruction:
    """What an attack function returns of one victim.

    Attributes:
        images: Normalised inputs, as the client's network sees them, ``[N, *input_shape]`` with ``N >= 1``, floating
            point, finite. They are clipped to pixels in [0, 1] afterwards.
        labels: Classes of them, ``[N]``, whole numbers of at least 0.
        objective: Smallest value of what the attack minimised; finite, and comparable within one attack alone.
        curve: ``(iteration, smallest objective so far)``, at least one point, iterations ascending from 0 or more.
        trail: The images at each point of the curve, as ``images``.
        choice: The prior and step size that the attack took, in words; empty where it has none.
        explained: Whether the attack explains the update as well as updates of its own making; ``True`` where it made
            none.
    """

    images: Tensor
    labels: Tensor
    objective: float
    curve: tuple[tuple[int, float], ...]
    trail: tuple[Tensor, ...]
    choice: str = ""
    explained: bool = True


def check_reconstructions(found: object, views: Sequence[ServerView]) -> list[Reconstruction]:
    """Return what an attack function returned, if it is one valid reconstruction per view, in their order.

    Raises:
        AttackError: Saying what was expected and what was found.
    """
    if not isinstance(found, Sequence) or len(found) != len(views):
        what = f"a {type(found).__name__} of {len(found)}" if isinstance(found, Sequence) else type(found).__name__
        raise AttackError(f"expected a list of {len(views)} reconstructions, one per view, found {what}")
    for item, view in zip(found, views, strict=True):
        if not isinstance(item, Reconstruction):
            raise AttackError(f"expected a Reconstruction per view, found {type(item).__name__}")
        if (mistake := _mistake(item, view.input_shape)) is not None:
            raise AttackError(mistake)
    return list(found)


def _mistake(item: Reconstruction, shape: tuple[int, ...]) -> str | None:
    """Say what is wrong with a reconstruction, or return ``None``."""
    if (mistake := _images_mistake("images", item.images, shape)) is not None:
        return mistake
    labels = item.labels
    if not isinstance(labels, Tensor) or labels.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8):
        return f"labels: expected a tensor of whole numbers, found {_kind(labels)}"
    if labels.shape != (len(item.images),):
        return f"labels: expected one per image, [{len(item.images)}], found {list(labels.shape)}"
    if labels.min() < 0:
        return f"labels: expected classes, 0 or more, found {int(labels.min())}"
    if not _finite(item.objective):
        return f"objective: expected a finite number, found {item.objective!r}"
    return _curve_mistake(item, shape)


def _curve_mistake(item: Reconstruction, shape: tuple[int, ...]) -> str | None:
    """Say what is wrong with the points of a curve and their images, or return ``None``."""
    try:
        points = [(iteration, value) for iteration, value in item.curve]
    except (TypeError, ValueError):
        return f"curve: expected pairs of iteration and objective, found {_kind(item.curve)}"
    if not points or not all(isinstance(iteration, int) and _finite(value) for iteration, value in points):
        return "curve: expected at least one pair of iteration and finite objective"
    iterations = [iteration for iteration, _ in points]
    if iterations[0] < 0 or iterations != sorted(set(iterations)):
        return f"curve: expected ascending iterations from 0 or more, found {iterations[:8]}"
    if not isinstance(item.trail, Sequence) or len(item.trail) != len(points):
        length = len(item.trail) if isinstance(item.trail, Sequence) else _kind(item.trail)
        return f"trail: expected the images at each of the curve's {len(points)} points, found {length}"
    mistakes = (_images_mistake("trail", images, shape) for images in item.trail)
    return next((mistake for mistake in mistakes if mistake is not None), None)


def _images_mistake(name: str, images: object, shape: tuple[int, ...]) -> str | None:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        return f"{name}: expected a tensor of floating-point numbers, found {_kind(images)}"
    if images.shape[1:] != shape or images.dim() != len(shape) + 1 or not len(images):
        return f"{name}: expected shape [N, {', '.join(map(str, shape))}] with N of at least 1, found {[*images.shape]}"
    return None if bool(torch.isfinite(images).all()) else f"{name}: not all values are finite"


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _kind(value: object) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
