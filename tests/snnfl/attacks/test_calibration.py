"""Thresholds as a function that can be differentiated, against those of the conversion itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.func import grad, vmap
from victims import attacked, settled_cnn, small_cnn

from snnfl.attacks import Budget, get_attack
from snnfl.attacks.biases import inferred
from snnfl.attacks.calibration import differentiable_thresholds, lacks_thresholds, thresholds_distance, with_thresholds
from snnfl.attacks.problem import problem_of
from snnfl.config import ConversionConfig
from snnfl.conversion.thresholds import find_thresholds

KINDS = ("layer_mmse", "channel_mmse", "layer_max", "percentile")


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_those_of_the_conversion(kind):
    config, draw = ConversionConfig(steps=16, thresholds=kind), torch.Generator().manual_seed(0)
    values = torch.randn(3, 4, 6, 5, 5, generator=draw).relu()
    values[:, :, 2] = 0  # a silent channel
    values[0] = 0
    expected = torch.stack([find_thresholds(each, 16, config, ceiling=0.5) for each in values])
    at_once = vmap(lambda each: differentiable_thresholds(each, 16, config, ceiling=0.5))(values)
    assert torch.equal(at_once, expected)


def test_their_derivative_is_that_of_finite_differences():
    config = ConversionConfig(steps=8)
    values = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(1))

    def total(given):
        return differentiable_thresholds(given, 8, config).sum()

    slope, place, step = grad(total)(values), values.argmax(), 1e-3
    moved = values.clone()
    moved.view(-1)[place] += step
    numeric = float(total(moved) - total(values)) / step
    assert float(slope.view(-1)[place]) == pytest.approx(numeric, rel=1e-2)
    assert int((slope != 0).sum()) == 1  # of the largest activation alone


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("make", "calibration", "layers"),
    [(small_cnn, "none", 2), (small_cnn, "potential", 2), (settled_cnn, "none", 2)],
)
def test_true_images_have_the_thresholds_of_the_update(kind, make, calibration, layers):
    conversion = ConversionConfig(steps=8, thresholds=kind, calibration=calibration)
    victim = attacked(make(), images=2, conversion=conversion, calibrating=None)
    problem = with_thresholds(victim.view, problem_of(victim.view, guesses=inferred(victim.view)))
    found = problem.calibration(problem.arrays, victim.view.inputs(victim.truth.images))
    assert len(found) == layers
    for ours, theirs in zip(found, problem.told, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    assert float(thresholds_distance(found, problem.told)) < 1e-10
    others = problem.calibration(problem.arrays, victim.view.inputs(victim.truth.images.flip(-1)))
    assert float(thresholds_distance(others, problem.told)) > 1e-6


def test_thresholds_of_single_channels_help_the_gradient():
    conversion = ConversionConfig(steps=2, thresholds="channel_mmse", calibration="none")
    victim = attacked(small_cnn(), conversion=conversion, calibrating=None)
    denied = replace(victim.view, knowledge=replace(victim.view.knowledge, thresholds=False))
    attack = get_attack("reconverted_calibrated")
    assert attack.refusal(victim.view) is None
    assert attack.refusal(denied) == "reconverted_calibrated: needs thresholds, which the threat model denies"
    found = attack.run(victim.view, budget=Budget(iterations=2), generator=torch.Generator())
    assert "thresholds" not in found.choice  # without public images nothing says that they help


def test_images_that_nobody_knows_are_not_compared():
    conversion = ConversionConfig(steps=4, calibration_images=2)
    view = attacked(small_cnn(), images=3, conversion=conversion).view
    assert lacks_thresholds(view) == "the client calibrates with 2 of its 3 images, and nobody knows with which"
    assert lacks_thresholds(attacked(small_cnn()).view) == "the update has no thresholds"
