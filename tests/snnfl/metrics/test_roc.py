from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score, roc_auc_score, roc_curve

from snnfl.metrics.roc import LEVELS, auc, balanced_accuracy, mean_of, mean_roc, roc, score, tpr_at


def drawn(seed: int, shift: float, count: int = 4000) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    draw = np.random.default_rng(seed)
    members = draw.random(count) < 0.5
    return draw.normal(size=count) + shift * members, members


def test_curve_and_area_are_scikit_learns() -> None:
    values, members = drawn(0, 0.5)
    fpr, tpr = roc(values, members)
    expected = roc_curve(members, values)
    assert np.interp(expected[0], fpr, tpr) == pytest.approx(np.interp(expected[0], *expected[:2]), abs=1e-12)
    assert auc(values, members) == pytest.approx(roc_auc_score(members, values), abs=1e-12)


@pytest.mark.parametrize("level", [0.001, 0.01, 0.1])
def test_tpr_is_privacy_meters_for_scores_without_ties(level: float) -> None:
    """``tpr[np.where(fpr <= level)[0][-1]]``, as ML Privacy Meter, LeakPro and Carlini's code have it."""
    values, members = drawn(1, 1.0)
    fpr, tpr, _ = roc_curve(members, values, drop_intermediate=False)
    assert tpr_at(values, members, level) == pytest.approx(tpr[np.where(fpr <= level)[0][-1]], abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=2, max_size=40), st.floats(0, 1))
def test_tpr_with_ties_lies_on_the_curve(pairs: list[tuple[int, bool]], level: float) -> None:
    values, members = zip(*pairs, strict=True)
    if all(members) or not any(members):
        with pytest.raises(ValueError, match="both kinds"):
            tpr_at(values, members, level)
        return
    fpr, tpr, _ = roc_curve(members, values, drop_intermediate=False)
    assert 0 <= tpr_at(values, members, level) <= 1
    assert tpr_at(values, members, level) >= tpr[np.where(fpr <= level)[0][-1]] - 1e-12
    assert tpr_at(values, members, 1.0) == 1


def test_scores_that_say_nothing_give_the_level() -> None:
    members = np.arange(10) < 5
    assert tpr_at(np.zeros(10), members, 0.01) == pytest.approx(0.01)
    assert auc(np.zeros(10), members) == 0.5


def test_balanced_accuracy_is_scikit_learns_where_one_threshold_is_best() -> None:
    members = np.arange(100) < 30
    values = members + np.linspace(0, 0.5, 100)
    assert balanced_accuracy(values, members) == balanced_accuracy_score(members, values > 0.9) == 1.0


def test_balanced_accuracy_finds_nothing_in_noise() -> None:
    """The best threshold for the same samples would find more than 0.5 every time."""
    found = [balanced_accuracy(*drawn(seed, 0.0, 200)) for seed in range(40)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("targets", [1, 3, 8])
def test_intervals_hold_the_truth_about_as_often_as_they_say(targets: int) -> None:
    found = []
    for seed in range(25):
        pairs = [drawn(100 * seed + k, 0.0, 400) for k in range(targets)]
        scored = score([s for s, _ in pairs], [m for _, m in pairs])
        rate = scored.tpr[0.01]
        found.append((0.5 in scored.auc, 0.5 in scored.balanced_accuracy, rate is None or 0.01 in rate))
    assert min(np.mean(found, axis=0)) >= 0.85


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
def test_deviation_of_one_target_is_that_of_many_draws(shift: float) -> None:
    """Half the width of an interval over 1.96, against the spread of 40 independent targets."""
    many = [drawn(seed, shift, 1000) for seed in range(40)]
    one = score([many[0][0]], [many[0][1]])
    spread = {"auc": np.std([auc(*pair) for pair in many]), "tpr": np.std([tpr_at(*pair, 0.01) for pair in many])}
    assert (one.auc.high - one.auc.low) / 3.92 == pytest.approx(spread["auc"], rel=0.5)
    doubled = score([many[0][0], many[0][0]], [many[0][1], many[0][1]])
    rate = doubled.tpr[0.01]
    assert rate is not None
    if rate.low > 0:
        assert 0.5 < (rate.high - rate.low) / 3.92 * np.sqrt(2) / spread["tpr"] < 2.5


def test_targets_are_what_an_interval_counts_not_samples() -> None:
    """Targets that differ make a wide interval, be the samples as many as they may."""
    pairs = [drawn(k, 0.3 if k % 2 else 0.0) for k in range(8)]
    wide = score([s for s, _ in pairs], [m for _, m in pairs]).auc
    narrow = score([pairs[0][0]] * 8, [pairs[0][1]] * 8).auc
    assert wide.high - wide.low > 0.05
    assert narrow.high - narrow.low < 0.02


def test_a_rate_that_too_few_samples_can_tell_is_not_told() -> None:
    pairs = [drawn(k, 1.0, 2000) for k in range(4)]
    found = score([s for s, _ in pairs], [m for _, m in pairs])
    assert found.tpr[LEVELS[0]] is not None
    assert found.tpr[LEVELS[1]] is None
    assert found.targets == 4


def test_scores_of_targets_are_not_mixed() -> None:
    """An attack whose scores mean something else for each target loses nothing."""
    values, members = drawn(0, 2.0)
    apart = score([values, values + 1000], [members, members]).auc
    assert apart.value == pytest.approx(auc(values, members))


def test_mean_curve_of_one_target_is_its_own() -> None:
    values, members = drawn(3, 0.7)
    grid, mean = mean_roc([values], [members])
    assert [tpr_at(values, members, level) for level in grid[::20]] == pytest.approx(mean[::20])


def test_mean_of_one_value_has_no_interval() -> None:
    assert np.isnan(mean_of([0.7]).low)
    assert 0.6 in mean_of([0.5, 0.7])


@pytest.mark.parametrize(("values", "members"), [([1.0], [True, False]), ([1.0, 2.0], [True, True])])
def test_a_mistake_is_one_line(values: list[float], members: list[bool]) -> None:
    with pytest.raises(ValueError, match="samples"):
        auc(values, members)
