from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from snnfl.conversion import mmse_threshold


def literal(values: list[float], steps: int, candidates: int) -> list[float]:
    """Mean squared error of each candidate, in plain Python (Li et al. 2021; facts: the reference's search)."""
    errors = []
    for i in range(candidates):
        theta = max(values) * (1 - 0.01 * i)
        levels = [min(max(int(a * steps / theta), 0), steps) * theta / steps for a in values]
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
    errors = literal(values, steps, candidates)
    index = round(100 * (1 - found / max(values)))
    assert 0 <= index < candidates
    # A value that lies on a level may round to either side of it, so the argmin may differ, but not its error.
    assert errors[index] <= min(errors) + 1e-9 * max(values) ** 2 + (max(values) / steps) ** 2 * 1e-6


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


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_impossible_activations_are_refused(wrong):
    with pytest.raises(ValueError, match="finite and not negative"):
        mmse_threshold(torch.tensor([[1.0, wrong]]), 8)
