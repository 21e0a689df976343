"""How well scores tell members from others: ROC, AUC, TPR at a small FPR and balanced accuracy, with intervals.

Scores of several targets are never mixed, since a score means something else for each: a figure is its mean over the
targets. Its interval is that of a mean of so many values (Student's t), so that targets count, not samples; but never
narrower than what drawing the samples of each target alone would give, since few targets may agree by chance. With one
target it is the latter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

LEVELS = (0.01, 0.001)
"""False positive rates at which the true positive rate is reported (Carlini et al., S&P 2022, section III-B)."""

FEWEST_OTHERS = 10
"""Non-members, of all targets together, that lie above the threshold of a false positive rate: fewer make it chance."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its interval.

    Attributes:
        value: Mean over the targets.
        low: Lower end of the interval; NaN where there is none.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, kw_only=True)
class Scored:
    """How well scores tell members from others.

    Attributes:
        auc: Area under the ROC: the probability that a member scores higher than another, ties counting half.
        tpr: True positive rate at each of :data:`LEVELS`; ``None`` where there are too few non-members to tell.
        balanced_accuracy: Mean of the true positive and the true negative rate, at a threshold chosen on other samples.
        targets: How many networks were attacked.
        others: Non-members of all of them.
    """

    auc: Estimate
    tpr: dict[float, Estimate | None]
    balanced_accuracy: Estimate
    targets: int
    others: int


def roc(scores: ArrayLike, members: ArrayLike) -> tuple[Floats, Floats]:
    """Return false and true positive rates at every threshold, each ``[thresholds]``, increasing from 0 to 1.

    Args:
        scores: ``[N]``; the larger, the likelier a member.
        members: The truth, bool ``[N]``.

    Raises:
        ValueError: If all are members, or none.
    """
    from sklearn.metrics import roc_curve

    _check(scores, members)
    fpr, tpr, _ = roc_curve(np.asarray(members), np.asarray(scores), drop_intermediate=False)
    return fpr, tpr


def auc(scores: ArrayLike, members: ArrayLike) -> float:
    """Return the area under the ROC. Arguments as :func:`roc`.

    >>> auc([3.0, 1.0, 2.0, 0.0], [True, True, False, False])
    0.75
    """
    from sklearn.metrics import roc_auc_score

    _check(scores, members)
    return float(roc_auc_score(np.asarray(members), np.asarray(scores)))


def label_matched_auc(scores: ArrayLike, members: ArrayLike, labels: ArrayLike) -> float:
    """Return the area under the ROC of non-members whose labels are as frequent as those of members.

    Each non-member counts as its label does among members, over among non-members: an attack gains nothing by guessing
    labels. Labels that only one side has count nothing.

    Args:
        scores: ``[N]``.
        members: The truth, bool ``[N]``.
        labels: ``[N]``.
    """
    from sklearn.metrics import roc_auc_score

    truth, classes = np.asarray(members, dtype=bool), np.asarray(labels)
    weights = np.ones(len(truth))
    for label in np.unique(classes):
        own = classes == label
        inside, outside = int((own & truth).sum()), int((own & ~truth).sum())
        weights[own & ~truth] = inside / max(1, outside)
        if not outside:
            weights[own] = 0.0
    _check(scores, truth)
    return float(roc_auc_score(truth, np.asarray(scores), sample_weight=weights))


def tpr_at(scores: ArrayLike, members: ArrayLike, level: float) -> float:
    """Return the largest true positive rate whose false positive rate is at most ``level``.

    Where the next threshold takes members and others with one score, part of them is taken by lot, so that scores which
    tell nothing give ``level``.

    >>> tpr_at([1.0, 1.0, 1.0, 1.0], [True, True, False, False], 0.01)
    0.01
    """
    fpr, tpr = roc(scores, members)
    last = int(np.searchsorted(fpr, level, side="right")) - 1
    if last == len(fpr) - 1:
        return 1.0
    slope = (tpr[last + 1] - tpr[last]) / (fpr[last + 1] - fpr[last])
    return float(tpr[last] + slope * (level - fpr[last]))


