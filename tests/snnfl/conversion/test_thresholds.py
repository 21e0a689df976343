from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from snnfl.conversion import ConversionConfig, mmse_threshold
from snnfl.conversion.thresholds import find_thresholds, percentile_threshold


def literal(values: list[float], steps: int, candidates: int, nudge: float = 0) -> list[float]:
    """Mean squared error of each candidate, in plain Python (Li et al. 2021; facts: the reference's search)."""
    errors = []
    for i in range(candidates):
        theta = max(values) * (1 - 0.01 * i)
        levels = [min(max(math.floor(a * steps / theta + nudge), 0), steps) * theta / steps for a in values]
        errors.append(sum((a - q) ** 2 for a, q in zip(values, levels, strict=True)) / len(values))
    return errors


@given(
    values=st.lists(st.floats(0, 1e3, allow_subnormal=False), min_size=1, max_size=40),
    steps=st.integers(1, 40),
    candidates=st.sampled_from([1, 7, 95]),
)
def test_the_threshold_has_the_literal_searchs_smallest_error(values, steps, candidates):
    found = mmse_threshold(torch.tensor([values], dtype=torch.float64), steps, candidates=candidates).item()
    if max(values) == 0:
        assert found == 1
        return
    # A value that lies on a level may be rounded to either side of it.
    below, above = (literal(values, steps, candidates, nudge) for nudge in (-1e-9, 1e-9))
    index = round(100 * (1 - found / max(values)))
    assert 0 <= index < candidates
    best = min(map(max, zip(below, above, strict=True)))
    assert min(below[index], above[index]) <= best + 1e-9 * max(values) ** 2


@pytest.mark.parametrize("steps", [4, 32, 256])
def test_the_candidate_is_the_literal_searchs_on_activations(steps):
    activations = torch.randn(4000, generator=torch.Generator().manual_seed(steps)).relu() * 3
    errors = literal(activations.double().tolist(), steps, 95)
    found = mmse_threshold(activations[None], steps).item()
    assert round(100 * (1 - found / activations.max().item())) == min(range(95), key=errors.__getitem__)


def test_rows_are_independent():
    rows = torch.rand(5, 300, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 6)[:, None]
    together = mmse_threshold(rows, 16)
    assert torch.equal(together, torch.cat([mmse_threshold(row[None], 16) for row in rows]))
    assert (together <= rows.amax(1)).all()


def test_a_silent_row_gets_a_threshold_of_one():
    assert mmse_threshold(torch.tensor([[0.0, 0.0], [0.0, 2.0]]), 8).tolist() == [1.0, 2.0]


@given(
    values=st.lists(st.floats(0, 1e3), min_size=1, max_size=40),
    percentile=st.floats(0, 100, exclude_min=True),
)
def test_the_percentile_is_numpys(values, percentile):
    found = percentile_threshold(torch.tensor([values], dtype=torch.float64), percentile).item()
    assert found == pytest.approx(np.percentile(values, percentile), rel=1e-9, abs=1e-12)


def test_a_percentile_of_zero_gives_way_to_the_maximum():
    activation = torch.zeros(4, 2, 5)
    activation[0, 0, 0] = 3.0
    config = ConversionConfig(thresholds="percentile", percentile=50)
    assert find_thresholds(activation, 8, config).tolist() == [3.0]


def test_the_percentile_of_millions():
    """PyTorch's own quantile refuses more than 16 million values."""
    values = torch.arange(2**24 + 9, dtype=torch.float64)[None]
    assert percentile_threshold(values, 50.0).item() == 2**23 + 4


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_each_kind_of_threshold(layout):
    draw = torch.Generator().manual_seed(0)
    activation = (torch.randn(6, 3, 5, 4, generator=draw) * torch.tensor([1.0, 2, 4]).view(3, 1, 1)).relu()
    activation = activation.contiguous(memory_format=layout)

    def find(kind: str, **options: float) -> Tensor:
        return find_thresholds(activation, 16, ConversionConfig(thresholds=kind, **options))

    assert find("layer_max").item() == activation.max().item()
    assert find("percentile", percentile=80.0).item() == pytest.approx(activation.quantile(0.8).item())
    assert torch.equal(find("layer_mmse"), mmse_threshold(activation.flatten()[None], 16))
    channels = [mmse_threshold(activation[:, channel].flatten()[None], 16) for channel in range(3)]
    assert torch.equal(find("channel_mmse"), torch.cat(channels))
    assert len(set(find("channel_mmse").tolist())) == 3
    assert torch.equal(find("layer_mmse", candidates=1), find("layer_max"))


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["layer_mmse", "channel_mmse", "layer_max", "percentile"])
def test_impossible_activations_are_refused(wrong, kind):
    with pytest.raises(ValueError, match="finite and not negative"):
        find_thresholds(torch.tensor([[1.0, wrong]]), 8, ConversionConfig(thresholds=kind))


def test_the_activations_are_left_alone():
    activations = torch.rand(2, 50, generator=torch.Generator().manual_seed(0))
    before = activations.clone()
    mmse_threshold(activations, 8)
    percentile_threshold(activations, 99.0)
    assert torch.equal(activations, before)
