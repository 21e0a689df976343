"""Each metric against a literal loop or NumPy, on series that differ in known ways."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from snnfl import rng
from snnfl.metrics import series as metric


def noise(*shape, seed=0):
    return torch.randn(shape, generator=rng.generator(0, "series", seed))


def test_correlation_is_numpys_mean_over_features():
    found, true = noise(3, 12, 4), noise(3, 12, 4, seed=1)
    expected = [
        np.mean([np.corrcoef(found[n, :, f], true[n, :, f])[0, 1] for f in range(4)]) for n in range(3)
    ]  # fmt: skip
    assert metric.correlation(found, true).tolist() == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(metric.correlation(3 * true - 2, true), torch.ones(3))


def test_a_constant_says_nothing_of_a_course():
    assert metric.correlation(torch.full((2, 9, 3), 0.1), noise(2, 9, 3)).tolist() == [0, 0]


def test_warping_is_the_recursion_written_out():
    found, true = noise(2, 7, 3), noise(2, 7, 3, seed=1)

    def distance(x, y, i, j):
        if i < 0 or j < 0:
            return 0.0 if i == j == -1 else math.inf
        step = float((x[i] - y[j]).square().sum())
        return step + min(distance(x, y, i - 1, j), distance(x, y, i, j - 1), distance(x, y, i - 1, j - 1))

    expected = [math.sqrt(distance(x, y, 6, 6) / 7) for x, y in zip(found, true, strict=True)]
    assert metric.warping_distance(found, true).tolist() == pytest.approx(expected, rel=1e-5)


def test_a_series_that_comes_late_is_near_by_warping_and_far_by_steps():
    course = torch.sin(torch.arange(40.0) / 3)[None, :, None]
    late = torch.sin((torch.arange(40.0) - 4) / 3)[None, :, None]
    plain = (course - late).square().mean().sqrt()
    assert metric.warping_distance(late, course) < plain / 2
    assert metric.warping_distance(course, course) == 0


def test_log_spectral_distance_is_the_loop_in_decibels():
    found, true = noise(2, 5, 8), noise(2, 5, 8, seed=1)
    decibels = [10 * np.log10(np.exp(values.double().numpy())) for values in (found, true)]
    expected = [
        np.mean([math.sqrt(np.mean((decibels[0][n, t] - decibels[1][n, t]) ** 2)) for t in range(5)]) for n in range(2)
    ]
    assert metric.log_spectral_distance(found, true).tolist() == pytest.approx(expected, rel=1e-5)


def test_the_mean_row_has_a_relative_error_of_one():
    rows = noise(4, 6)
    assert metric.relative_error(torch.zeros(4, 6), rows).tolist() == pytest.approx([1] * 4)
    assert metric.relative_error(rows * 1.1, rows).tolist() == pytest.approx([0.1] * 4, rel=1e-4)
    assert torch.isfinite(metric.relative_error(rows, torch.zeros(4, 6))).all()
