"""Batch statistics read off an update, against those that the client's own layers computed."""

from __future__ import annotations

import pytest
import torch
from victims import attacked, small_cnn

from snnfl.attacks.local import LocalTraining
from snnfl.attacks.networks import network_of
from snnfl.attacks.statistics import as_running, batch_statistics_of, observed_statistics, statistics_distance
from snnfl.config import ConversionConfig, TrainingConfig


def true_statistics(victim):
    arrays = {**victim.view.exchange.sent, **victim.truth.biases}
    return batch_statistics_of(victim.view.model)(arrays, victim.view.inputs(victim.truth.images))


def test_statistics_are_what_moves_the_running_ones():
    model = small_cnn(norm=True)
    arrays = {name: array.detach().clone() for name, array in model.named_parameters()}
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = batch_statistics_of(model)(arrays, images)
    for norm in (model.norm1, model.norm2):
        norm.momentum = 1.0
    model.train()(images)
    expected = [torch.stack([norm.running_mean, norm.running_var]) for norm in (model.norm1, model.norm2)]
    torch.testing.assert_close(found, torch.cat(expected, dim=1))


@pytest.mark.parametrize("spiking", [False, True])
def test_an_update_of_one_step_tells_them_exactly(spiking):
    victim = attacked(small_cnn(norm=True), images=3, conversion=ConversionConfig(steps=4) if spiking else None)
    torch.testing.assert_close(observed_statistics(victim.view, 1), true_statistics(victim), rtol=1e-4, atol=1e-5)


def test_of_several_steps_it_tells_a_weighted_mean():
    training = TrainingConfig(epochs=3, batch_size=4, learning_rate=1e-9, momentum=0.0, weight_decay=0.0)
    victim = attacked(small_cnn(norm=True), images=4, training=training)
    torch.testing.assert_close(observed_statistics(victim.view, 3), true_statistics(victim), rtol=1e-3, atol=1e-4)


def test_the_distance_is_zero_at_the_truth_alone():
    victim = attacked(small_cnn(norm=True), images=3)
    statistics, seen = batch_statistics_of(victim.view.model), observed_statistics(victim.view, 1)
    arrays, images = dict(victim.view.exchange.sent), victim.view.inputs(victim.truth.images)
    local = LocalTraining(batch_size=3)
    assert float(statistics_distance(statistics, arrays, images, local, seen)) < 1e-8
    found = float(statistics_distance(statistics, arrays, images + 0.1, local, seen))
    value = statistics(arrays, images + 0.1)
    literal = ((value[0] - seen[0]) ** 2 / seen[1]).mean() + ((value[1] / seen[1] - 1) ** 2).mean()
    assert found == pytest.approx(float(literal), rel=1e-5)


@pytest.mark.parametrize("count", [2, 5])
def test_with_the_statistics_as_running_ones_each_image_is_given_what_the_batch_gave_it(count):
    victim, model = attacked(small_cnn(norm=True), images=count), small_cnn(norm=True)
    images = victim.view.inputs(victim.truth.images)
    running = as_running(model, (1, 8, 8), count)
    arrays = {**victim.view.exchange.sent, **running(observed_statistics(victim.view, 1))}
    together = network_of(model, "train")(victim.view.exchange.sent, images)
    each = torch.cat([network_of(model, "eval")(arrays, image[None]) for image in images])
    torch.testing.assert_close(each, together, atol=1e-4, rtol=1e-4)


def test_of_a_model_that_does_not_run_without_numbers_there_are_no_running_statistics():
    class Looks(torch.nn.BatchNorm2d):
        def forward(self, images):
            return super().forward(images) if images.sum() > 0 else images

    assert as_running(torch.nn.Sequential(Looks(1)), (1, 8, 8), 2) is None
