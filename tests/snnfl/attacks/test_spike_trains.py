"""A hidden layer's spikes come out of weighted sums of them, and sequences and batches of images out of the spikes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spiking_victims import spiking, spiking_victim, trained

from snnfl.attacks import Budget, get_attack, native_trains
from snnfl.attacks.native_trains import _layer, _told
from snnfl.attacks.problem import problem_of
from snnfl.attacks.spike_trains import Layer, constant_trains, inputs_of, step_weights, surest_trains, trains_of
from snnfl.metrics.images import psnr

SHAPE = (8, 8)
HIDDEN = 250
"""Neurons of networks for images, a quarter of the registry's; of those for sequences fewer take longer."""


def victim_of(images=1, **options):
    return spiking_victim(spiking("mlp", shape=SHAPE, sequence=True, **options), images=images)


def images_of(images, model=None, **options):
    return spiking_victim(model or spiking("mlp", **{"hidden": HIDDEN, **options}), images=images)


def run(victim, view=None):
    attack = get_attack("sequence_recovery" if victim.view.sequence else "image_recovery")
    return attack.run(view or victim.view, budget=Budget(iterations=1), generator=torch.Generator().manual_seed(0))


def matched(found, victim):
    """Return the PSNR of each true sample with what is nearest to it: a batch comes in no order."""
    true = victim.truth.images
    return torch.stack([psnr(found.images, one.expand_as(found.images)).max() for one in true])


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


@given(st.integers(1, 12), st.floats(0.1, 1.0), st.floats(0.1, 3.0), st.booleans())
def test_trains_of_a_constant_current_are_those_of_neurons_at_any_current(steps, leak, threshold, to_zero):
    listed = constant_trains(steps, leak, threshold, to_zero=to_zero)
    currents = threshold * torch.linspace(-1, 2, 5000, dtype=torch.float64)
    potential = fired = torch.zeros_like(currents)
    trains = []
    for _ in range(steps):
        kept = potential * (1 - fired) if to_zero else potential
        potential = leak * kept + currents - (0 if to_zero else threshold * fired)
        fired = (potential > threshold).double()
        trains.append(fired)
    seen = set(map(tuple, torch.stack(trains, 1).tolist()))
    assert seen <= set(map(tuple, listed.tolist()))
    assert len({*map(tuple, listed.tolist())}) == len(listed) <= 1 + steps**2


def test_a_neuron_has_few_trains_of_a_constant_current():
    counts = [len(constant_trains(steps, 0.95, 1.0, to_zero=False)) for steps in (5, 25, 50)]
    assert counts == [16, 315, 1124]  # as docs/audit-spiking.md and experiments/gradient_leakage/batches say


def test_a_constant_current_leaves_no_doubt_of_a_train_that_sums_alone_leave():
    """Of 25 steps sums to seven digits have several trains each, of which neurons at one current can have one."""
    weights = step_weights(spiking("mlp", time_steps=25))
    listed = constant_trains(25, 0.9, 1.0, to_zero=False)
    sums = weights @ listed.T
    noisy = sums + 3e-6 * torch.randn(len(sums), generator=torch.Generator().manual_seed(0))
    found, known = surest_trains(noisy, weights, 1e-5, listed)
    assert int(known.sum()) > 0.9 * len(sums)
    assert torch.equal(found[:, known], listed.T[:, known])
    assert int(surest_trains(noisy, weights, 1e-5)[1].sum()) < len(sums) / 3


@pytest.mark.parametrize(
    "options", [{}, {"reset": "zero", "surrogate": "atan"}, {"readout": "final_potential"}], ids=str
)
@pytest.mark.parametrize("images", [1, 3])
def test_true_inputs_have_the_spikes_and_the_gradient(options, images):
    victim = images_of(images, **options)
    problem = problem_of(victim.view)
    told = _told(victim.view, problem, torch.Generator().manual_seed(0))
    layer, wanted = _layer(victim.view, problem, told)
    inputs = victim.view.inputs(victim.truth.images).flatten(1).double()
    places = [victim.truth.labels.tolist().index(label) for label in told.labels.tolist()]
    inputs = inputs[places][None]
    assert len(wanted) > 0.9 * HIDDEN
    assert torch.equal((layer.potentials(inputs) > layer.threshold).double(), layer.trains)
    assert torch.linalg.matrix_norm(layer.gradient(inputs) - wanted) < 1e-4 * torch.linalg.matrix_norm(wanted)


