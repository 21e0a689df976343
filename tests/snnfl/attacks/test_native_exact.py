"""What the first layer of a natively spiking network tells, and what of it must not be found."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from victims import digits, recordings, spiking_victim

from snnfl.attacks import Budget, get_attack
from snnfl.config import TrainingConfig
from snnfl.metrics.events import event_f1, exact_frames
from snnfl.metrics.images import matched, psnr
from snnfl.neurons.surrogates import SURROGATES

BUDGET = Budget(iterations=1)


def run(name, victim):
    return get_attack(name).run(victim.view, budget=BUDGET, generator=torch.Generator().manual_seed(0))


def in_place(found, true):
    return found[matched(found.sum(1), true.sum(1))]


@pytest.mark.parametrize("surrogate", SURROGATES.names())
def test_direct_coding_tells_the_image_under_every_surrogate(surrogate):
    pixels, labels, _, _ = digits(1)
    victim = spiking_victim(pixels, labels, sequence=False, surrogate=surrogate)
    found = run("native_closed_form", victim)
    assert psnr(found.images, pixels).item() > 90
    assert found.labels.tolist() == labels.tolist()
    assert found.objective < 1e-4


def test_poisson_coding_tells_the_rates():
    pixels, labels, _, _ = digits(1)
    victim = spiking_victim(pixels, labels, sequence=False, encoding="poisson", time_steps=100)
    found = run("native_closed_form", victim)
    assert 20 < psnr(found.images, pixels).item() < 50


@pytest.mark.parametrize("surrogate", ["fast_sigmoid", "atan", "sigmoid", "triangular", "spike_rate_escape"])
def test_a_recording_is_found_in_its_order(surrogate):
    true = recordings(1, seed=3)
    found = run("event_recovery", spiking_victim(true, torch.tensor([4]), sequence=True, surrogate=surrogate))
    assert event_f1(found.images, true / true.max()).item() == 1
    assert found.labels.tolist() == [4]


def test_a_gradient_that_was_clipped_before_its_decay_tells_a_recording():
    training = TrainingConfig(
        epochs=1, batch_size=1, learning_rate=0.1, momentum=0.0, weight_decay=0.01, clip_norm=0.01
    )
    true = recordings(1, seed=3)
    victim = spiking_victim(true, torch.tensor([4]), sequence=True, training=training)
    known = replace(victim.view.knowledge, clip_norm=0.01, clipped=True, clipped_gradient=True)
    found = run("event_recovery", replace(victim, view=replace(victim.view, knowledge=known)))
    assert event_f1(found.images, true / true.max()).item() == 1


def test_a_weighted_sum_of_frames_tells_them():
    true = recordings(1, seed=3)
    found = run("event_recovery", spiking_victim(true, torch.tensor([4]), sequence=True, surrogate="straight_through"))
    assert event_f1(found.images, true / true.max()).item() > 0.99
    assert found.labels.tolist() == [4]


def test_a_batch_is_found_in_its_order():
    true = recordings(3, side=20, seed=1)
    found = run("event_recovery", spiking_victim(true, torch.tensor([4, 7, 1]), sequence=True))
    true = true / true.max()
    assert event_f1(in_place(found.images, true), true).tolist() == [1, 1, 1]
    assert sorted(found.labels.tolist()) == [1, 4, 7]


@pytest.mark.parametrize(("labels", "epochs"), [([4], 1), ([4, 7, 1], 1), ([4], 3)])
def test_batch_normalisation_hides_no_frame(labels, epochs):
    true = recordings(len(labels), side=20, seed=3)
    training = TrainingConfig(epochs=epochs, batch_size=len(labels), learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    victim = spiking_victim(true, torch.tensor(labels), sequence=True, batch_norm=True, training=training)
    found, true = run("event_recovery", victim), true / true.max()
    everything = found.images.flatten(0, 1)[None], true.flatten(0, 1)[None]
    assert exact_frames(*everything).item() == 1
    if epochs == 1:
        assert event_f1(in_place(found.images, true), true).tolist() == [1] * len(labels)
        assert sorted(found.labels.tolist()) == sorted(labels)


def test_frozen_batch_normalisation_hides_nothing():
    """The client trains with running statistics; one that a registry's layer doesn't do, so its update is made here."""
    true = recordings(1, seed=3)
    victim = spiking_victim(true, torch.tensor([4]), sequence=True, batch_norm=True)
    model = copy.deepcopy(victim.view.model).to_empty(device="cpu").eval()
    for neurons in model.neurons.values():
        neurons.threshold.fill_(neurons.level)
    sent = victim.view.exchange.sent
    model.load_state_dict(dict(sent), strict=False)
    nn.functional.cross_entropy(model(true), torch.tensor([4])).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    received = {name: array - 0.1 * gradients.get(name, 0) for name, array in sent.items()}
    view = replace(
        victim.view,
        exchange=replace(victim.view.exchange, received=received),
        knowledge=replace(victim.view.knowledge, norm_mode="eval"),
    )
    found = get_attack("event_recovery").run(view, budget=BUDGET, generator=torch.Generator())
    assert event_f1(found.images, true / true.max()).item() == 1


@pytest.mark.parametrize("statistics", ["known", "estimated"])
def test_what_every_frame_has_only_the_running_mean_tells(statistics):
    true = recordings(1, seed=3)
    true[..., 5] += 1 + (torch.arange(10) == 4).view(-1, 1, 1)
    victim = spiking_victim(true, torch.tensor([4]), sequence=True, batch_norm=True)
    view = replace(victim.view, knowledge=replace(victim.view.knowledge, norm_statistics=statistics))
    found = get_attack("event_recovery").run(view, budget=BUDGET, generator=torch.Generator()).images * true.max()
    assert torch.equal(found.round()[0], true[0] - (0 if statistics == "known" else true[0].amin(0)))


def layers(*, side: int = 12, bias: bool = True, norm: bool = False) -> nn.Module:
    """Two hidden layers, batch normalisation behind the second one."""
    first, second = nn.Linear(2 * side * side, 200, bias=bias), nn.Linear(200, 50)
    norms = [nn.BatchNorm1d(50)] if norm else []
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, *norms, nn.ReLU(), nn.Linear(50, 10))


@pytest.mark.parametrize("surrogate", ["fast_sigmoid", "straight_through"])
def test_a_first_layer_without_a_bias_tells_a_recording_in_its_order(surrogate):
    true = recordings(1, seed=3)
    own = layers(bias=False)
    victim = spiking_victim(true, torch.tensor([4]), sequence=True, layers=own, surrogate=surrogate, threshold=0.3)
    found = run("event_recovery", victim)
    assert event_f1(found.images, true / true.max()).item() > 0.95  # of a weighted sum, its rounding is left
    assert found.labels.tolist() == [4]


@pytest.mark.parametrize("labels", [[4], [4, 7, 1]])
def test_denied_running_statistics_change_nothing_behind_the_first_layer(labels):
    """The client normalised by its own batch, so whatever else is in the memory of a replayed network plays no part."""
    true, own = recordings(len(labels), side=20, seed=3), layers(side=20, norm=True)
    victim = spiking_victim(true, torch.tensor(labels), sequence=True, layers=own, threshold=0.3)
    exchange = victim.view.exchange
    wild = {name: array + 1e3 * ("running" in name) for name, array in exchange.sent.items()}
    knowledge = victim.view.knowledge
    views = [
        replace(victim.view, knowledge=replace(knowledge, norm_statistics="unknown")),
        replace(victim.view, exchange=replace(exchange, sent=wild)),
        victim.view,
    ]
    found = [get_attack("event_recovery").run(view, budget=BUDGET, generator=torch.Generator()) for view in views]
    assert all(torch.equal(each.images, found[2].images) for each in found)
    assert all(each.labels.tolist() == found[2].labels.tolist() for each in found)
    everything = found[0].images.flatten(0, 1)[None], (true / true.max()).flatten(0, 1)[None]
    assert exact_frames(*everything).item() == 1
    frozen = replace(victim.view, knowledge=replace(knowledge, norm_mode="eval", norm_statistics="unknown"))
    assert "needs the running statistics" in (get_attack("event_recovery").refusal(frozen) or "")


def test_an_image_of_unknown_brightness_is_refused():
    pixels, labels, _, _ = digits(1)
    first, last = nn.Linear(64, 100, bias=False), nn.Linear(100, 10)
    own = nn.Sequential(nn.Flatten(), first, nn.ReLU(), last)
    view = spiking_victim(pixels, labels, sequence=False, layers=own).view
    assert "has no bias" in (get_attack("native_closed_form").refusal(view) or "")


@pytest.mark.parametrize("labels", [[4], [4, 7, 1]])
def test_recurrent_layers_give_recordings_away(labels):
    """A layer's spikes flow back into it behind its input weights, whose gradient is a sum over frames as ever."""
    true = recordings(len(labels), side=20, seed=1)
    found = run("event_recovery", spiking_victim(true, torch.tensor(labels), sequence=True, neuron="rlif"))
    true = true / true.max()
    assert event_f1(in_place(found.images, true), true).tolist() == [1] * len(labels)
    assert sorted(found.labels.tolist()) == sorted(labels)


