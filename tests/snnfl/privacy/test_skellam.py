"""The Skellam mechanism: rounding, shares, and a bound that holds against its exact divergence."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from snnfl.privacy.accounting import Ledger
from snnfl.privacy.noise import Stream, new_key
from snnfl.privacy.skellam import ORDERS, SkellamLedger, divergence, largest, lengthened, rounded, share, steps_of

KEY = new_key(0)


def test_rounding_is_right_on_average_and_never_lengthens_beyond_the_bound() -> None:
    vector = np.full(400, 56.7)
    found = np.array([rounded(vector, Stream(KEY, "round", n)) for n in range(400)])
    assert np.abs(found.mean(0) - vector).max() < 0.15
    assert np.linalg.norm(found, axis=1).max() <= lengthened(400)
    assert set(np.unique(found - np.floor(vector))) == {0.0, 1.0}


@pytest.mark.parametrize("length", [1, 100, 61_706])
def test_a_client_adds_no_more_than_the_ledger_counts(length: int) -> None:
    draw = Stream(KEY, "update", length)
    for scale in (1e-3, 1.0, 1e6):
        alone = share(scale * draw.normal(length), 0.5, 0.0, 1, Stream(KEY, "share"))
        assert np.linalg.norm(alone) <= lengthened(length)
    assert lengthened(length) <= steps_of(length) * (1.02 if length == 1 else 1.001)


def test_shares_make_up_the_noise_and_those_of_more_clients_make_more() -> None:
    noise, size = 0.8, 20_000
    for clients in (5, 8):
        total = sum(share(np.zeros(size), 1.0, noise, 5, Stream(KEY, "client", n)) for n in range(clients))
        expected = noise * steps_of(size) * (clients / 5) ** 0.5
        assert total.std() == pytest.approx(expected, rel=0.03)
        assert np.abs(total).max() < largest(size, noise, clients, 5)


def test_the_sum_is_that_of_the_clipped_updates() -> None:
    draw = Stream(KEY, "updates")
    updates = [draw.normal(500) * scale for scale in (0.001, 0.01, 1.0)]
    total = sum(share(vector, 0.5, 0.0, 3, Stream(KEY, "share", n)) for n, vector in enumerate(updates))
    clipped = sum(v * min(1, 0.5 / np.linalg.norm(v)) for v in updates)
    np.testing.assert_allclose(total * 0.5 / steps_of(500), clipped, atol=3 * 0.5 / steps_of(500))


def exact_divergence(order: int, shift: int, variance: float) -> float:
    """Return ``R_a`` of a Skellam number and the shifted one, by summation."""
    support = np.arange(-int(14 * variance**0.5) - 20, int(14 * variance**0.5) + 20)
    one = stats.skellam.logpmf(support - shift, variance / 2, variance / 2)
    other = stats.skellam.logpmf(support, variance / 2, variance / 2)
    terms = order * one - (order - 1) * other
    top = terms.max()
    return float((top + np.log(np.exp(terms - top).sum())) / (order - 1))


@pytest.mark.parametrize("noise", [1.0, 2.0, 3.0])
def test_the_bound_holds_against_the_exact_divergence_of_one_number(noise: float) -> None:
    variance, shift = (noise * 8) ** 2, 8
    for order in ORDERS[:8]:
        bound, exact = divergence(order, variance, shift, shift), exact_divergence(order, shift, variance)
        assert 0.6 * bound < exact <= bound


def test_on_a_fine_grid_it_spends_what_the_gaussian_mechanism_does() -> None:
    skellam, gaussian = SkellamLedger(1.2, 10, 60_000), Ledger([(1.2, 1.0, 10)])
    assert gaussian.by_renyi(1e-5) < skellam.by_renyi(1e-5) < 1.01 * gaussian.by_renyi(1e-5)
    assert SkellamLedger(0.0, 1, 10).epsilon(1e-5) == float("inf")
    assert SkellamLedger(1.0, 0, 10).epsilon(1e-5) == 0
