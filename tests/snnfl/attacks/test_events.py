"""Frames of events are taken out of sums of their products, whatever the coefficients."""

from __future__ import annotations

import pytest
import torch
from frames import drawn, rows, same
from hypothesis import given, settings
from hypothesis import strategies as st

from snnfl.attacks.events import find_frames, grouped, rounding_noise, whole_rows


def mixed(frames: torch.Tensor, *, outputs: int = 100, noise: float = 0.0, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    product = torch.randn(outputs, len(frames), dtype=torch.float64, generator=draw) @ frames
    return product + noise * torch.randn(product.shape, dtype=torch.float64, generator=draw)


@settings(max_examples=30, deadline=None)
@given(steps=st.integers(1, 12), most=st.integers(1, 5), seed=st.integers(0, 10_000))
def test_finds_all_frames_of_any_coefficients(steps, most, seed):
    frames = drawn(steps, most=most, seed=seed)
    found = find_frames(mixed(frames, noise=1e-6, seed=seed), noise=1e-6, most=steps)
    assert same(found.frames, frames)
    assert found.residual < 1e-5


@settings(max_examples=30, deadline=None)
@given(steps=st.integers(2, 8), seed=st.integers(0, 10_000))
def test_agrees_with_enumeration(steps, seed):
    """The 2^T binary vectors of the row space, each given by T pixels where the frames are independent."""
    frames = drawn(steps, most=1, seed=seed)
    basis = mixed(frames, seed=seed)[:steps]
    pivots = list[int]()
    for pixel in torch.nonzero(frames.any(0))[:, 0].tolist():
        if torch.linalg.matrix_rank(basis[:, [*pivots, pixel]]) == len(pivots) + 1:
            pivots.append(pixel)
    echelon = torch.linalg.solve(basis[:, pivots], basis)
    assigned = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * steps).view(-1, steps)
    candidates = assigned @ echelon
    binary = ((candidates - candidates.round()).abs().amax(1) < 1e-6) & (candidates.round().abs() <= 1).all(1)
    binary &= (candidates.round() >= 0).all(1) & candidates.round().any(1)
    enumerated = rows(candidates[binary].round())
    found = torch.zeros_like(frames)
    found[:, frames.any(0)] = whole_rows(basis[:, frames.any(0)])
    assert same(found, frames)
    assert rows(found) <= enumerated


@pytest.mark.parametrize(("steps", "pixels", "density"), [(25, 800, 0.1), (60, 1500, 0.05)])
def test_finds_many_frames(steps, pixels, density):
    """Enumeration would try 2^25 or 2^60 vectors."""
    frames = drawn(steps, pixels=pixels, density=density)
    found = find_frames(mixed(frames, outputs=200, noise=1e-6), noise=1e-6, most=steps)
    assert len(rows(found.frames) & rows(frames)) >= 0.95 * steps


def test_a_frame_without_a_pixel_of_its_own_is_found():
    frames = drawn(6)
    frames[2] = 0
    frames[2, :5] = 1
    frames[0, :3], frames[1, 2:5] = 2, 1  # each pixel of frame 2 has events in another one, too
    found = find_frames(mixed(frames), noise=1e-9, most=6)
    assert same(found.frames, frames)


def test_what_does_not_show_is_not_found_and_spoils_nothing():
    frames = drawn(8)
    frames[3], frames[5] = frames[1], 0  # twice the same frame, and an empty one
    draw = torch.Generator().manual_seed(0)
    weights = torch.randn(100, 8, dtype=torch.float64, generator=draw)
    weights[:, 6] = 0  # a step at which no gradient passes the surrogate
    found = find_frames(weights @ frames, noise=1e-9, most=8)
    assert found.rank == 5
    assert same(found.frames, frames[[0, 1, 2, 4, 7]])


def test_noise_hides_them():
    frames = drawn(10)
    found = find_frames(mixed(frames, noise=1.0), noise=1e-6, most=10)
    assert rows(found.frames).isdisjoint(rows(frames))
    assert found.residual > 0.1


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_constant_gradient_holds_at_most_one_frame(value):
    found = find_frames(torch.full((20, 30), value), noise=1e-9, most=10)
    assert found.rank == len(found.frames) == int(value)


def test_more_frames_than_outputs_are_not_found():
    frames = drawn(30)
    found = find_frames(mixed(frames, outputs=20), noise=1e-9, most=30)
    assert found.rank == 20
    assert rows(found.frames).isdisjoint(rows(frames))


def test_rounding_noise_is_that_of_float32_weights():
    draw = torch.Generator().manual_seed(0)
    weight = torch.rand(200, 200, generator=draw) - 0.5
    step = 0.01 * torch.randn(200, 200, generator=draw, dtype=torch.float64)
    returned = (weight.double() - 0.1 * step).float()
    error = (weight - returned).double() / 0.1 - step
    assert rounding_noise(weight, 0.1) == pytest.approx(float(error.std()), rel=0.1)


def test_frames_of_a_sample_share_signs():
    draw = torch.Generator().manual_seed(0)
    signs = torch.randn(100, 3, generator=draw, dtype=torch.float64)
    own = torch.arange(12) % 3
    coefficients = signs[:, own] * torch.rand(100, 12, generator=draw, dtype=torch.float64)
    groups = grouped(coefficients, 3)
    assert sorted(tuple(own[group].unique().tolist()) for group in groups) == [(0,), (1,), (2,)]
    assert [len(group) for group in groups] == [4, 4, 4]