def test_recurrent_layers_give_images_away():
    pixels, labels, _, _ = digits(1)
    found = run("native_closed_form", spiking_victim(pixels, labels, sequence=False, neuron="rlif"))
    assert psnr(found.images, pixels).item() > 90
    assert found.labels.tolist() == labels.tolist()


def test_several_local_steps_keep_the_frames():
    true = recordings(2, side=20, seed=1)
    training = TrainingConfig(epochs=3, batch_size=1, learning_rate=0.1, momentum=0.9, weight_decay=1e-3)
    found = run("event_recovery", spiking_victim(true, torch.tensor([4, 7]), sequence=True, training=training))
    everything = found.images.flatten(0, 1)[None], (true / true.max()).flatten(0, 1)[None]
    assert exact_frames(*everything).item() > 0.9


@pytest.mark.parametrize("neuron", ["lif", "rlif"])
def test_noise_on_the_update_hides_recordings(neuron):
    true = recordings(1)
    victim = spiking_victim(true, torch.tensor([4]), sequence=True, neuron=neuron)
    exchange, draw = victim.view.exchange, torch.Generator().manual_seed(0)
    noisy = {name: array + 1e-3 * torch.randn(array.shape, generator=draw) for name, array in exchange.received.items()}
    view = replace(victim.view, exchange=replace(exchange, received=noisy))
    found = get_attack("event_recovery").run(view, budget=BUDGET, generator=torch.Generator())
    assert exact_frames(found.images, true / true.max()).item() == 0
    assert found.objective > 0.1


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("event_recovery", {"name": "convnet"}, "the first layer isn't linear"),
        ("event_recovery", {"encoding": "delta"}, "the network encodes them"),
        ("native_closed_form", {}, "event_recovery takes counts of events"),
    ],
)
def test_what_cannot_work_is_refused(name, options, reason):
    true = recordings(1, side=16)
    view = spiking_victim(true, torch.tensor([4]), sequence=True, **options).view
    assert reason in (get_attack(name).refusal(view) or "")


