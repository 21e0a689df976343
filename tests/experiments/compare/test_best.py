"""The best of a column: against SciPy's paired test, against simulated equals, and in every format."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from experiments.compare.best import LEVEL, Entry, judged
from experiments.compare.tables import as_csv, as_latex, as_markdown, caption
from experiments.compare.views import View

VIEW = View(title="s", value="accuracy", source="rounds", down=("algorithm",), across=())


def entry(row, values, column="", seeds=None):
    return Entry(row=row, column=column, values=tuple(values), seeds=tuple(seeds or range(len(values))))


numbers = st.lists(st.integers(0, 10**6).map(lambda value: value / 10**6), min_size=3, max_size=5)


@given(numbers, numbers)
def test_of_two_rows_the_best_is_told_by_scipys_paired_test(more, less):
    count = min(len(more), len(less))
    more, less = more[:count], less[:count]
    assume(len({round(a - b, 6) for a, b in zip(more, less, strict=True)}) > 1)
    found = ttest_rel(more, less)
    ours, theirs = judged([entry("a", more), entry("b", less)], 1)
    assert ours.difference.p == pytest.approx(found.pvalue, rel=1e-6)
    assert ours.difference.mean == pytest.approx(-theirs.difference.mean)
    assert ours.difference.interval == pytest.approx(tuple(found.confidence_interval(0.95)), abs=1e-9)
    assert (ours.best, theirs.best) == (
        found.pvalue < LEVEL and ours.mean > theirs.mean, found.pvalue < LEVEL and ours.mean < theirs.mean,
    )  # fmt: skip


def test_a_larger_mean_whose_interval_overlaps_is_not_bold():
    """The numbers of an issue: 71.81 ± 6.48 against 71.94 ± 2.36."""
    table = judged([entry("a", [0.78, 0.71, 0.664]), entry("b", [0.745, 0.699, 0.7142])], 1)
    assert table[1].mean > table[0].mean
    assert not any(each.best for each in table)
    for text in (as_markdown([(VIEW, table)]), as_latex([(VIEW, table)])):
        assert "no row is better than every other of its column (paired t-test over the seeds, two-sided" in text
    assert "**" not in as_markdown([(VIEW, table)]).partition("\n")[2]
    assert "mathbf" not in as_latex([(VIEW, table)])


def test_more_rows_ask_for_more():
    """What is below 5 % between two is not between as many that one of them is by chance; a third may spoil it."""
    ours, theirs = [0.50, 0.52, 0.57], [0.40, 0.43, 0.42]
    p = ttest_rel(ours, theirs).pvalue
    assert LEVEL / 3 < p < LEVEL
    far = [entry(f"far {n}", [0.1, 0.1001, 0.1 + 0.0001 * n]) for n in range(3)]
    assert judged([entry("a", ours), entry("b", theirs)], 1)[0].best
    assert not judged([entry("a", ours), entry("b", theirs), *far[:2]], 1)[0].best
    found = judged([entry("a", ours), entry("b", theirs), *far[:2]], 1)[0].difference
    assert (found.rival, found.seeds) == ("b", 3)
    assert found.p == pytest.approx(3 * p)


@pytest.mark.parametrize("rows", [2, 3, 5])
def test_equals_are_rarely_told_apart(rows):
    """The module's bound, on columns of equals that share what a seed does to all."""
    draw, columns = np.random.default_rng(rows), 600
    drawn = draw.normal(size=(columns, 1, 4)) + draw.normal(size=(columns, rows, 4))
    told = sum(any(each.best for each in judged([entry(str(n), row) for n, row in enumerate(c)], 1)) for c in drawn)
    assert told <= LEVEL * columns + 3 * (LEVEL * columns) ** 0.5


@pytest.mark.parametrize(
    ("ours", "theirs", "best"),
    [
        ([5.0, 5.0], [4.0, 4.0], True),  # bytes: without chance
        ([5.0, 5.0], [5.0, 5.0], False),
        ([0.9, 0.9], [0.8, 0.8], False),  # shares of images that happen to be equal
        ([0.91, 0.92], [0.90, 0.91], False),  # the same number of images more on both seeds: nothing tells of chance
        ([0.9], [0.1], False),
    ],
)
def test_without_spread_there_is_no_test(ours, theirs, best):
    table = judged([entry("a", ours), entry("b", theirs)], 1)
    assert [each.best for each in table] == [best, False]
    assert judged(table, 0) == table
    assert judged([entry("a", [-v for v in ours]), entry("b", [-v for v in theirs])], -1)[0].best == best


def test_rows_are_compared_on_the_seeds_that_both_have():
    table = judged([entry("a", [0.9, 0.8, 0.1], seeds=[0, 1, 2]), entry("b", [0.2, 0.7, 0.3], seeds=[1, 0, 3])], 1)
    found = table[0].difference
    assert (found.rival, found.seeds) == ("b", 2)
    assert found.mean == pytest.approx((0.9 - 0.7 + 0.8 - 0.2) / 2)
    assert judged([entry("a", [0.9], seeds=[0]), entry("b", [0.2], seeds=[1])], 1)[0].difference is None


def test_the_csv_has_difference_interval_and_number():
    table = judged([entry("a", [0.90, 0.91, 0.93], "8"), entry("b", [0.5, 0.52, 0.49], "8"), entry("c", [0.1], "9")], 1)
    first, second, alone = csv.DictReader(as_csv([(VIEW, table)]).splitlines())
    assert (first["best"], second["best"], alone["best"]) == ("yes", "", "")
    assert (first["rival"], second["rival"], alone["rival"]) == ("b", "a", "")
    assert (first["seeds"], first["pairs"], alone["seeds"], alone["pairs"]) == ("3", "3", "1", "")
    assert float(first["difference"]) == pytest.approx(-float(second["difference"])) == pytest.approx(0.41)
    assert float(first["difference_low"]) < 0.41 < float(first["difference_high"])
    assert float(first["p"]) == float(second["p"]) < LEVEL
    assert alone["difference"] == alone["difference_low"] == alone["p"] == ""
    assert "bold: better than every other row" in caption((VIEW, table))
    assert "over 1 to 3 seeds" in caption((VIEW, table))