def test_wrong_trains_are_left_out():
    """Rounding makes some of 25 steps: a sum has another train near it than the one that made it."""
    victim = victim_of()
    told = _told(victim.view, problem_of(victim.view), torch.Generator().manual_seed(0))
    layer, wanted = _layer(victim.view, problem_of(victim.view), told)
    true, draw = victim.view.inputs(victim.truth.images).double(), torch.Generator().manual_seed(0)
    wrong = torch.randperm(layer.trains.shape[-1], generator=draw)[:8]
    trains = layer.trains.clone()
    trains[..., wrong] = (torch.rand(len(trains), 1, 8, generator=draw) < 0.5).double()
    whole, left = inputs_of(layer, wanted, inputs=len(trains), samples=1)
    found, left_of_wrong = inputs_of(replace(layer, trains=trains), wanted, inputs=len(trains), samples=1)
    torch.testing.assert_close(found, whole, rtol=0.0, atol=0.1)
    assert float((found[:, 0] - true[0]).norm() / true.norm()) < 0.1
    assert left_of_wrong < 2 * left + 0.01


@pytest.mark.parametrize("samples", [1, 2])
def test_trains_that_no_input_makes_tell_nothing(samples):
    """As those of an update that is made up: neurons that always fire, whatever they are given."""
    zeros = torch.zeros(3, 5, dtype=torch.float64)
    layer = Layer(
        weight=zeros, bias=zeros[:, 0], leak=0.9, threshold=1.0, to_zero=False, derivative=torch.ones_like,
        trains=torch.ones(4, 1, 3, dtype=torch.float64), slopes=torch.ones(4, 1, 3, dtype=torch.float64),
    )  # fmt: skip
    found, left = inputs_of(layer, torch.ones(3, 6, dtype=torch.float64), inputs=1, samples=samples)
    assert found.shape == (1, 1, 5)
    assert not found.any()
    assert left == 1


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_a_sequence_of_any_numbers_is_found(reset):
    victim = victim_of(reset=reset)
    found = run(victim)
    assert psnr(found.images, victim.truth.images).item() > 25
    assert found.labels.tolist() == victim.truth.labels.tolist()


@pytest.mark.parametrize("images", [1, 2, 4, 8])
@pytest.mark.parametrize("options", [{}, {"reset": "zero", "surrogate": "atan"}], ids=str)
def test_a_batch_of_images_is_found_exactly(images, options):
    victim = images_of(images, spiking("mlp", **options))  # 250 neurons leave eight images at 57 dB
    found = run(victim)
    assert float(matched(found, victim).min()) > 100
    assert sorted(found.labels.tolist()) == sorted(victim.truth.labels.tolist())


@pytest.mark.parametrize("readout", ["mean_potential", "final_potential"])
@pytest.mark.parametrize("neuron", ["lif", "if"])
def test_forty_steps_hide_no_batch(neuron, readout):
    """The last potential of neurons that don't leak tells how often each fired, and not when: that takes longest."""
    least, images = (45, 2) if (neuron, readout) == ("if", "final_potential") else (100, 4)
    victim = images_of(images, neuron=neuron, readout=readout, time_steps=40, hidden=200)
    assert float(matched(run(victim), victim).min()) > least


@pytest.mark.parametrize("images", [1, 4])
@pytest.mark.parametrize("steps", [5, 25])
def test_a_trained_network_hides_no_batch(images, steps):
    victim = images_of(images, trained(spiking("mlp", time_steps=steps, hidden=HIDDEN)))
    reached = matched(run(victim), victim)
    told = len(_told(victim.view, problem_of(victim.view), torch.Generator().manual_seed(0)).errors)
    assert (
        int((reached > 60).sum()) == told >= (2 if (images, steps) == (4, 25) else images)
    )  # of two images of a 3 none


def test_a_batch_of_sequences_is_found():
    victim = victim_of(images=3)
    assert float(matched(run(victim), victim).min()) > 35


