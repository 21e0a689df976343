"""What the best of several attacks finds, without the advantage that choosing the best gives it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Numbers: TypeAlias = np.ndarray[Any, Any]

DRAWS = 4000
"""Of the largest of several studentised means."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The best of several attacks on each victim, chosen on the other victims.

    Attributes:
        attack: Chosen for most victims.
        candidates: How many there were to choose from.
        values: What the attack chosen for a victim found of it, by victim.
        choice: The attack chosen for each victim.
    """

    attack: str
    candidates: int
    values: Mapping[int, float]
    choice: Mapping[int, str]


def cross_fitted(found: Mapping[str, Mapping[int, float]], *, higher: bool = True) -> Chosen | None:
    """Choose for each victim the attack that is the best on average over all others, and take what it found.

    The maximum of several means that are equal in truth lies above each of them, the more the more there are: whoever
    compares the best of seven with the best of two on the victims that they were chosen on finds a difference where
    none is. A victim's value has no part in the choice of its attack here (leave-one-out cross-fitting), so the mean
    is an unbiased estimate of what the chosen attacks find, and errs on the side of too little.

    Args:
        found: By attack and victim; attacks that lack one of the victims aren't chosen from.
        higher: Whether more is better.

    Returns:
        ``None`` without an attack, and of a single victim where there is more than one attack to choose from.
    """
    victims = sorted({victim for values in found.values() for victim in values})
    whole = {attack: values for attack, values in found.items() if values.keys() == {*victims}}
    if not whole or not victims or (len(victims) == 1 and len(whole) > 1):
        return None
    sign = 1 if higher else -1
    choice = {
        victim: max(
            whole, key=lambda attack: sign * statistics.fmean([whole[attack][v] for v in victims if v != victim] or [0])
        )
        for victim in victims
    }
    return Chosen(
        attack=Counter(choice.values()).most_common(1)[0][0],
        candidates=len(whole),
        values={victim: whole[attack][victim] for victim, attack in choice.items()},
        choice=choice,
    )


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The best of some attacks less the best of others.

    Attributes:
        best: The best of the former, chosen on other victims.
        other: The best of the latter.
        value: Mean difference, victim by victim: positive if the former find more.
        interval: At 95 %, for the best of each whichever they are; ``None`` of a single victim.
    """

    best: Chosen
    other: Chosen
    value: float
    interval: tuple[float, float] | None


def compared(
    found: Mapping[str, Mapping[int, float]], others: Mapping[str, Mapping[int, float]], *, higher: bool = True
) -> Compared | None:
    """Compare the best of some attacks with the best of others on the same victims, corrected for both choices.

    The value is of attacks chosen on other victims (:func:`cross_fitted`). The interval holds for all pairs of attacks
    at once: ``m_ij ± c s_ij / sqrt(n)`` with the 95 % quantile c of the largest absolute studentised mean (max-T;
    Hothorn, Bretz & Westfall 2008), the pairs' correlations being those of the victims. The best pair's true difference
    ``max_i min_j`` lies between ``max_i min_j`` of the lower and of the upper ends, whichever pair it is.

    Args:
        found: By attack and victim. One that lacks some victims is completed (:func:`completed`).
        others: As ``found``, of the same victims.
        higher: Whether more is better.

    Returns:
        ``None`` where either has no attack of all victims, or only one victim to choose on.
    """
    victims = sorted({victim for values in found.values() for victim in values})
    sides = [completed(side, victims) for side in (found, others)]
    best, other = (cross_fitted(side, higher=higher) for side in sides)
    if best is None or other is None:
        return None
    sign = 1 if higher else -1
    value = sign * statistics.fmean(best.values[v] - other.values[v] for v in victims)
    ours, theirs = (np.array([[values[v] for v in victims] for values in side.values()], dtype=float) for side in sides)
    ends = _simultaneous(sign * (ours[:, None] - theirs[None]))
    if ends is None:
        return Compared(best=best, other=other, value=value, interval=None)
    low, high = (float(end.min(1).max()) for end in ends)
    return Compared(best=best, other=other, value=value, interval=(min(low, value), max(high, value)))


def completed(found: Mapping[str, Mapping[int, float]], victims: Sequence[int]) -> dict[str, dict[int, float]]:
    """Return what attacks found of all victims: those that were refused some, with each other attack in their place.

    A server knows whom an attack can be tried on, so "one where it applies, else another" is an attack as any other.
    """
    whole = {name: {v: values[v] for v in victims} for name, values in found.items() if values.keys() >= {*victims}}
    parts = {
        name: values for name, values in found.items() if name not in whole and not values.keys().isdisjoint(victims)
    }
    joined = {
        f"{name}, else {other}": {v: values.get(v, rest[v]) for v in victims}
        for name, values in parts.items()
        for other, rest in whole.items()
    }
    return whole | joined


def _simultaneous(differences: Numbers, level: float = 0.95) -> tuple[Numbers, Numbers] | None:
    """Return the ends of intervals of the means over the last axis that hold together; ``None`` of one victim."""
    count = differences.shape[-1]
    if count < 2:
        return None
    from scipy.stats import t as student  # half a second to import

    means, deviations = differences.mean(-1), differences.std(-1, ddof=1)
    scaled = (differences - means[..., None]) / np.where(deviations > 0, deviations, 1.0)[..., None]
    draw = np.random.default_rng(0)
    normal = np.abs(scaled.reshape(-1, count) @ draw.normal(size=(count, DRAWS))) / np.sqrt(count - 1)
    drawn = normal / np.sqrt(draw.chisquare(count - 1, DRAWS) / (count - 1))
    one = float(np.quantile(drawn, level, axis=1).mean())  # what a single pair has, where Student's is exact
    wider = float(np.quantile(drawn.max(0), level)) / one if one > 0 else 1.0
    radius = student.ppf((1 + level) / 2, count - 1) * max(1.0, wider) * deviations / np.sqrt(count)
    return means - radius, means + radius
