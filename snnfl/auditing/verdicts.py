"""Whether a reconstruction is better than the best guess without any update, and which metric says so."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from snnfl.auditing.measures import COMMON, IDENTIFIED, MEASURES, Metric
from snnfl.auditing.scoring import Score
from snnfl.data import DataKind
from snnfl.metrics.images import Rate, wilson


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """An attack's reconstructions against the guesses that need no update.

    Attributes:
        verdict: ``leaks`` if one metric is surely better than the best guess, ``nothing seen`` if all are surely worse,
            else ``unclear``; ``not scored`` where nobody told the truth.
        floor: The guess that is best in the first metric (``name``), and of every judged metric its best guess.
        against_floor: By judged metric ``better``, ``worse`` or ``unclear``; empty if nothing was scored.
    """

    verdict: str
    floor: Mapping[str, Any]
    against_floor: Mapping[str, str]


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Return the interval of a mean by Student's t; of a single value there is none."""
    from scipy.stats import t as student  # half a second to import

    if len(values) < 2:
        return None
    quantile = float(student.ppf((1 + level) / 2, len(values) - 1))
    radius = quantile * statistics.stdev(values) / math.sqrt(len(values))
    centre = statistics.fmean(values)
    return centre - radius, centre + radius


def judged_metrics(kind: DataKind) -> tuple[Metric, ...]:
    """Return what a verdict looks at: the judged metrics of the kind of data, and the identification."""
    return (*MEASURES[kind].judged, *(metric for metric in COMMON if metric.judged))


def judge(scores: Sequence[Score], kind: DataKind) -> Judgement:
    """Compare the scores of an attack's victims with the best guess in each judged metric, victim by victim.

    A guess that is no sample is never exact, so exact reconstructions are better, be there one victim alone. Else,
    since one of k metrics suffices, the intervals of the differences hold at 1 - 0.05/k (Bonferroni). Identifications
    are rare events, of which an interval of a mean sees nothing unless they are many: where no guess makes more of them
    than chance, they are also better if chance alone makes so many too seldom (:func:`_beyond_chance`). For the same
    reason they are better or worse otherwise only where Wilson's interval, too, leaves out the guess: none of three
    clients isn't less than one of a thousand, and all of three not more than a half.
    """
    metrics = judged_metrics(kind)
    if not scores:
        nothing = {"name": None, **{metric.name: None for metric in metrics}}
        return Judgement(verdict="not scored", floor=nothing, against_floor={})
    best = [_best_floor(scores, metric) for metric in metrics]
    bars = [[_floor(score, name, metric) for score in scores] for name, metric in zip(best, metrics, strict=True)]
    floor = {"name": best[0]} | {m.name: statistics.fmean(bar) for m, bar in zip(metrics, bars, strict=True)}
    against = {}
    for metric, bar in zip(metrics, bars, strict=True):
        values = [score.values[metric.name] for score in scores]
        gains = [metric.gain(value, low) for value, low in zip(values, bar, strict=True)]
        exact = all(map(metric.is_exact, values)) and not any(map(metric.is_exact, bar))
        against[metric.name] = "better" if exact else _direction(interval(gains, 1 - 0.05 / len(metrics)))
    guessed = statistics.fmean(bars[[metric.name for metric in metrics].index(IDENTIFIED)])
    by_chance = guessed <= statistics.fmean(score.chance for score in scores)
    if by_chance and _beyond_chance(scores) < 0.025 / len(metrics):
        against[IDENTIFIED] = "better"
    elif against[IDENTIFIED] != "unclear":
        share = _identified(scores, 1 - 0.05 / len(metrics))
        if share.low <= guessed <= share.high:
            against[IDENTIFIED] = "unclear"
    return Judgement(verdict=_verdict(against.values()), floor=floor, against_floor=against)


def judge_labels(scores: Sequence[Score]) -> str:
    """Judge labels as samples are judged, against labels spread evenly over the classes.

    Of a few labels that are all right, or all wrong, Student's t is sure; better or worse are only those whose share's
    Wilson interval is, too.
    """
    if not scores:
        return "not scored"
    direction = _direction(interval([score.label_accuracy - score.label_floor for score in scores]))
    counts = [len(score.true) for score in scores]
    right, guessed = (
        sum(count * share for count, share in zip(counts, shares, strict=True))
        for shares in ([score.label_accuracy for score in scores], [score.label_floor for score in scores])
    )
    share = wilson(right, sum(counts))
    return _verdict(["unclear" if share.low <= guessed / sum(counts) <= share.high else direction])


def reason(against_floor: Mapping[str, str], kind: DataKind) -> str:
    """Say which metrics decided: ``identifiable (IIP); pixels (PSNR) below the floor``; nothing if none was judged."""
    named = [(metric, against_floor[metric.name]) for metric in judged_metrics(kind) if metric.name in against_floor]

    def words(how: str, *, higher: bool | None = None) -> str:
        return ", ".join(m.words for m, found in named if found == how and higher in (None, m.higher))

    parts = [
        words("better"),
        (unclear := words("unclear")) and f"{unclear} unclear",
        (below := words("worse", higher=True)) and f"{below} below the floor",
        (above := words("worse", higher=False)) and f"{above} above the floor",
    ]
    return "; ".join(filter(None, parts))


def _beyond_chance(scores: Sequence[Score]) -> float:
    """Return how often chance identifies a sample of as many victims as there are, or of more.

    Samples of one victim may stand or fall together, so victims are counted: each has one identified with a probability
    of at most its number of samples times that of one.
    """
    from scipy.stats import binomtest  # half a second to import

    identified = sum(score.values[IDENTIFIED] > 0 for score in scores)
    most = min(1.0, max(len(score.true) * score.chance for score in scores))
    return float(binomtest(identified, len(scores), most, alternative="greater").pvalue)


def _identified(scores: Sequence[Score], level: float) -> Rate:
    """Return the share of samples that are identified, with Wilson's interval, each victim being one."""
    identified = sum(score.values[IDENTIFIED] for score in scores)
    return wilson(identified, len(scores), z=statistics.NormalDist().inv_cdf((1 + level) / 2))


def _direction(gain: tuple[float, float] | None) -> str:
    return "unclear" if gain is None else "better" if gain[0] > 0 else "worse" if gain[1] < 0 else "unclear"


def _verdict(directions: Iterable[str]) -> str:
    known = {*directions}
    return "leaks" if "better" in known else "nothing seen" if known == {"worse"} else "unclear"


def _best_floor(scores: Sequence[Score], metric: Metric) -> str:
    """Name the guess without any update that is the best on average; of identification one by chance is one, too."""
    names = [*scores[0].floors, *(["chance"] if metric.name == IDENTIFIED else [])]
    sign = 1 if metric.higher else -1
    return max(names, key=lambda name: sign * statistics.fmean(_floor(score, name, metric) for score in scores))


def _floor(score: Score, name: str, metric: Metric) -> float:
    return score.chance if name == "chance" else score.floors[name][metric.name]
