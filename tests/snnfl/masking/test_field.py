"""Numbers of the ring: the bound on the error, sums, and what is no sum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from snnfl.masking import Field, FieldError


@settings(max_examples=80, deadline=None)
@given(
    st.lists(arrays(np.float64, 5, elements=st.floats(-2, 2)), min_size=1, max_size=6),
    st.sampled_from([32, 64]),
    st.booleans(),
    st.data(),
)
def test_a_sum_is_that_of_the_clipped_values_within_the_bound(values, bits, stochastic, data):
    field = Field(clients=len(values), bits=bits)
    weights = [data.draw(st.floats(0.01, 1)) for _ in values]
    draw = np.random.default_rng(0) if stochastic else None
    pairs = list(zip(values, weights, strict=True))
    total = np.sum([field.encode(v, limit=1.5, weight=w, draw=draw) for v, w in pairs], axis=0, dtype=field.dtype)
    found = field.decode(total, limit=1.5, clients=len(values))
    expected = sum(w * np.clip(v, -1.5, 1.5) for v, w in pairs)
    bound = field.error(1.5, clients=len(values), stochastic=stochastic)
    assert np.abs(found - expected).max() <= bound * (1 + 1e-9) + 1e-12


def test_stochastic_rounding_is_right_on_average():
    field = Field(clients=2**20)  # few levels
    value = np.full(20_000, 0.37 / field.levels)
    mean = field.decode(field.encode(value, limit=1.0, draw=np.random.default_rng(1)), limit=1.0, clients=1).mean()
    assert mean * field.levels == pytest.approx(0.37, abs=4 * 0.5 / np.sqrt(20_000))
    assert not field.encode(value, limit=1.0).any()


@pytest.mark.parametrize("clients", [1, 3, 100])
def test_what_no_clients_can_have_made_is_noticed(clients):
    """Garbage of the whole ring is beyond the sum's range with probability 1/2 per element."""
    field = Field(clients=clients)
    garbage = np.random.default_rng(2).integers(0, 2**32, 100, dtype=np.uint32)
    with pytest.raises(FieldError, match="of 100 sums are larger than clients can make them"):
        field.decode(garbage, limit=1.0, clients=clients)
    most = np.full(3, field.levels * clients, np.uint32)
    np.testing.assert_allclose(field.decode(most, limit=1.0, clients=clients), clients)
    with pytest.raises(FieldError):
        field.decode(most + np.uint32(1), limit=1.0, clients=clients)
    with pytest.raises(FieldError):  # whose absolute value is itself
        field.decode(np.full(1, 2**31, np.uint32), limit=1.0, clients=clients)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_cannot_be_encoded_is_an_error(value):
    with pytest.raises(FieldError, match="NaN or infinity"):
        Field(clients=3).encode(np.array([value]), limit=1.0)
    with pytest.raises(FieldError, match=r"weight=1\.5: expected 0 to 1"):
        Field(clients=3).encode(np.zeros(1), limit=1.0, weight=1.5)
    with pytest.raises(FieldError, match="bits=16"):
        Field(clients=3, bits=16)
    with pytest.raises(FieldError, match="clients=0"):
        Field(clients=0)
