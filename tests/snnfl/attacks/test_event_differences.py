"""Frames of events are taken out of sums of their products whose coefficients add up to zero."""

from __future__ import annotations

import torch
from frames import drawn, rows, same
from hypothesis import given, settings
from hypothesis import strategies as st

from snnfl.attacks.event_differences import find_differences, sparse_frames


def mixed(frames: torch.Tensor, *, outputs: int = 100, noise: float = 0.0, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    weights = torch.randn(outputs, len(frames), dtype=torch.float64, generator=draw)
    product = (weights - weights.mean(1, keepdim=True)) @ frames
    return product + noise * torch.randn(product.shape, dtype=torch.float64, generator=draw)


@settings(max_examples=30, deadline=None)
@given(steps=st.integers(2, 12), most=st.integers(1, 5), seed=st.integers(0, 10_000))
def test_finds_all_frames_of_any_coefficients(steps, most, seed):
    frames = drawn(steps, most=most, seed=seed)
    frames[:, (frames > 0).all(0)] = 0
    found = find_differences(mixed(frames, noise=1e-6, seed=seed), noise=1e-6, most=steps)
    assert same(found.frames, frames)
    assert found.rank == steps
    assert found.residual < 1e-5
    assert found.coefficients.sum(1).abs().max() < 1e-9


def test_sums_of_frames_tell_what_every_frame_has():
    frames = drawn(6, pixels=120)
    frames[:, :5] = 1 + torch.eye(6, 5)
    weight = torch.randn(150, 120, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradient = mixed(frames)
    found = find_differences(gradient, noise=1e-9, most=6, weight=weight, summed=weight @ frames.sum(0))
    assert same(found.frames, frames)
    wrong = find_differences(gradient, noise=1e-9, most=6, weight=weight, summed=weight @ frames.sum(0) + 1.0)
    few = find_differences(gradient, noise=1e-9, most=6, weight=weight[:50], summed=weight[:50] @ frames.sum(0))
    assert same(wrong.frames, frames - frames.amin(0))
    assert same(few.frames, frames - frames.amin(0))


def test_finds_frames_whose_pairs_are_more_frequent():
    """The columns that occur most often are then not those of single frames, but sums of two."""
    frames = drawn(6, density=0.02)
    for first in range(6):
        pixels = slice(300 + 20 * first, 320 + 20 * first)
        frames = torch.nn.functional.pad(frames, (0, pixels.stop - frames.shape[1]))
        frames[first, pixels] = frames[(first + 1) % 6, pixels] = 1
    found = find_differences(mixed(frames), noise=1e-9, most=6)
    assert same(found.frames, frames)


def test_frames_of_the_wrong_lattice_are_divided():
    """Pairs of three frames are more frequent than each of them, and generate every second point of the lattice."""
    frames = torch.zeros(6, 42, dtype=torch.float64)
    for pixel in range(18):
        frames[[pixel % 3, (pixel + 1) % 3], pixel] = 1
    for pixel in range(18, 42):
        frames[pixel % 6, pixel] = 1
    found = find_differences(mixed(frames), noise=1e-9, most=6)
    assert same(found.frames, frames)


def test_an_empty_frame_is_found_as_the_last_one():
    frames = drawn(6)
    frames[2] = 0
    found = find_differences(mixed(frames), noise=1e-9, most=6)
    assert same(found.frames, frames)


def test_noise_hides_them():
    frames = drawn(10)
    found = find_differences(mixed(frames, noise=1.0), noise=1e-6, most=10)
    assert rows(found.frames).isdisjoint(rows(frames))


def test_a_gradient_of_nothing_has_no_frames():
    assert len(find_differences(torch.zeros(20, 30), noise=1e-9, most=10).frames) == 0
    assert len(sparse_frames(torch.zeros(0, 30, dtype=torch.float64), 1e-9)) == 0
