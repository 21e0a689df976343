"""A part of the clients, as the digits of the fraction say."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from snnfl.config import compose, exactly, part_of, sampled_clients


@given(clients=st.integers(1, 100_000), digits=st.integers(1, 6), data=st.data())
def test_a_part_is_rounded_down_and_at_least_one(clients: int, digits: int, data: st.DataObject) -> None:
    numerator = data.draw(st.integers(1, 10**digits))
    exact = Fraction(numerator, 10**digits) * clients
    assert part_of(clients, numerator / 10**digits) == max(1, int(exact))


@given(st.integers(1, 100_000))
def test_one_of_n_is_one(clients: int) -> None:
    assert int(clients * exactly(1 / clients)) == 1


def test_the_clients_of_a_round() -> None:
    assert sampled_clients(compose(None, ["data.clients=100", "strategy.fraction_train=0.29"])) == 29
    assert sampled_clients(compose(None, ["data.clients=15", "strategy.fraction_train=0.1"])) == 1
    assert sampled_clients(compose(None, ["data.clients=15"])) == 15