def test_of_a_batch_that_is_told_in_part_the_rest_is_grey(monkeypatch):
    victim = images_of(4)

    def told(view, problem, generator):
        whole = _told(view, problem, generator)
        return replace(whole, errors=whole.errors[:2], features=whole.features[:2])

    monkeypatch.setattr(native_trains, "_told", told)
    found = run(victim)
    reached = matched(found, victim).sort(descending=True).values
    assert float(reached[1]) > 40
    torch.testing.assert_close(found.images[2:], victim.view.pixels(torch.zeros(2, *victim.view.input_shape)))


@pytest.mark.parametrize("victim_of", [victim_of, lambda: images_of(4)], ids=["sequence", "batch of images"])
def test_nothing_is_found_under_noise(victim_of):
    victim = victim_of()
    exchange, draw = victim.view.exchange, torch.Generator().manual_seed(0)
    noisy = {name: array + 1e-2 * torch.randn(array.shape, generator=draw) for name, array in exchange.received.items()}
    found = run(victim, replace(victim.view, exchange=replace(exchange, received=noisy)))
    assert float(matched(found, victim).max()) < 15
    assert found.objective > 0.1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"neuron": "rlif"}, "takes two linear layers with lif between them"),
        ({"neuron": "if"}, "takes two linear layers with lif between them"),
        ({"readout": "rate"}, "potentials to be read out"),
        ({"encoding": "delta"}, "flow into the network as they are"),
        ({"encoding": "poisson"}, "this one encodes them (poisson)"),
        ({"batch_norm": True}, "no batch normalisation"),
    ],
    ids=str,
)
def test_what_cannot_be_told_is_refused(options, reason):
    sequence = options != {"encoding": "poisson"}
    model = spiking("mlp", shape=SHAPE if sequence else (1, *SHAPE), sequence=sequence, **options)
    view = spiking_victim(model, images=2).view
    own, other = ("sequence_recovery", "image_recovery")[:: 1 if sequence else -1]
    assert reason in (get_attack(own).refusal(view) or "")
    assert own in (get_attack(other).refusal(view) or "")


def test_many_steps_are_refused():
    view = replace(victim_of().view, model=spiking("mlp", shape=(30, 2), sequence=True), input_shape=(30, 2))
    assert "at most 28 steps, not 30" in (get_attack("sequence_recovery").refusal(view) or "")


def test_of_images_too_many_steps_are_refused():
    """Trains that one current can make grow with the square of the steps: of 1,000 steps they take gigabytes."""
    view = images_of(1).view
    reasons = [
        get_attack("image_recovery").refusal(replace(view, model=spiking("mlp", time_steps=steps)))
        for steps in (500, 501)
    ]
    assert reasons[0] is None
    assert "at most 500 steps, not 501" in reasons[1]


def test_given_labels_stay_whatever_a_noised_update_tells():
    victim = images_of(1)
    exchange, draw, told = victim.view.exchange, torch.Generator().manual_seed(0), set[int]()
    for _ in range(6):
        noised = {
            name: array + 0.3 * torch.randn(array.shape, generator=draw) for name, array in exchange.received.items()
        }
        view = replace(victim.view, exchange=replace(exchange, received=noised))
        told |= set(run(replace(victim, view=view)).labels.tolist())
        view = replace(view, labels=victim.truth.labels, knowledge=replace(view.knowledge, labels=True))
        assert run(replace(victim, view=view)).labels.tolist() == victim.truth.labels.tolist()
    assert told != set(victim.truth.labels.tolist())


def test_batches_that_the_last_layer_does_not_tell_apart_are_refused():
    attack, nine, ten = get_attack("image_recovery"), images_of(9).view, images_of(10).view
    assert attack.refusal(nine) is None
    assert "tells at most 9 samples apart" in (attack.refusal(ten) or "")
    clipped = replace(nine, knowledge=replace(nine.knowledge, clipped=True))
    assert "clients shorten theirs" in (attack.refusal(clipped) or "")
    one = images_of(1).view
    assert attack.refusal(replace(one, knowledge=replace(one.knowledge, clipped=True))) is None
