"""Which row of a table's column is the best: by a paired test over the seeds, not by its mean alone.

The row with the best mean is compared with every other row of its column. Both rows of a pair have the same seeds, and
so the same partitions and initial weights; their differences are tested by Student's t, on both sides. With ``k`` rows,
each p-value counts ``k - 1`` times (Bonferroni), and the row is the best if all are below 5 %.

In at most 5 % of columns a row is then called the best that isn't better than every other one. Let ``j`` be as good as
any. That another row is ahead of ``j`` has a chance of ``0.05 / (2 (k - 1))`` for each of ``k - 1`` rows, together
2.5 %; if there are more that are as good as ``j``, that it is ahead of one of them has no larger chance than these.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from snnfl.auditing.verdicts import interval

LEVEL = 0.05
TEST = f"paired t-test over the seeds, two-sided at {100 * LEVEL:g} %, Bonferroni for the number of rows"

EXACT = 1e-9
"""A deviation below this part of the values is rounding."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An entry less its rival, by seed.

    Attributes:
        rival: Row of the best other entry of the column; the best entry's is the second.
        seeds: How many both have.
        mean: Of the differences.
        interval: 95 % interval of the mean, by Student's t; ``None`` where ``p`` is.
        p: Of a difference as large between equals, corrected for the number of rows; ``None`` where nothing can be
            tested.
    """

    rival: str
    seeds: int
    mean: float
    interval: tuple[float, float] | None
    p: float | None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A cell of a table, or a point of a figure.

    Attributes:
        row: Its label.
        column: Its label, empty without columns.
        values: One per seed.
        parts: The labels that make the row's, one per axis.
        seeds: These.
        paper: The published value, if there is one.
        difference: To its rival; ``None`` where it isn't said what is better, or nobody else is.
        best: Whether it is better than every other one of its column.
    """

    row: str
    column: str
    values: tuple[float, ...]
    parts: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    paper: float | None = None
    difference: Difference | None = None
    best: bool = False

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over seeds; of one seed there is none."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def paper_difference(self) -> float | None:
        """What was measured, less what is published."""
        return None if self.paper is None else self.mean - self.paper


def judged(entries: Sequence[Entry], sign: int) -> list[Entry]:
    """Compare the entries of each column, and mark the best.

    Args:
        entries: Of a table.
        sign: 1 where more is better, -1 where less is, 0 where it depends on whose side one is: nothing is marked.
    """
    if not sign:
        return list(entries)
    columns: dict[str, list[Entry]] = {}
    for entry in entries:
        columns.setdefault(entry.column, []).append(entry)
    return [_judged(entry, columns[entry.column], sign) for entry in entries]


def p_value(differences: Sequence[float], scale: float) -> float | None:
    """Return the two-sided p-value of Student's t for a mean of zero.

    Where all differences are the same, there is nothing to tell chance by: two accuracies on few images often differ
    by the same number of them. Quantities without any chance, such as bytes, are for :func:`_compared`.

    Args:
        differences: One per seed.
        scale: Size of the values, by which rounding is told.

    Returns:
        ``None`` for a single seed, or equal differences.
    """
    from scipy.stats import t as student  # half a second to import

    count = len(differences)
    if count < 2 or (deviation := statistics.stdev(differences)) <= EXACT * scale:
        return None
    statistic = statistics.fmean(differences) * math.sqrt(count) / deviation
    return float(2 * student.sf(abs(statistic), count - 1))


def _judged(entry: Entry, column: Sequence[Entry], sign: int) -> Entry:
    others = sorted((other for other in column if other is not entry), key=lambda other: -sign * other.mean)
    if not others:
        return entry
    differences = [_compared(entry, other, len(others)) for other in others]
    ahead = all(
        found is not None and found.p is not None and found.p < LEVEL and sign * found.mean > 0 for found in differences
    )
    return replace(entry, difference=differences[0], best=ahead)


def _compared(entry: Entry, other: Entry, comparisons: int) -> Difference | None:
    """Compare two rows on the seeds that both have; ``None`` if there are none."""
    ours, theirs = (dict(zip(each.seeds, each.values, strict=True)) for each in (entry, other))
    pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    if not pairs:
        return None
    values = [a - b for a, b in pairs]
    scale = max(abs(value) for pair in pairs for value in pair)
    p = p_value(values, scale)
    constant = len(pairs) > 1 and all(max(row) - min(row) <= EXACT * scale for row in zip(*pairs, strict=True))
    if constant and scale > 1:  # without chance, as bytes are; shares of images never are, be they equal on two seeds
        p = float(abs(values[0]) <= EXACT * scale)
    return Difference(
        rival=other.row,
        seeds=len(values),
        mean=statistics.fmean(values),
        interval=None if p is None else interval(values),
        p=None if p is None else min(1.0, comparisons * p),
    )