def test_batch_normalisation_of_several_batches_is_refused():
    training = TrainingConfig(epochs=1, batch_size=1, learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    labels = torch.tensor([4, 7])
    victim = spiking_victim(recordings(2), labels, sequence=True, batch_norm=True, training=training)
    assert "statistics of several batches" in (get_attack("event_recovery").refusal(victim.view) or "")
    denied = replace(victim.view, knowledge=replace(victim.view.knowledge, norm_mode=None))
    assert "needs norm_mode" in (get_attack("event_recovery").refusal(denied) or "")


def test_a_batch_of_images_is_told_who_takes_it():
    pixels, labels, _, _ = digits(2)
    view = spiking_victim(pixels, labels, sequence=False).view
    assert get_attack("image_recovery").refusal(view) is None
    for name in ("event_recovery", "native_closed_form"):
        assert "image_recovery" in (get_attack(name).refusal(view) or "")


def test_images_behind_batch_normalisation_are_refused():
    pixels, labels, _, _ = digits(2)
    view = spiking_victim(pixels, labels, sequence=False, batch_norm=True).view
    assert "without the mean over time" in (get_attack("native_closed_form").refusal(view) or "")


def test_more_steps_than_outputs_are_refused():
    view = spiking_victim(recordings(1), torch.tensor([4]), sequence=True).view
    many = replace(view, knowledge=replace(view.knowledge, images=101, batch_size=101))
    assert "1010 time steps of all samples don't fit" in (get_attack("event_recovery").refusal(many) or "")
