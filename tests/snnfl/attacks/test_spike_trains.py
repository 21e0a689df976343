"""A hidden layer's spikes come out of weighted sums of them, and sequences out of the spikes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from spiking_victims import spiking, spiking_victim

from snnfl.attacks import Budget, get_attack
from snnfl.attacks.native_exact import gradients
from snnfl.attacks.native_sequences import _layer
from snnfl.attacks.spike_trains import step_weights, trains_of
from snnfl.metrics.images import psnr

SHAPE = (8, 8)


def victim_of(**options):
    return spiking_victim(spiking("mlp", shape=SHAPE, sequence=True, **options))


def run(victim, view=None):
    attack = get_attack("sequence_recovery")
    return attack.run(view or victim.view, budget=Budget(iterations=1), generator=torch.Generator().manual_seed(0))


def test_trains_are_those_of_their_sums_and_of_no_other():
    weights = step_weights(spiking("mlp", shape=(20, 3), sequence=True))
    trains = (torch.rand(20, 50, generator=torch.Generator().manual_seed(0)) < 0.2).double()
    sums = weights @ trains
    found, known = trains_of(sums, weights, 1e-9)
    assert int(known.sum()) > 40
    assert torch.equal(found[:, known], trains[:, known])
    _, ambiguous = trains_of(sums, torch.ones(20, dtype=torch.float64), 1e-9)  # as of neurons that don't leak
    assert bool((~ambiguous[(trains.sum(0) > 0) & (trains.sum(0) < 20)]).all())
    _, none = trains_of(sums + 1e-4, weights, 1e-9)
    assert int(none.sum()) < 5


@pytest.mark.parametrize(
    "options", [{}, {"reset": "zero", "surrogate": "atan"}, {"readout": "final_potential"}], ids=str
)
def test_true_inputs_have_the_spikes_and_the_gradient(options):
    victim = victim_of(**options)
    found = gradients(victim.view)
    layer, known = _layer(victim.view, found, "fc1")
    inputs = victim.view.inputs(victim.truth.images)[0].double()
    assert int(known.sum()) > 500
    assert torch.equal((layer.potentials(inputs) > layer.threshold).double(), layer.trains)
    wanted = torch.cat([found["fc1.weight"], found["fc1.bias"][:, None]], 1).double()[known]
    assert torch.linalg.matrix_norm(layer.gradient(inputs) - wanted) < 1e-4 * torch.linalg.matrix_norm(wanted)


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_a_sequence_of_any_numbers_is_found(reset):
    victim = victim_of(reset=reset)
    found = run(victim)
    assert psnr(found.images, victim.truth.images).item() > 25
    assert found.labels.tolist() == victim.truth.labels.tolist()


def test_nothing_is_found_under_noise():
    victim = victim_of()
    exchange, draw = victim.view.exchange, torch.Generator().manual_seed(0)
    noisy = {name: array + 1e-2 * torch.randn(array.shape, generator=draw) for name, array in exchange.received.items()}
    found = run(victim, replace(victim.view, exchange=replace(exchange, received=noisy)))
    assert psnr(found.images, victim.truth.images).item() < 15
    assert found.objective > 0.1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"neuron": "rlif"}, "takes two linear layers with leaky neurons"),
        ({"neuron": "if"}, "takes two linear layers with leaky neurons"),
        ({"readout": "rate"}, "potentials to be read out"),
        ({"encoding": "delta"}, "flow into the network as they are"),
        ({"batch_norm": True}, "no batch normalisation"),
    ],
    ids=str,
)
def test_what_cannot_be_told_is_refused(options, reason):
    view = spiking_victim(spiking("mlp", shape=SHAPE, sequence=True, **options), images=2).view
    assert reason in (get_attack("sequence_recovery").refusal(view) or "")


def test_many_steps_are_refused():
    view = replace(victim_of().view, model=spiking("mlp", shape=(30, 2), sequence=True), input_shape=(30, 2))
    assert "at most 28 steps, not 30" in (get_attack("sequence_recovery").refusal(view) or "")
