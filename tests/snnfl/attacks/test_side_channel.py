"""What thresholds alone tell, where they must and where they must not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from victims import attacked, digits, small_cnn, small_mlp

from snnfl.attacks.problem import problem_of
from snnfl.attacks.side_channel import fingerprint_distances, gradient_cosines, infer_properties
from snnfl.config import ConversionConfig
from snnfl.threat import PublicImages, ThreatModelError


def client(conversion=None, *, calibrating=None, images=10, model=None):
    made = attacked(model or small_mlp(), images=images, conversion=conversion, calibrating=calibrating)
    pixels, labels, mean, std = digits(300, 1000)
    public = PublicImages(inputs=(pixels - mean) / std, labels=labels)
    return replace(made, view=replace(made.view, public=public))


@pytest.mark.parametrize("kind", ["layer_mmse", "layer_max", "channel_mmse"])
def test_images_that_hold_a_largest_activation_are_recognised(kind):
    victim = client(ConversionConfig(steps=4, thresholds=kind, calibration="none"))
    inside = fingerprint_distances(victim.view, victim.view.inputs(victim.truth.images))
    outside = fingerprint_distances(victim.view, victim.view.public.inputs)
    least = 1 if kind != "channel_mmse" else 8  # of one layer, or of 32 channels
    assert int((inside < 1e-6).sum()) >= least
    assert float(outside.min()) > 1e-6


def test_thresholds_of_other_images_tell_nothing():
    victim = client(ConversionConfig(steps=4, thresholds="channel_mmse", calibration="none"), calibrating=500)
    inside = fingerprint_distances(victim.view, victim.view.inputs(victim.truth.images))
    assert float(inside.min()) > 1e-6


def test_batch_normalisation_gives_calibrated_biases_away():
    """A convolution without a bias of its own: what calibration adds to it can be taken off again."""

    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
    )
    victim = client(ConversionConfig(steps=4, thresholds="channel_mmse"), model=model)
    inside = fingerprint_distances(victim.view, victim.view.inputs(victim.truth.images))
    assert int((inside < 1e-5).sum()) >= 4


@pytest.mark.parametrize("thresholds", ["percentile", "denied"])
def test_what_tells_no_image_is_refused(thresholds):
    kind = "layer_mmse" if thresholds == "denied" else thresholds
    view = client(ConversionConfig(steps=4, thresholds=kind)).view
    if thresholds == "denied":
        view = replace(view, knowledge=replace(view.knowledge, thresholds=False))
    with pytest.raises(ThreatModelError, match="thresholds, which" if thresholds == "denied" else "percentile"):
        fingerprint_distances(view, view.public.inputs)


def test_thresholds_alone_tell_how_bright_images_are():
    victim = client(ConversionConfig(steps=4, calibration="none"), model=small_cnn())
    view, exchange = victim.view, victim.view.exchange
    brightness = [0.8, 1.0, 0.9]
    found = []
    for factor in brightness:
        received = view.format.encode(exchange.received, view.inputs(factor * victim.truth.images))
        seen = replace(view, exchange=replace(exchange, received=received))
        found.append(infer_properties(seen, 10, torch.Generator().manual_seed(0)).contrast)
    assert sorted(range(3), key=found.__getitem__) == sorted(range(3), key=brightness.__getitem__)


def test_members_have_gradients_like_the_update():
    victim = client(images=4)
    problem = problem_of(victim.view)
    members = gradient_cosines(problem, victim.view.inputs(victim.truth.images), victim.truth.labels)
    public = victim.view.public
    others = gradient_cosines(problem, public.inputs, public.labels)
    assert float(members.mean()) > float(others.mean()) + 0.2
