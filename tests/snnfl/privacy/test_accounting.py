"""Epsilon is dp-accounting's own, Opacus' for DP-SGD, and what a textbook says of the Gaussian mechanism."""

from __future__ import annotations

import math

import dp_accounting
import pytest
from dp_accounting import pld, rdp
from opacus.accountants import PRVAccountant, RDPAccountant
from scipy import optimize, stats

from snnfl.config import ConfigError, compose
from snnfl.privacy.accounting import INTERVAL, Ledger, Release, noise_for
from snnfl.privacy.spending import Spending, adaptive_noise

DELTA = 1e-5


@pytest.mark.parametrize(("noise", "rate", "times"), [(1.0, 1.0, 10), (2.0, 0.5, 7)])
def test_epsilon_is_dp_accountings(noise: float, rate: float, times: int) -> None:
    event = dp_accounting.GaussianDpEvent(noise)
    event = dp_accounting.SelfComposedDpEvent(dp_accounting.PoissonSampledDpEvent(rate, event), times)
    by_renyi = rdp.RdpAccountant().compose(event).get_epsilon(DELTA)
    by_loss = pld.PLDAccountant(value_discretization_interval=1e-4).compose(event).get_epsilon(DELTA)
    ledger = Ledger([(noise, rate, times)])
    assert ledger.by_renyi(DELTA) == pytest.approx(by_renyi, rel=1e-9)
    assert by_loss * (1 - 1e-6) <= ledger.by_loss(DELTA) <= by_loss * 1.002  # rounded up a little more coarsely
    assert ledger.epsilon(DELTA) == min(ledger.by_renyi(DELTA), ledger.by_loss(DELTA))


def test_different_releases_add_up_as_dp_accounting_composes_them() -> None:
    first, second = Release(1.0, 0.1), Release(3.0)
    ledger = Ledger()
    for release, times in ((first, 4), (second, 2), (first, 1)):
        ledger.add(release, times)
    accountant = rdp.RdpAccountant()
    accountant.compose(dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(1.0)), 5)
    accountant.compose(dp_accounting.GaussianDpEvent(3.0), 2)
    assert ledger.by_renyi(DELTA) == pytest.approx(accountant.get_epsilon(DELTA))
    assert Ledger(ledger.spent).epsilon(DELTA) == ledger.epsilon(DELTA)


def test_the_second_accountant_is_dp_accountings_whatever_was_asked_before() -> None:
    """One use's distribution is kept for all rounds of a run."""
    for rounds in (1, 3, 2):
        accountant = pld.PLDAccountant(value_discretization_interval=INTERVAL)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(0.3, dp_accounting.GaussianDpEvent(1.5)), rounds)
        accountant.compose(dp_accounting.GaussianDpEvent(4.0), rounds)
        found = Ledger([(1.5, 0.3, rounds), (4.0, 1.0, rounds)]).by_loss(DELTA)
        assert found == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-9)


def test_epsilon_of_one_gaussian_is_the_analytic_one() -> None:
    """``delta = Phi(1/2z - eps z) - e^eps Phi(-1/2z - eps z)`` (Balle & Wang 2018, theorem 8)."""

    def excess(epsilon: float, z: float = 1.3) -> float:
        above, below = stats.norm.cdf(1 / (2 * z) - epsilon * z), stats.norm.cdf(-1 / (2 * z) - epsilon * z)
        return float(above - math.exp(epsilon) * below - DELTA)

    exact = optimize.brentq(excess, 0, 20)
    assert exact <= Ledger([(1.3, 1.0, 1)]).epsilon(DELTA) <= exact * 1.001


def test_without_noise_there_is_no_bound_and_without_releases_nothing_is_spent() -> None:
    assert Ledger([(0.0, 1.0, 1)]).epsilon(DELTA) == math.inf
    assert Ledger().epsilon(DELTA) == 0.0
    assert 1e4 < Ledger([(0.01, 1.0, 3)]).epsilon(DELTA) < math.inf  # not gigabytes of a distribution of losses


