"""Noise has the promised distribution, and nobody who lacks the key has the noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from snnfl.privacy.noise import LARGEST_VARIANCE, Stream, new_key

KEY = new_key(0)


def test_normal_numbers_are_normal() -> None:
    found = Stream(KEY, "normal").normal(100_001)
    assert len(found) == 100_001
    assert stats.kstest(found, "norm").pvalue > 0.001
    assert abs(np.corrcoef(found[:50_000], found[50_000:100_000])[0, 1]) < 0.02  # the two halves of Box and Muller


def test_uniform_numbers_are_uniform_and_never_at_the_ends() -> None:
    found = Stream(KEY, "uniform").uniform(100_000)
    assert stats.kstest(found, "uniform").pvalue > 0.001
    assert found.min() > 0
    assert found.max() < 1


@pytest.mark.parametrize("variance", [0.3, 4.0, 25.0, 2_000.0, 3e7])
def test_skellam_numbers_are_skellam(variance: float) -> None:
    found = Stream(KEY, "skellam").skellam(40_000, variance)
    assert found.mean() == pytest.approx(0, abs=5 * (variance / 40_000) ** 0.5)
    assert found.var() == pytest.approx(variance, rel=0.05)
    if variance < 1e6:
        edges = np.unique(np.rint(stats.norm.ppf(np.linspace(0.02, 0.98, 20)) * variance**0.5))
        counts = np.histogram(found, [-np.inf, *(edges + 0.5), np.inf])[0]
        masses = np.diff([0, *stats.skellam(variance / 2, variance / 2).cdf(edges), 1])
        assert stats.chisquare(counts, masses * len(found)).pvalue > 0.001


def test_a_variance_beyond_double_precision_is_refused() -> None:
    assert Stream(KEY, "largest").skellam(100_000, LARGEST_VARIANCE).var() == pytest.approx(LARGEST_VARIANCE, rel=0.02)
    with pytest.raises(ValueError, match=r"a variance of 2e\+13: expected at most 1e\+13"):
        Stream(KEY, "larger").skellam(1, 2 * LARGEST_VARIANCE)


def test_sums_of_shares_have_the_whole_variance() -> None:
    total = sum(Stream(KEY, "share", n).skellam(20_000, 10.0) for n in range(12))
    assert total.var() == pytest.approx(120, rel=0.05)


def test_each_purpose_and_key_has_a_stream_of_its_own() -> None:
    streams = [Stream(KEY, "noise", 1), Stream(KEY, "noise", 2), Stream(KEY, "noise1"), Stream(new_key(1), "noise", 1)]
    first = [stream.words(4).tobytes() for stream in streams]
    assert len(set(first)) == len(first)
    assert Stream(KEY, "noise", 1).words(4).tobytes() == first[0]
    assert new_key() != new_key()


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="a key of 8 bytes: expected 32"):
        Stream(bytes(8), "noise")
