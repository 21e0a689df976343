"""Codes of few bits: nothing is lost in bytes, and little in rounding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from snnfl.quantisation import most, pack, stochastic, unpack
from snnfl.quantisation.codes import left_out

BITS = (2, 4, 8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def heavy(count: int, seed: int) -> Tensor:
    """Draw values as updates have them: few are large."""
    return torch.randn(count, generator=generator(seed)) ** 3


@given(st.sampled_from(BITS), st.data())
def test_packed_codes_are_read_back(bits: int, data: st.DataObject) -> None:
    codes = data.draw(st.lists(st.integers(-most(bits), most(bits)), max_size=40))
    packed = pack(torch.tensor(codes, dtype=torch.int16), bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == -(-len(codes) * bits // 8)
    assert unpack(packed, bits, len(codes)).tolist() == codes


@given(st.sampled_from(BITS), st.binary(max_size=20), st.integers(0, 45))
def test_any_bytes_are_codes_or_refused(bits: int, content: bytes, count: int) -> None:
    packed = torch.tensor(list(content), dtype=torch.uint8)
    try:
        codes = unpack(packed, bits, count)
    except ValueError:
        pass
    else:
        assert torch.equal(pack(codes, bits), packed)  # one way to write them
        assert not len(codes) or codes.abs().max() <= most(bits)


@given(st.lists(st.floats(-1e9, 1e9, width=32), max_size=30), st.sampled_from(BITS), st.integers(0, 9))
def test_codes_are_near_their_values(values: list[float], bits: int, seed: int) -> None:
    given_values = torch.tensor(values)
    codes, scale = stochastic(given_values, bits, generator(seed))
    assert torch.isfinite(scale)
    assert codes.shape == given_values.shape
    top = most(bits) * scale
    error = (given_values.clamp(-top, top) - scale * codes).abs()
    assert bool((error <= scale * (1 + 1e-5) + 1e-30).all())
    before = float(given_values.double().square().sum())
    assert left_out(given_values.abs(), scale, bits) <= before


@pytest.mark.parametrize(
    ("content", "bits", "count", "words"),
    [([1, 2], 8, 1, "take 1"), ([255], 8, 1, "the code 128"), ([3], 2, 4, "the code 2"), ([64], 2, 3, "filled up")],
)
def test_bytes_that_nobody_packs_are_refused(content: list[int], bits: int, count: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        unpack(torch.tensor(content, dtype=torch.uint8), bits, count)


@pytest.mark.parametrize("bits", BITS)
def test_rounding_is_right_on_average(bits: int) -> None:
    values = torch.linspace(-1, 1, 41)
    _, scale = stochastic(values, bits, generator())
    inside = values.abs() <= most(bits) * scale
    rounds = [torch.mul(*stochastic(values, bits, generator(seed))) for seed in range(500)]
    mean = torch.stack(rounds).mean(0)
    assert bool(((mean - values).abs()[inside] < 5 * scale / 2 / 500**0.5).all())


@pytest.mark.parametrize("bits", BITS)
def test_what_is_expected_to_be_left_out_is(bits: int) -> None:
    values = heavy(100_000, 1)
    codes, scale = stochastic(values, bits, generator())
    found = float((values - scale * codes).square().sum())
    assert found == pytest.approx(left_out(values.abs(), scale, bits), rel=0.02)
    largest = values.abs().max() / most(bits)
    tried = [left_out(values.abs(), largest * factor, bits) for factor in torch.linspace(0.01, 1, 200)]
    assert left_out(values.abs(), scale, bits) < 1.2 * min(tried)


@pytest.mark.parametrize("bits", BITS)
def test_error_feedback_forgets_nothing_and_stays_bounded(bits: int) -> None:
    kept, told, changed, sizes = torch.zeros(2000), torch.zeros(2000), torch.zeros(2000), []
    for step in range(150):
        change = heavy(2000, step)
        codes, scale = stochastic(change + kept, bits, generator(step))
        kept = change + kept - scale * codes
        told, changed = told + scale * codes, changed + change
        sizes.append(float(kept.norm() / change.norm()))
    assert torch.allclose(told + kept, changed, atol=1e-2)
    assert max(sizes[100:]) < 3 * max(sizes[:50])
    assert max(sizes) < {2: 4, 4: 1, 8: 0.2}[bits]


def test_zeros_and_nothing_have_codes() -> None:
    codes, scale = stochastic(torch.zeros(5), 4, generator())
    assert not codes.any()
    assert scale == 0
    assert stochastic(torch.zeros(0), 8, generator())[0].shape == (0,)
    assert stochastic(torch.tensor([1e-44, 0.0]), 8, generator())[0].abs().max() <= 127
