"""Shares of a seed: enough of them give it, whoever holds them; others give no more than a wrong one."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snnfl.masking.keys import PRIME, SEED_BYTES, ProtocolError, draw_seed
from snnfl.masking.shares import combine, split

seeds = st.integers(0, PRIME - 1).map(lambda number: number.to_bytes(SEED_BYTES))


@settings(max_examples=60)
@given(seeds, st.data())
def test_any_threshold_of_shares_give_the_seed_and_fewer_an_error(seed, data):
    holders = data.draw(st.integers(1, 20))
    threshold = data.draw(st.integers(1, holders))
    shares = split(seed, threshold, holders)
    assert all(len(share) == SEED_BYTES for share in shares)
    chosen = data.draw(st.lists(st.sampled_from(range(holders)), min_size=threshold, unique=True))
    assert combine([(place, shares[place]) for place in chosen], threshold) == seed
    with pytest.raises(ProtocolError, match=f"{threshold - 1} shares, {threshold} are needed"):
        combine([(place, shares[place]) for place in chosen[: threshold - 1]], threshold)


@settings(max_examples=60)
@given(st.lists(st.binary(min_size=SEED_BYTES, max_size=SEED_BYTES), min_size=2, max_size=6))
def test_made_up_shares_give_a_seed_of_nothing_and_no_crash(shares):
    assert len(combine(list(enumerate(shares)), len(shares))) == SEED_BYTES


def test_one_share_less_says_nothing_of_the_seed():
    """Of a known seed and of another, a share takes each top byte alike often."""
    counts = [0, 0]
    for number, seed in enumerate((bytes(SEED_BYTES), (PRIME - 1).to_bytes(SEED_BYTES))):
        counts[number] = sum(split(seed, 2, 3)[0][0] < 128 for _ in range(2000))
    assert all(abs(count - 1000) < 5 * (2000 * 0.25) ** 0.5 for count in counts)


def test_what_is_no_number_of_the_field_is_drawn_anew_and_never_shared():
    high = PRIME.to_bytes(SEED_BYTES)
    drawn = iter([high, b"\xff" * SEED_BYTES, b"\x01" * SEED_BYTES])
    assert draw_seed(lambda count: next(drawn)) == b"\x01" * SEED_BYTES
    assert int.from_bytes(draw_seed(os.urandom)) < PRIME
    with pytest.raises(ValueError, match="modulus"):
        split(high, 2, 3)
    with pytest.raises(ValueError, match="cannot share 15 bytes among 3 holders"):
        split(bytes(15), 2, 3)
