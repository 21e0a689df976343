"""Choosing the best of many attacks on the victims that they are measured on finds what isn't there."""

from __future__ import annotations

import numpy as np
import pytest

from snnfl.auditing.selection import compared, cross_fitted
from snnfl.auditing.verdicts import interval


def attacks(values, prefix):
    return {f"{prefix}{row}": dict(enumerate(map(float, of_row))) for row, of_row in enumerate(values)}


def trials(count, *, gap=0.0, victims=10, seed=0):
    """Yield seven attacks and two others that find the same on average, but for ``gap`` of the first."""
    draw = np.random.default_rng(seed)
    for _ in range(count):
        hardness = draw.normal(0, 3, victims)
        ours = hardness + draw.normal(0, 1, (7, victims))
        ours[0] += gap
        yield ours, hardness + draw.normal(0, 1, (2, victims))


def test_of_equals_the_naive_best_of_seven_wins_and_the_corrected_one_does_not():
    naive, corrected = [], []
    for ours, theirs in trials(300):
        naive.append(ours.mean(1).max() - theirs.mean(1).max())
        corrected.append(compared(attacks(ours, "a"), attacks(theirs, "b")).value)
    error = 3 * np.std(corrected) / np.sqrt(len(corrected))
    assert np.mean(naive) > 0.15
    assert abs(np.mean(corrected)) < error < 0.15


@pytest.mark.parametrize("gap", [0.0, 1.0])
def test_the_interval_holds_the_true_difference_of_the_bests(gap):
    inside = 0
    for ours, theirs in trials(100, gap=gap, seed=1):
        low, high = compared(attacks(ours, "a"), attacks(theirs, "b")).interval
        inside += low <= gap <= high
    assert inside >= 95


def test_a_true_advantage_is_seen():
    found = compared(*(attacks(side, name) for side, name in zip(next(trials(1, gap=4.0)), "ab", strict=True)))
    assert found.best.attack == "a0"
    assert found.interval[0] > 0


def test_one_attack_against_one_has_students_interval():
    ours, theirs = {"a": {0: 3.0, 1: 5.0, 2: 9.0, 3: 4.0}}, {"b": {0: 1.0, 1: 4.0, 2: 5.0, 3: 4.5}}
    found = compared(ours, theirs)
    differences = [2.0, 1.0, 4.0, -0.5]
    assert found.value == pytest.approx(np.mean(differences))
    assert found.interval == pytest.approx(interval(differences))


def test_of_a_distance_the_smallest_is_the_best():
    found = compared({"a": {0: 1.0, 1: 2.0}, "bad": {0: 9.0, 1: 8.0}}, {"b": {0: 3.0, 1: 3.5}}, higher=False)
    assert (found.best.attack, found.value) == ("a", pytest.approx(1.75))


def test_a_victim_has_no_part_in_the_choice_of_its_own_attack():
    lucky = {"a": {0: 100.0, 1: 0.0, 2: 0.0}, "b": {0: 1.0, 1: 1.0, 2: 1.0}}
    assert cross_fitted(lucky).values == {0: 1.0, 1: 0.0, 2: 0.0}
    assert cross_fitted(lucky).attack == "a"


def test_attacks_that_lack_a_victim_are_not_chosen_and_one_victim_chooses_nothing():
    assert cross_fitted({"a": {0: 1.0, 1: 1.0}, "b": {0: 50.0}}).candidates == 1
    assert cross_fitted({"a": {0: 1.0}, "b": {0: 2.0}}) is None
    assert cross_fitted({"a": {0: 1.0}}).values == {0: 1.0}
    assert cross_fitted({}) is None
    assert compared({"a": {0: 1.0}}, {}) is None


def test_an_attack_that_is_refused_some_victims_counts_where_it_applies():
    exact = {"closed_form": {0: 150.0, 1: 140.0, 2: 145.0}, "matching": dict(enumerate([15.0, 16.0, 14.0, 15.0, 15.5]))}
    found = compared(exact, {"grey": dict.fromkeys(range(5), 12.0)})
    assert found.best.attack == "closed_form, else matching"
    assert found.value == pytest.approx(np.mean([150, 140, 145, 15, 15.5]) - 12)
    assert compared({"a": {0: 1.0}, "b": {1: 1.0}}, {"grey": {0: 0.0, 1: 0.0}}) is None
