"""Spiking networks' gradients as attacks compute them, what their linear layers tell, and attacks that use it."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from spiking_victims import spiking, spiking_victim, trained
from torch import nn
from victims import Victim, digits

from snnfl.attacks import Budget, get_attack, native_matching
from snnfl.attacks.labels import solved
from snnfl.attacks.local import simulate
from snnfl.attacks.native_features import discounted, few_rows, relaxed, told, unexplained
from snnfl.attacks.native_matching import Weights
from snnfl.attacks.networks import last_linear
from snnfl.attacks.problem import problem_of
from snnfl.metrics.images import floors, matched, psnr
from snnfl.models import SpikingNeurons
from snnfl.neurons import surrogate_spike
from snnfl.neurons.surrogates import fast_sigmoid
from snnfl.threat import PublicImages

ATTACKS = ("dlg", "idlg", "inverting_gradients", "native_features", "native_adaptive")


def inputs_of(victim: Victim) -> torch.Tensor:
    return victim.view.inputs(victim.truth.images)


@cache
def convnet() -> nn.Module:
    return trained(spiking("convnet"))


@cache
def convolutional() -> Victim:
    return spiking_victim(convnet())


def psnr_of(name: str, victim: Victim, iterations: int, seed: int = 0) -> float:
    budget, draw = Budget(iterations=iterations), torch.Generator().manual_seed(seed)
    found = get_attack(name).run(victim.view, budget=budget, generator=draw)
    truth = victim.truth.images
    return float(psnr(found.images[matched(found.images, truth)], truth).mean())


def simulated(victim: Victim) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    problem = problem_of(victim.view)
    targets = nn.functional.one_hot(victim.truth.labels, 10).float()
    found = simulate(problem.network, problem.arrays, tuple(problem.target), inputs_of(victim), targets, problem.local)
    return found, problem.target


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"neuron": "if", "threshold": 0.5},
        {"neuron": "rlif", "reset": "zero"},
        {"neuron": "alif", "readout": "max_potential"},
        {"surrogate": "atan", "reset_delay": False},
        {"surrogate": "straight_through", "readout": "rate"},
        {"learn_beta": True, "learn_threshold": True, "pooling": "max"},
        {"batch_norm": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("images", [1, 3])
def test_the_gradient_is_that_of_training(options, images):
    found, wanted = simulated(spiking_victim(spiking(**options), images=images))
    size = sum(array.square().sum() for array in wanted.values()).sqrt()
    for name, array in wanted.items():
        torch.testing.assert_close(found[name], array, rtol=2e-3, atol=2e-5 * float(size) + 2e-6, msg=name)


def test_the_gradient_of_sequences_is_that_of_training():
    victim = spiking_victim(spiking("mlp", shape=(8, 8), sequence=True, neuron="rlif"))
    found, wanted = simulated(victim)
    for name, array in wanted.items():
        torch.testing.assert_close(found[name], array, rtol=2e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("readout", ["mean_potential", "final_potential"])
def test_the_last_layer_tells_its_discounted_rates(readout):
    victim = spiking_victim(trained(spiking(readout=readout)))
    model, forward = relaxed(victim.view, "atan", 2.0)
    problem = problem_of(victim.view)
    given, _ = forward(problem.arrays, inputs_of(victim))
    torch.testing.assert_close(told(victim.view, problem).rates, discounted(model, given["fc5"]), atol=1e-4, rtol=0)


def test_a_batch_tells_the_rates_of_each_image():
    victim = spiking_victim(convnet(), images=4)
    model, forward = relaxed(victim.view, "atan", 2.0)
    problem = problem_of(victim.view)
    found = solved(victim.view, problem, torch.Generator().manual_seed(0))
    given, _ = forward(problem.arrays, inputs_of(victim))
    wanted, rates = discounted(model, given[last_linear(model)]), told(victim.view, problem, found).rates
    order = torch.cdist(rates, wanted).argmin(1)
    assert sorted(order.tolist()) == [0, 1, 2, 3]
    torch.testing.assert_close(rates, wanted[order], atol=1e-3, rtol=0)
    assert found.labels.tolist() == victim.truth.labels[order].tolist()


def test_rates_that_differ_between_classes_are_not_told():
    for options in ({"readout": "max_potential"}, {"readout": "rate"}):
        victim = spiking_victim(spiking(**options))
        assert told(victim.view, problem_of(victim.view)).rates is None


def test_true_spikes_explain_a_gradient_and_others_do_not():
    draw = torch.Generator().manual_seed(0)
    spikes, others = ((torch.rand(5, 60, generator=draw) < 0.3).float() for _ in range(2))
    gradient = torch.randn(30, 5, generator=draw) @ spikes
    rows = few_rows(gradient, 5)
    assert rows is not None
    assert float(unexplained(rows, spikes)) < 0.02
    assert float(unexplained(rows, others)) > 0.3
    assert float(unexplained(rows, torch.zeros_like(spikes))) == pytest.approx(1, abs=1e-5)


def test_what_tells_steps_apart_counts_beside_what_they_share():
    draw = torch.Generator().manual_seed(0)
    shared = torch.rand(1, 60, generator=draw) < 0.3
    spikes = (shared ^ (torch.rand(5, 60, generator=draw) < 0.1)).float()
    gradient = (1 + 0.2 * torch.randn(30, 5, generator=draw)) @ spikes  # as slopes of neighbouring steps
    rows = few_rows(gradient, 5)
    assert rows is not None
    own, alike = (float(unexplained(rows, given)) for given in (spikes, spikes.mean(0).expand(5, -1)))
    assert alike > 5 * own


def test_rows_that_could_span_everything_tell_nothing():
    assert few_rows(torch.randn(8, 60), 5) is None


def test_rows_depend_on_the_gradient_alone():
    draw = torch.Generator().manual_seed(0)
    gradient = torch.randn(80, 6, generator=draw) @ torch.randn(6, 60, generator=draw)
    before = torch.get_rng_state()
    first = few_rows(gradient, 6)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(5)
    again = few_rows(gradient, 6)
    assert first is not None
    assert again is not None
    assert torch.equal(first, again)
    exact = torch.linalg.svd(gradient.double())[1][:6].sqrt()
    torch.testing.assert_close(first.norm(dim=1), (exact / exact.norm()).float())


def test_matched_spikes_tell_what_the_naive_attack_misses():
    victim = convolutional()
    guess = floors(victim.truth.images, digits(200, 100)[0])["mean_image"]
    floor = float(psnr(guess, victim.truth.images).mean())
    assert psnr_of("inverting_gradients", victim, 30) < floor - 3
    assert psnr_of("native_features", victim, 100) > floor  # by 0.5 to more than 1, as processors round


def test_weights_are_those_that_find_most_of_public_images(monkeypatch):
    monkeypatch.setattr(native_matching, "CANDIDATES", (Weights(3, 1000), Weights(3, 1)))  # the first one blurs it all
    monkeypatch.setattr(native_matching, "SHARE", 1)
    monkeypatch.setattr(native_matching, "regressed", lambda *given: None)
    pixels, labels, mean, std = digits(100, 1000)
    victim, budget = convolutional(), Budget(iterations=60)
    public = replace(victim.view, public=PublicImages(inputs=(pixels - mean) / std, labels=labels))
    attack = get_attack("native_features")
    found = [attack.run(it, budget=budget, generator=torch.Generator().manual_seed(0)) for it in (victim.view, public)]
    assert [item.choice for item in found] == ["hidden 3, TV 1000", "hidden 3, TV 1"]
    blurred, rehearsed = (psnr(item.images, victim.truth.images).item() for item in found)
    assert rehearsed > blurred + 0.3  # 0.7 to more than 1, as processors round


def test_nothing_is_found_in_a_random_update():
    victim = convolutional()
    exchange, draw = victim.view.exchange, torch.Generator().manual_seed(7)
    noisy = {name: array + 0.01 * torch.randn(array.shape, generator=draw) for name, array in exchange.sent.items()}
    random = replace(victim, view=replace(victim.view, exchange=replace(exchange, received=noisy)))
    guess = floors(victim.truth.images, digits(200, 100)[0])["mean_image"]
    assert psnr_of("native_features", random, 60) < float(psnr(guess, victim.truth.images).mean())


def test_a_denied_surrogate_is_not_in_the_view_and_changes_the_naive_attack_alone():
    model = trained(spiking(surrogate="atan"))
    known = spiking_victim(model)
    spikes = [it.spike for it in known.view.model.modules() if isinstance(it, SpikingNeurons)]
    assert all(spike == surrogate_spike("atan") for spike in spikes)
    denied = replace(known, view=replace(known.view, knowledge=known.view.knowledge.without(["surrogate"])))
    spikes = [it.spike for it in denied.view.model.modules() if isinstance(it, SpikingNeurons)]
    assert {spike.derivative for spike in spikes} == {fast_sigmoid}
    assert all(get_attack(name).refusal(denied.view) is None for name in ATTACKS)
    naive, features = (
        [psnr_of(name, v, 5) for v in (known, denied)] for name in ("inverting_gradients", "native_features")
    )
    assert naive[0] != naive[1]
    assert features[0] == features[1]


@pytest.mark.parametrize("name", ["inverting_gradients", "native_features", "native_adaptive"])
@pytest.mark.parametrize("neuron", ["lif", "rlif"])
def test_sequences_are_attacked(name, neuron):
    victim = spiking_victim(spiking("mlp", shape=(8, 8), sequence=True, neuron=neuron))
    found = get_attack(name).run(victim.view, budget=Budget(iterations=3), generator=torch.Generator().manual_seed(0))
    assert found.images.shape == (1, 8, 8)
    assert found.labels.tolist() == victim.truth.labels.tolist()


def test_victims_of_other_weights_are_attacked_each_with_its_own():
    victims = [spiking_victim(trained(spiking(), rounds), start=rounds) for rounds in (30, 40)]
    attack, budget = get_attack("native_features"), Budget(iterations=5)
    draw = torch.Generator().manual_seed(0)
    together = attack.run_many([victim.view for victim in victims], budget=budget, generator=draw)
    alone = attack.run(victims[0].view, budget=budget, generator=torch.Generator().manual_seed(0))
    assert together[0].labels.tolist() == alone.labels.tolist() == victims[0].truth.labels.tolist()
    assert together[0].objective == pytest.approx(alone.objective, rel=0.2)


def test_labels_of_a_batch_are_inferred_through_the_leaky_readout():
    victim = spiking_victim(spiking(), images=4)
    draw = torch.Generator().manual_seed(0)
    found = get_attack("native_features").run(victim.view, budget=Budget(iterations=3), generator=draw)
    assert sorted(found.labels.tolist()) == sorted(victim.truth.labels.tolist())
    assert found.images.shape == (4, 1, 8, 8)


@pytest.mark.parametrize("name", ["native_features", "native_adaptive"])
def test_an_encoding_that_passes_no_gradient_is_refused(name):
    view = spiking_victim(spiking(encoding="latency")).view
    assert get_attack(name).refusal(view) == f"{name}: no gradient passes the latency encoding"


@pytest.mark.parametrize("value", [1e12, 0.0])
def test_an_update_that_the_server_accepts_never_breaks_an_attack(value):
    victim = spiking_victim(spiking())
    exchange = victim.view.exchange
    hostile = {name: torch.full_like(array, value) for name, array in exchange.received.items()}
    view = replace(victim.view, exchange=replace(exchange, received=hostile))
    for name in ("native_features", "native_adaptive"):
        found = get_attack(name).run(view, budget=Budget(iterations=1), generator=torch.Generator().manual_seed(0))
        assert torch.isfinite(found.images).all()


def test_the_model_is_not_changed():
    victim = spiking_victim(spiking())
    before = copy.deepcopy(victim.view.model)
    psnr_of("native_features", victim, 1)
    assert str(before) == str(victim.view.model)
    assert all(array.is_meta for array in (*victim.view.model.parameters(), *victim.view.model.buffers()))
