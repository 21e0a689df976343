"""Image metrics against scikit-image's formulas written out, SciPy, and literal searches."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from snnfl.metrics import images as metric


def pictures(count, *shape, seed=0):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def test_psnr_follows_from_the_error():
    true = pictures(3, 3, 8, 8) * 0.5
    found = true + torch.tensor([0.1, 0.01, 0.0]).view(3, 1, 1, 1)
    torch.testing.assert_close(metric.psnr(found, true), torch.tensor([20.0, 40.0, 200.0]), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("shape", "alike"), [((3, 32, 32), 0.9), ((1, 8, 8), 0.9)])
def test_ssim_is_one_of_equal_and_small_of_unlike_pictures(shape, alike):
    true = pictures(2, *shape)
    torch.testing.assert_close(metric.ssim(true, true), torch.ones(2))
    assert (metric.ssim(true * 0.95, true) > alike).all()
    assert (metric.ssim(pictures(2, *shape, seed=1), true).abs() < 0.4).all()


def test_ssim_of_a_small_picture_is_the_mean_over_its_windows():
    """Seven pixels are one window; the others hang over the edge, where the picture is mirrored."""
    found, true = pictures(1, 1, 7, 7).double(), pictures(1, 1, 7, 7, seed=1).double()
    one, two, values = 0.01**2, 0.03**2, []
    mirrored = [torch.nn.functional.pad(picture, (3, 3, 3, 3), mode="reflect")[0, 0] for picture in (found, true)]
    for row, column in itertools.product(range(7), repeat=2):
        a, b = (picture[row : row + 7, column : column + 7].flatten() for picture in mirrored)
        covariance = ((a - a.mean()) * (b - b.mean())).mean()
        top = (2 * a.mean() * b.mean() + one) * (2 * covariance + two)
        bottom = (a.mean() ** 2 + b.mean() ** 2 + one) * (a.var(correction=0) + b.var(correction=0) + two)
        values.append(float(top / bottom))
    assert float(metric.ssim(found, true)) == pytest.approx(sum(values) / 49, abs=1e-9)


def test_registration_finds_a_displaced_picture():
    true = pictures(2, 1, 12, 12)
    moved = torch.roll(true, (2, -1), dims=(-2, -1))
    assert (metric.psnr(moved, true) < 12).all()
    assert (metric.registered_psnr(moved, true) == 200).all()
    assert (metric.registered_psnr(torch.roll(true, 3, dims=-1), true) < 15).all()  # further than two pixels
    unlike = pictures(2, 1, 12, 12, seed=1)
    assert (metric.registered_psnr(unlike, true) >= metric.psnr(unlike, true)).all()


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000))
def test_matching_has_the_smallest_total_error_of_all_assignments(found_count, true_count, seed):
    found, true = pictures(found_count, 1, 2, 2, seed=seed), pictures(true_count, 1, 2, 2, seed=seed + 1)
    chosen = metric.matched(found, true)
    pairs = [(row, int(column)) for row, column in enumerate(chosen) if column >= 0]
    assert len(pairs) == len({column for _, column in pairs}) == min(found_count, true_count)
    costs = torch.tensor([[float((f - t).square().sum()) for f in found] for t in true])
    if found_count >= true_count:
        orders = itertools.permutations(range(found_count), true_count)
        best = min(sum(float(costs[row, column]) for row, column in enumerate(order)) for order in orders)
        assert sum(float(costs[pair]) for pair in pairs) == pytest.approx(best, rel=1e-4)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_label_accuracy_ignores_order_and_counts_repetitions(labels, random):
    mixed = random.sample(labels, len(labels))
    assert metric.label_accuracy(torch.tensor(mixed), torch.tensor(labels)) == 1
    found = [*labels[:-1], 6]
    assert metric.label_accuracy(torch.tensor(found), torch.tensor(labels)) == pytest.approx(1 - 1 / len(labels))
    surplus = torch.tensor([*mixed, *range(6)])
    assert metric.label_accuracy(surplus, torch.tensor(labels)) == pytest.approx(len(labels) / (len(labels) + 6))


def test_a_reconstruction_is_identified_by_its_nearest_candidate():
    candidates = pictures(20, 1, 4, 4)
    found = candidates[[3, 7]] + 0.01
    flat = torch.nn.Flatten()
    assert metric.identified(found, candidates, torch.tensor([3, 7]), flat).tolist() == [True, True]
    assert metric.identified(found, candidates, torch.tensor([3, 8]), flat, batch_size=3).tolist() == [True, False]


def test_floors_are_what_a_blind_attacker_scores():
    true = torch.stack([torch.full((3, 4, 4), 0.5), torch.full((3, 4, 4), 0.7)])
    public = torch.full((5, 3, 4, 4), 0.6)
    guesses = metric.floors(true, public)
    assert metric.psnr(guesses["grey"], true).tolist() == pytest.approx([200, 13.979], abs=1e-2)
    assert metric.psnr(guesses["mean_image"], true).tolist() == pytest.approx([20, 20], abs=1e-2)
    assert (metric.psnr(guesses["mean_colour"], true) > 100).all()


@given(st.integers(1, 60), st.data())
def test_wilson_is_scipys(victims, data):
    successes = data.draw(st.integers(0, victims))
    expected = binomtest(successes, victims).proportion_ci(0.95, method="wilson")
    found = metric.wilson(successes, victims)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert found.value == successes / victims


def test_a_score_that_is_no_number_is_no_success():
    rate = metric.success_rate(torch.tensor([25.0, 20.0, 19.9, float("nan")]), 20)
    assert (rate.value, rate.victims) == (0.5, 4)


@pytest.mark.parametrize(("successes", "victims"), [(0, 0), (3, 2), (-1, 2)])
def test_counts_that_do_not_fit_are_an_error(successes, victims):
    with pytest.raises(ValueError, match=f"{successes} successes of {victims}"):
        metric.wilson(successes, victims)


def test_lpips_without_weights_is_not_a_number(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert metric.lpips(pictures(1, 3, 64, 64), pictures(1, 3, 64, 64)) == "not available"


@pytest.mark.skipif(
    not list((Path(torch.hub.get_dir()) / "checkpoints").glob("alexnet-*.pth")),
    reason="no weights of AlexNet in torch's cache; nothing downloads them",
)
def test_lpips_with_weights_grows_with_the_noise():
    true = pictures(2, 3, 64, 64)
    noise = torch.randn(true.shape, generator=torch.Generator().manual_seed(2))
    none, little, much = (metric.lpips((true + d * noise).clamp(0, 1), true) for d in (0.0, 0.05, 0.3))
    torch.testing.assert_close(none, torch.zeros(2))
    assert (little > 0).all()
    assert (much > little).all()
