"""Lower bounds: below the proven epsilon of what is right, above it where noise is halved."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from snnfl.privacy.accounting import Ledger
from snnfl.privacy.canaries import Canaries
from snnfl.privacy.empirical import one_run_bound, p_value, trials_bound
from snnfl.privacy.noise import Stream, new_key


def literal_p_value(epsilon: float, correct: int, guesses: int, canaries: int, delta: float) -> float:
    """Steinke et al. 2023, theorem 5.2, term by term."""
    binomial = stats.binom(guesses, np.exp(epsilon) / (1 + np.exp(epsilon)))
    least = binomial.sf(correct - 1)
    most = max(sum(binomial.pmf(correct - j) for j in range(1, i + 1)) / i for i in range(1, correct + 1))
    return float(min(1.0, least + 2 * canaries * delta * most))


@pytest.mark.parametrize("epsilon", [0.0, 0.7, 3.0])
@pytest.mark.parametrize(("correct", "guesses", "canaries"), [(1, 1, 1), (9, 10, 40), (60, 100, 100), (30, 30, 200)])
@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-3])
def test_the_p_value_is_the_papers(epsilon: float, correct: int, guesses: int, canaries: int, delta: float) -> None:
    expected = literal_p_value(epsilon, correct, guesses, canaries, delta)
    assert p_value(epsilon, correct, guesses, canaries, delta) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_nothing_is_refuted_by_guessing() -> None:
    truth = Stream(new_key(1), "coin").uniform(1000) < 0.5
    scores = Stream(new_key(2), "scores").uniform(1000)
    assert one_run_bound(scores, truth, delta=1e-5) == 0.0
    assert trials_bound(scores[:500], scores[500:], delta=1e-5) < 0.3
    assert one_run_bound([], [], delta=1e-5) == 0.0


def test_the_bound_of_one_run_holds_as_often_as_it_says() -> None:
    """Randomised response of epsilon 1 is the worst case: a bound above 1 is wrong, in at most 5 % of runs."""
    wrong = 0
    for trial in range(100):
        stream = Stream(new_key(trial), "response")
        truth = stream.uniform(2000) < 0.5
        told = np.where(stream.uniform(2000) < 1 / (1 + np.exp(-1.0)), truth, ~truth)
        wrong += one_run_bound(told + 1e-9 * stream.uniform(2000), truth, delta=0.0) > 1.0
    assert wrong <= 5


@pytest.mark.parametrize("delta", [1e-3, 1e-5])
@pytest.mark.parametrize("claimed", [1.0, 2.0])
def test_halved_noise_shows_in_many_trials_and_whole_noise_does_not(claimed: float, delta: float) -> None:
    proven = Ledger([(claimed, 1.0, 1)]).epsilon(delta)
    for actual, shows in ((claimed, False), (claimed / 2, True)):
        stream = Stream(new_key(5), "trials", int(8 * actual))
        without = actual * stream.normal(100_000)
        bound = trials_bound(actual * stream.normal(100_000) + 1, without, delta=delta)
        assert (bound > proven) is shows
        assert bound > 0.4 * proven  # and it isn't below only because it is nothing


def federation_of(canaries: int, size: int, rounds: int, noise: float) -> Canaries:
    """Play a federation of canaries alone: what a server releases is their sum with noise."""
    found = Canaries(canaries, size, new_key(canaries))
    for server_round in range(1, rounds + 1):
        total = found.updates(server_round, 1.0, size)
        found.observe(total + noise * Stream(new_key(9), "noise", server_round).normal(size))
    return found


def test_one_run_with_canaries_bounds_the_right_mechanism_from_below_and_refutes_a_fraction_of_its_noise() -> None:
    proven = Ledger([(4.0, 1.0, 4)]).epsilon(1e-6)
    right = federation_of(5000, 20_000, 4, 4.0).bound(1e-6)
    faulty = federation_of(5000, 20_000, 4, 4.0 / 2).bound(1e-6)
    assert 0.5 < right < proven < 2.4
    assert right < faulty  # it sees more, but one run proves less than many trials
    assert federation_of(5000, 20_000, 4, 4.0 / 4).bound(1e-6) > proven


def test_canaries_are_unit_vectors_that_share_no_coordinate() -> None:
    found = Canaries(7, 100, new_key(0))
    vectors = np.zeros((7, 100))
    for vector, places, values in zip(vectors, found._places, found._values, strict=True):
        vector[places] = values
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(7), atol=1e-12)
    np.testing.assert_allclose(found.updates(1, 1.0, 100), vectors[found.included].sum(0))
    with pytest.raises(ValueError, match="101 canaries: an update has 100 numbers"):
        Canaries(101, 100, new_key(0))