def balanced_accuracy(scores: ArrayLike, members: ArrayLike) -> float:
    """Return the balanced accuracy at a threshold that is chosen on one half of the samples and tried on the other.

    The best threshold for the very samples that it is tried on would find something in any scores. The halves are drawn
    by a fixed generator, each stratified by membership.
    """
    _check(scores, members)
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(members, dtype=bool)
    half, draw = np.zeros(len(truth), dtype=bool), np.random.default_rng(0)
    for side in (truth, ~truth):
        order = draw.permutation(np.flatnonzero(side))
        half[order[: len(order) // 2]] = True
    if min(truth[half].sum(), (~truth[half]).sum()) == 0:
        return 0.5
    found = [_accuracy_at(_best_threshold(values[by], truth[by]), values[~by], truth[~by]) for by in (half, ~half)]
    return float(np.mean(found))


def score(scores: Sequence[ArrayLike], members: Sequence[ArrayLike], *, level: float = 0.95) -> Scored:
    """Score an attack on one target or several.

    Args:
        scores: Of each target, ``[N]``.
        members: The truth of each, bool ``[N]``.
        level: Of the intervals.

    Raises:
        ValueError: If there is no target, or one has no member or nobody else.
    """
    if not scores:
        raise ValueError("no target to score; give at least one")
    pairs = [(np.asarray(s, dtype=np.float64), np.asarray(m, dtype=bool)) for s, m in zip(scores, members, strict=True)]
    others = sum(int((~truth).sum()) for _, truth in pairs)

    def at(fpr: float) -> Estimate | None:
        if others * fpr < FEWEST_OTHERS:
            return None
        return _estimate(lambda s, m: tpr_at(s, m, fpr), partial(_tpr_variance, level=fpr), pairs, level)

    return Scored(
        auc=_estimate(auc, _auc_variance, pairs, level),
        tpr={fpr: at(fpr) for fpr in LEVELS},
        balanced_accuracy=_estimate(balanced_accuracy, _accuracy_variance, pairs, level),
        targets=len(pairs),
        others=others,
    )


def mean_roc(
    scores: Sequence[ArrayLike], members: Sequence[ArrayLike], *, smallest: float = 1e-4
) -> tuple[Floats, Floats]:
    """Return the ROC averaged over targets, at false positive rates on a logarithmic grid: each ``[points]``."""
    grid = np.geomspace(smallest, 1.0, 121)
    curves = []
    for values, truth in zip(scores, members, strict=True):
        fpr, tpr = roc(values, truth)
        at = np.searchsorted(fpr, grid, side="right") - 1
        after = np.minimum(at + 1, len(fpr) - 1)
        width = np.where(fpr[after] > fpr[at], fpr[after] - fpr[at], 1.0)
        curves.append(tpr[at] + (tpr[after] - tpr[at]) * (grid - fpr[at]) / width)
    return grid, np.mean(curves, axis=0)


def mean_of(
    values: Sequence[float], *, level: float = 0.95, low: float = 0.0, high: float = 1.0, deviation: float = 0.0
) -> Estimate:
    """Return the mean of one value per target, with its interval, cut off at what is possible.

    Args:
        values: At least one; of one alone the interval is NaN, unless its deviation is known.
        level: Of the interval.
        low: Smallest possible value.
        high: Largest possible value.
        deviation: That of the mean which drawing samples alone causes: the interval is not narrower.
    """
    from scipy.stats import norm, t

    mean, half = float(np.mean(values)), float(norm.ppf((1 + level) / 2)) * deviation
    if len(values) < 2 and not deviation:
        return Estimate(value=mean, low=math.nan, high=math.nan)
    if len(values) > 1:
        spread = np.std(values, ddof=1) / math.sqrt(len(values))
        half = max(half, float(t.ppf((1 + level) / 2, len(values) - 1) * spread))
    return Estimate(value=mean, low=max(low, mean - half), high=min(high, mean + half))


def _estimate(
    figure: Callable[[Floats, NDArray[np.bool_]], float],
    variance: Callable[[float, int, int], float],
    pairs: Sequence[tuple[Floats, NDArray[np.bool_]]],
    level: float,
) -> Estimate:
    values = [figure(*pair) for pair in pairs]
    drawn = [variance(v, int(m.sum()), int((~m).sum())) for v, (_, m) in zip(values, pairs, strict=True)]
    return mean_of(values, level=level, deviation=math.sqrt(math.fsum(drawn)) / len(values))


def _auc_variance(value: float, members: int, others: int) -> float:
    """Return the variance of an AUC (Hanley & McNeil, Radiology 1982, eq. 2)."""
    value = min(max(value, 0.5 / members), 1 - 0.5 / members)  # an AUC of 1 isn't certain either
    both = (members - 1) * (value / (2 - value) - value**2) + (others - 1) * (2 * value**2 / (1 + value) - value**2)
    return (value * (1 - value) + both) / (members * others)


def _tpr_variance(value: float, members: int, others: int, *, level: float) -> float:
    """Return the variance of a TPR: that of a share of members, and of the threshold, by the curve's slope.

    The slope is that of the curve of two normal distributions through the point, whose slope at chance is 1.
    """
    from scipy.stats import norm

    value = min(max(value, 0.5 / members), 1 - 0.5 / members)
    slope = float(norm.pdf(norm.ppf(value)) / norm.pdf(norm.ppf(level)))
    return value * (1 - value) / members + slope**2 * level * (1 - level) / others


def _accuracy_variance(value: float, members: int, others: int) -> float:
    """Return the variance of a balanced accuracy whose two rates are alike."""
    return value * (1 - value) * (1 / members + 1 / others) / 4


def _best_threshold(values: Floats, truth: NDArray[np.bool_]) -> float:
    from sklearn.metrics import roc_curve

    fpr, tpr, thresholds = roc_curve(truth, values)
    best = int(np.argmax(tpr - fpr))
    return float(thresholds[best : best + 2].mean())  # half way to the next score, or every near miss is one


def _accuracy_at(threshold: float, values: Floats, truth: NDArray[np.bool_]) -> float:
    said = values >= threshold
    return float((said[truth].mean() + (~said[~truth]).mean()) / 2)


def _check(scores: ArrayLike, members: ArrayLike) -> None:
    truth = np.asarray(members, dtype=bool)
    if np.shape(scores) != truth.shape:
        raise ValueError(f"{np.shape(scores)} scores for {truth.shape} samples; give one score a sample")
    if truth.all() or not truth.any():
        raise ValueError(f"{int(truth.sum())} of {len(truth)} samples are members; both kinds are needed")
