"""The number of images that an update is of, against the true one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from victims import attacked, digits, small_cnn, small_mlp

from snnfl.attacks import counting, get_attack
from snnfl.attacks.counting import images_told
from snnfl.auditing.scoring import Scorer
from snnfl.auditing.victims import setting_of
from snnfl.config import ModelConfig, TrainingConfig, compose
from snnfl.models import build_model
from snnfl.rng import generator
from snnfl.workspace import Workspace


def denied(victim, **flags):
    unknown = {"images": None, "batch_size": None, "epochs": None, **flags}
    return replace(victim.view, knowledge=replace(victim.view.knowledge, **unknown))


def lenet(batch_norm=False):
    model = ModelConfig(name="lenet5", batch_norm=batch_norm)
    return build_model(model, input_shape=(1, 8, 8), classes=10, generator=generator(0, "weights"))


@pytest.mark.parametrize("images", [1, 2, 4, 8])
@pytest.mark.parametrize("model", [small_mlp, small_cnn, lenet])
@pytest.mark.parametrize("decay", [0.0, 5e-4])
@pytest.mark.parametrize("batch_size", [2, 8])
def test_the_rank_is_the_number_of_images_of_a_pass(images, model, decay, batch_size):
    training = TrainingConfig(epochs=1, batch_size=batch_size, learning_rate=0.05, momentum=0.0, weight_decay=decay)
    if decay and images > batch_size:
        training = replace(training, batch_size=images)  # decay of several steps is known only with their number
    victim = attacked(model(), images=images, training=training)
    assert images_told(denied(victim)) == images


def test_a_wide_layer_counts_more_than_there_are_classes():
    training = TrainingConfig(epochs=1, batch_size=32, learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    assert images_told(denied(attacked(lenet(batch_norm=True), images=32, training=training))) == 32
    assert images_told(denied(attacked(small_cnn(), images=32, training=training))) is None


def test_what_is_no_pass_over_few_images_is_not_counted(monkeypatch):
    victim = attacked(small_mlp(), images=2)
    exchange, draw = victim.view.exchange, torch.Generator().manual_seed(0)
    noise = {name: array + 0.01 * torch.randn(array.shape, generator=draw) for name, array in exchange.sent.items()}
    for received in (noise, exchange.sent):
        view = replace(denied(victim), exchange=replace(exchange, received=received))
        assert images_told(view) is None
        assert "the update doesn't tell" in get_attack("huang").refusal(view)
    assert images_told(denied(victim, epochs=2)) is None
    monkeypatch.setattr(counting, "MOST", 1)
    assert images_told(denied(victim)) is None


def test_the_best_of_many_guesses_is_not_scored():
    """Of two images, thirty-two guesses with all labels found both labels, and something like the images."""
    victim = attacked(small_cnn(), images=2)
    work = Workspace(compose(overrides=["data.source=digits", "model.name=lenet5", "data.clients=10"]))
    pixels = digits(32, 100)[0]
    guess = torch.cat([pixels, victim.truth.images])  # the true ones are the last: too late

    class Guess:
        images, curve, trail = guess, ((0, 1.0),), (guess,)
        labels = torch.cat([torch.arange(10), torch.arange(10), torch.arange(10), torch.tensor([3, 3, 3, 3])])

    found = Scorer(setting_of(work)).score(Guess(), victim.truth, work.initial_state)
    assert found.label_accuracy <= 2 / 34
    assert torch.equal(found.found.sort(0).values, pixels[:2].sort(0).values)
    assert found.values["psnr"] < 20
    assert found.curve[0][1] == pytest.approx(found.values["psnr"])
