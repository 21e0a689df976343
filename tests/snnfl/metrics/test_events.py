"""Metrics of event recordings, against literal loops and integrals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from snnfl.metrics import events

COUNTS = hnp.arrays(np.uint8, (2, 4, 3), elements=st.integers(0, 2))
METRICS = (events.event_f1, events.exact_frames, events.van_rossum, events.victor_purpura)


def trains(recording: np.ndarray) -> list[list[int]]:
    """Return the times of a recording's events by pixel, ``[T, pixels]``."""
    return [[t for t, count in enumerate(course) for _ in range(count)] for course in recording.T]


def integral(a: list[int], b: list[int], tau: float) -> float:
    """Integrate the squared difference of the filtered trains, as van Rossum's equation 2.3 has it."""
    t = np.arange(0, 40, 0.002) + 0.001
    f, g = (sum((np.where(t >= s, np.exp(-(t - s) / tau), 0) for s in train), np.zeros_like(t)) for train in (a, b))
    return float(((f - g) ** 2).sum() * 0.002 / tau)


def cheapest(a: list[int], b: list[int], cost: float) -> float:
    """Try every matching of events that keeps their order: matched ones move, others are removed or added."""
    best = math.inf
    for pairs in range(min(len(a), len(b)) + 1):
        for chosen in itertools.combinations(a, pairs):
            for onto in itertools.combinations(b, pairs):
                moved = sum(cost * abs(s - t) for s, t in zip(chosen, onto, strict=True))
                best = min(best, moved + len(a) + len(b) - 2 * pairs)
    return best


@settings(max_examples=25, deadline=None)
@given(found=COUNTS, true=COUNTS)
def test_agree_with_their_definitions(found, true):
    a, b = (torch.from_numpy(values).float() for values in (found, true))
    b[:, 0, 0] = 1  # a unit
    true = b.numpy().astype(np.uint8)
    for n in range(2):
        pairs = list(zip(trains(found[n]), trains(true[n]), strict=True))
        hits = sum(min(x.count(t), y.count(t)) for x, y in pairs for t in range(4))
        total = sum(len(x) + len(y) for x, y in pairs)
        assert events.event_f1(a, b)[n].item() == pytest.approx(2 * hits / total)
        squared = sum(integral(x, y, 1.5) for x, y in pairs)
        assert events.van_rossum(a, b, tau=1.5)[n].item() == pytest.approx(math.sqrt(squared), abs=0.02)
        edits = sum(cheapest(x, y, 0.7) for x, y in pairs)
        assert events.victor_purpura(a, b, cost=0.7)[n].item() == pytest.approx(edits, abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(true=COUNTS, order=st.permutations(range(4)))
def test_exact_frames_ignores_their_order_alone(true, order):
    b = torch.from_numpy(true).float()
    b[:, 0, 0] = 1
    assert events.exact_frames(b[:, list(order)], b).tolist() == [1, 1]
    wrong = b.clone()
    wrong[0, 2, 0] += 1
    assert events.exact_frames(wrong, b)[0] < 1 or not b[0, 2].any()


def test_a_frame_found_once_counts_once():
    frame = torch.tensor([1.0, 0.0])
    true = torch.stack([frame, frame, torch.zeros(2), torch.ones(2)])[None]
    found = torch.stack([frame, torch.zeros(2), torch.zeros(2)])[None]
    assert events.exact_frames(found, true).item() == pytest.approx(1 / 3)


def test_units_do_not_count():
    draw = torch.Generator().manual_seed(0)
    true = torch.randint(0, 3, (3, 5, 2, 12, 12), generator=draw).float()
    found = torch.randint(0, 3, (3, 5, 2, 12, 12), generator=draw).float()
    for metric in (*METRICS, events.time_surface_ssim):
        torch.testing.assert_close(metric(found / 12, true / 12), metric(found, true))
        torch.testing.assert_close(metric(found + 0.3, true), metric(found, true))


def test_time_surface_remembers_the_last_event():
    course = torch.tensor([0.0, 2.0, 0.0, 0.0, 1.0]).view(1, 5, 1, 1, 1)
    wanted = [0, 1, math.exp(-0.5), math.exp(-1), 1]
    assert events.time_surface(course.double(), 2.0).flatten().tolist() == pytest.approx(wanted)


def test_time_surface_ssim_falls_with_the_delay():
    draw = torch.Generator().manual_seed(0)
    true = (torch.rand(1, 8, 2, 16, 16, generator=draw) < 0.1).float()
    scores = [events.time_surface_ssim(true.roll(shift, 1), true).item() for shift in range(3)]
    assert scores[0] == pytest.approx(1)
    assert scores[0] > scores[1] > scores[2]


def test_empty_recordings_agree():
    nothing = torch.zeros(1, 3, 2, 4, 4)
    assert [metric(nothing, nothing).item() for metric in METRICS] == [1, 1, 0, 0]


def test_refuse_what_cannot_be_compared():
    with pytest.raises(ValueError, match=r"found recordings of shape \[1, 2, 3\], true ones of \[1, 3, 3\]"):
        events.event_f1(torch.zeros(1, 2, 3), torch.zeros(1, 3, 3))
    with pytest.raises(ValueError, match=r"expected \[N, T, C, H, W\]"):
        events.time_surface_ssim(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))
