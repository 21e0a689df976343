"""What a mechanism of differential privacy has spent, by ``dp-accounting``.

An (epsilon, delta) is an upper bound. Two accountants compute it, by Renyi divergences (Mironov 2017) and by the
distribution of the privacy loss (Koskela et al. 2020, rounded up); the smaller of two upper bounds is one, too.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

INTERVAL = 1e-3
"""Of privacy losses that the second accountant rounds up to: epsilon grows by less than a part in a thousand, and it is
ten times as fast as with its default, 1e-4."""

LARGE_LOSS = 2000.0
"""Sum of ``rate / noise^2`` beyond which epsilon is in the thousands and a distribution of losses needs gigabytes."""

SMALLEST_NOISE, LARGEST_NOISE = 1e-2, 1e4
"""Noise multipliers among which the one of a wanted epsilon is sought."""


@dataclass(frozen=True, order=True)
class Release:
    """One use of a Gaussian mechanism.

    Attributes:
        noise: Its deviation over the most that one member can change what it is added to.
        rate: Probability with which each member is drawn for it, independently of the others (Poisson); 1 for all.
    """

    noise: float
    rate: float = 1.0


class Ledger:
    """What has been released, and what that proves.

    Args:
        spent: How often each mechanism was used, ``(noise, rate, times)``; as :attr:`spent` gives it.

    Example:
        >>> ledger = Ledger()
        >>> ledger.add(Release(1.0), 10)
        >>> round(ledger.epsilon(1e-5), 2)
        17.86
    """

    def __init__(self, spent: list[tuple[float, float, int]] | None = None) -> None:
        self._times: dict[Release, int] = {Release(noise, rate): times for noise, rate, times in spent or ()}

    @property
    def spent(self) -> list[tuple[float, float, int]]:
        """What was added so far: ``(noise, rate, times)``."""
        return [(release.noise, release.rate, times) for release, times in self._times.items()]

    def add(self, release: Release, times: int = 1) -> None:
        """Count uses of a mechanism."""
        self._times[release] = self._times.get(release, 0) + times

    def with_more(self, release: Release, times: int = 1) -> Ledger:
        """Return what would be spent after further uses."""
        other = Ledger(self.spent)
        other.add(release, times)
        return other

    def epsilon(self, delta: float) -> float:
        """Return the smallest epsilon that either accountant proves at a delta; infinity without noise."""
        return min(self.by_renyi(delta), self.by_loss(delta))

    def by_renyi(self, delta: float) -> float:
        """Return the epsilon that Renyi divergences prove."""
        return _epsilon(tuple(sorted(self._times.items())), delta, "renyi")

    def by_loss(self, delta: float) -> float:
        """Return the epsilon that the distribution of the privacy loss proves."""
        return _epsilon(tuple(sorted(self._times.items())), delta, "loss")


@lru_cache(maxsize=256)
def _epsilon(times: tuple[tuple[Release, int], ...], delta: float, accountant: str) -> float:
    used = [(release, count) for release, count in times if count and release.rate > 0]
    if not used:
        return 0.0
    if any(release.noise <= 0 for release, _ in used):
        return math.inf
    if accountant == "loss" and sum(count * release.rate / release.noise**2 for release, count in used) > LARGE_LOSS:
        return math.inf  # the other accountant says how much
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, rdp  # a second, which few runs need

    with _quiet():
        if accountant == "loss":
            total, *others = (_losses(release, count) for release, count in used)
            for other in others:
                total = total.compose(other)
            return float(total.get_epsilon_for_delta(delta))
        account = rdp.RdpAccountant()
        for release, count in used:
            event = GaussianDpEvent(release.noise)
            account.compose(event if release.rate == 1 else PoissonSampledDpEvent(release.rate, event), count)
        return float(account.get_epsilon(delta))


def _losses(release: Release, count: int) -> Any:
    """Return the distribution of the privacy loss of several uses of a mechanism, as ``PLDAccountant`` composes it."""
    if release.rate == 1:  # so many are one, of less noise
        return _loss(Release(release.noise / math.sqrt(count)))
    return _loss(release).self_compose(count)


@lru_cache(maxsize=64)
def _loss(release: Release) -> Any:
    """Return the distribution of one use: all rounds of a run compose the same, and to make it takes longest."""
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        release.noise, value_discretization_interval=INTERVAL, sampling_prob=release.rate
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep ``dp-accounting`` from warning of orders that it leaves out: what is left is a bound all the same."""
    absl = logging.getLogger("absl")
    before = absl.level
    absl.setLevel(logging.ERROR)
    try:
        yield
    finally:
        absl.setLevel(before)


class Spent(Protocol):
    """What has been spent, by two accountants."""

    def by_renyi(self, delta: float) -> float:
        """Return the epsilon that Renyi divergences prove."""

    def by_loss(self, delta: float) -> float:
        """Return the epsilon that the distribution of the privacy loss proves; infinity if it proves none."""


def noise_for(epsilon: float, delta: float, ledger_of: Callable[[float], Spent]) -> float:
    """Return the smallest noise multiplier, to a part in a thousand, with which no more than an epsilon is spent.

    Args:
        epsilon: The wanted one.
        delta: Its delta.
        ledger_of: What a noise multiplier spends.

    Raises:
        ValueError: If none up to :data:`LARGEST_NOISE` is enough.
    """

    def spent(noise: float) -> float:  # by the tighter accountant: both at once would take three times as long
        ledger = ledger_of(noise)
        tight = ledger.by_loss(delta)
        return ledger.by_renyi(delta) if math.isinf(tight) else tight

    high = 1.0
    while spent(high) > epsilon:
        high *= 2
        if high > LARGEST_NOISE:
            raise ValueError(f"no noise multiplier up to {LARGEST_NOISE:g} gives an epsilon of {epsilon:g}")
    low = high / 2
    while low > SMALLEST_NOISE and spent(low) <= epsilon:
        low, high = low / 2, low
    while high > low * 1.001:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if spent(middle) <= epsilon else (middle, high)
    return high