@pytest.mark.parametrize("wanted", [0.5, 8.0])
def test_the_noise_of_a_wanted_epsilon_is_the_smallest(wanted: float) -> None:
    def of(noise: float) -> Ledger:
        return Ledger([(noise, 0.5, 5)])

    noise = noise_for(wanted, DELTA, of)
    assert of(noise).epsilon(DELTA) <= wanted < of(noise * 0.997).epsilon(DELTA)


def test_a_wanted_epsilon_that_no_noise_gives_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"privacy.target_epsilon=1e-09: no noise multiplier up to 10000 .*larger one"
    ):
        Spending(compose(None, ["privacy.mechanism=central", "privacy.target_epsilon=1e-9"]), [10])


def test_dp_sgd_spends_what_opacus_says() -> None:
    options = ["privacy.mechanism=example", "privacy.noise_multiplier=1.1", "strategy.spiking=false"]
    training = ["training.batch_size=30", "training.epochs=2", "model.batch_norm=false"]
    spending = Spending(compose(None, [*options, *training]), [600, 600])
    for _ in range(5):
        spending.add([0, 1])
    steps, rate = 5 * 2 * 20, 30 / 600
    opacus, tight = RDPAccountant(), PRVAccountant()
    opacus.history = tight.history = [(1.1, rate, steps)]
    ledger = spending.ledger(5, 1.1)
    assert ledger.by_renyi(DELTA) == pytest.approx(opacus.get_epsilon(DELTA), rel=0.01)  # other orders, same bound
    assert spending.epsilon() == pytest.approx(tight.get_epsilon(DELTA, eps_error=0.01), abs=0.03)


def test_who_is_asked_most_often_decides_where_clients_add_the_noise() -> None:
    spending = Spending(compose(None, ["privacy.mechanism=local", "privacy.noise_multiplier=4"]), [10, 10, 10])
    for asked in ([0, 1], [1, 2], [0, 2], [1]):
        spending.add(asked)
    assert spending.epsilon() == Ledger([(2.0, 1.0, 3)]).epsilon(DELTA)  # any vector of norm C for any other: 2 C


def test_central_counts_every_round_as_poisson_sampling() -> None:
    options = ["privacy.mechanism=central", "strategy.fraction_train=0.2", "privacy.noise_multiplier=1.5"]
    spending = Spending(compose(None, options), [10] * 10)
    for asked in ([0], [], [3, 4, 5]):  # however many were drawn, and whether they answered
        spending.add(asked)
    assert spending.epsilon() == Ledger([(1.5, 0.2, 3)]).epsilon(DELTA)


def test_the_budget_stops_before_it_is_exceeded_and_the_smallest_client_counts() -> None:
    options = ["privacy.mechanism=central", "privacy.noise_multiplier=2", "privacy.budget=5"]
    spending, rounds = Spending(compose(None, options), [10]), 0
    while spending.refusal(rounds + 1) is None:
        rounds += 1
        spending.add([0])
    assert spending.epsilon() <= 5 < Ledger([(2.0, 1.0, rounds + 1)]).epsilon(DELTA)
    assert spending.refusal(rounds + 1).startswith(f"privacy.budget=5: round {rounds + 1} would spend an epsilon of 5.")
    sizes = [100, 40, 64]
    sgd = ["privacy.mechanism=example", "training.batch_size=20", "training.epochs=1"]
    smallest = Spending(compose(None, sgd), sizes)
    assert (smallest.steps, smallest.rate) == (
        5,
        0.5,
    )  # most steps of one, highest rate of another: no less than either


def test_adaptive_clipping_pays_for_its_quantile() -> None:
    """Both releases together are one of the configured noise: ``z^-2 = z_delta^-2 + (2 sigma_b)^-2``."""
    left = adaptive_noise(1.0, 2.0)
    assert left > 1.0
    both = Ledger([(left, 1.0, 1), (2 * 2.0, 1.0, 1)])  # the count changes by 1/2 with one client
    assert both.by_renyi(DELTA) == pytest.approx(Ledger([(1.0, 1.0, 1)]).by_renyi(DELTA), rel=1e-6)
    with pytest.raises(ConfigError, match=r"less than twice .*clipped_count_stddev=0.5"):
        adaptive_noise(1.0, 0.5)
