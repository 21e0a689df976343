"""What flows into a spiking network's first hidden linear layer, exactly, and the images that are found by it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from spiking_victims import spiking, spiking_victim, trained
from torch import nn
from victims import Victim, digits

from snnfl.attacks import Budget, get_attack, native_matching
from snnfl.attacks import hidden_frames as hidden_frames_module
from snnfl.attacks.frame_regression import expected
from snnfl.attacks.hidden_frames import _fitting, _orders, hidden_frames, unsolved
from snnfl.attacks.native_features import hidden_linear
from snnfl.attacks.native_frames import CHOICE, by_frames
from snnfl.attacks.problem import problem_of
from snnfl.metrics.images import psnr
from snnfl.neurons import unroll
from snnfl.threat import PublicImages

lenet5 = partial(spiking, "lenet5", threshold=0.3, surrogate_slope=10.0)


def inputs_of(model: nn.Module, victim: Victim) -> torch.Tensor:
    """Return what the client's own hidden layer is given, ``[T, features]``."""
    found: list[torch.Tensor] = []
    layer = model.get_submodule(hidden_linear(model))
    hook = layer.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    with torch.no_grad():
        model(victim.view.inputs(victim.truth.images))
    hook.remove()
    return found[0][:, 0]


@pytest.mark.parametrize(
    "options", [{}, {"surrogate": "atan", "surrogate_slope": None}, {"pooling": "max"}, {"reset": "zero"}], ids=str
)
def test_the_inputs_of_an_untrained_network_are_found_exactly_and_in_order(options):
    model = lenet5(**options)
    for start in range(5):
        victim = spiking_victim(model, start=start)
        found = hidden_frames(victim.view, problem_of(victim.view))
        assert found is not None
        assert torch.equal(found, inputs_of(model, victim))


def test_the_inputs_of_a_trained_network_are_found_exactly_or_not_at_all():
    model = trained(lenet5())
    victims = [spiking_victim(model, start=start) for start in range(8)]
    pairs = [(hidden_frames(victim.view, problem_of(victim.view)), inputs_of(model, victim)) for victim in victims]
    found = [(own, true) for own, true in pairs if own is not None]
    assert len(found) >= 6
    assert all(torch.equal(own, true) for own, true in found)


def test_inputs_that_came_twice_and_silence_are_told_by_what_fired():
    draw, neuron = torch.Generator().manual_seed(0), lenet5().neurons["relu3"].neuron
    currents = torch.cat([torch.zeros(1, 100), torch.randn(5, 100, generator=draw)])
    true = torch.tensor([0, 3, 3, 1, 0, 5])
    trains = unroll(neuron, currents[true][:, None]).spikes[:, 0]
    orders = _orders(neuron, currents, trains, torch.ones(100, dtype=torch.bool))
    assert [order.tolist() for order in orders] == [true.tolist()]


def test_neurons_that_never_fire_tell_no_order():
    neuron = lenet5().neurons["relu3"].neuron
    assert _orders(neuron, -torch.ones(5, 100), torch.zeros(6, 100), torch.ones(100, dtype=torch.bool)) == []


def test_wide_layers_are_replayed_in_fewer_orders_at_once(monkeypatch):
    """Silent neurons let all orders pass: an update that is made up may not take the memory of whoever looks at it."""
    neuron, rows = lenet5().neurons["relu3"].neuron, list[int]()
    step = type(neuron).step

    def seen(own, state, current):
        rows.append(len(current))
        return step(own, state, current)

    monkeypatch.setattr(type(neuron), "step", seen)
    monkeypatch.setattr(hidden_frames_module, "AT_ONCE", 40 * 100 * 20)
    silent = (torch.zeros(4, 100), torch.ones(100, dtype=torch.bool))
    assert _orders(neuron, torch.zeros(40, 100), *silent) == []
    assert max(rows) == 40 * 20


def test_what_fits_is_the_same_however_much_is_tried_at_once(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    frames = torch.zeros(4, 60, dtype=torch.float64)
    for place, frame in enumerate(frames):  # nothing in common, so that all their multiples fit
        frame[15 * place : 15 * place + 15] = 1
    gradient = torch.randn(20, 4, generator=draw, dtype=torch.float64) @ frames
    whole = _fitting(gradient, 1e-9, 4, 4)
    monkeypatch.setattr(hidden_frames_module, "AT_ONCE", 60 * 13)
    assert torch.equal(_fitting(gradient, 1e-9, 4, 4), whole)
    assert len(whole) == 512


def noised(victim: Victim, size: float) -> Victim:
    exchange, draw = victim.view.exchange, torch.Generator().manual_seed(0)
    noisy = {name: array + size * torch.randn(array.shape, generator=draw) for name, array in exchange.received.items()}
    return replace(victim, view=replace(victim.view, exchange=replace(exchange, received=noisy)))


def test_nothing_is_found_under_noise():
    victim = noised(spiking_victim(lenet5()), 1e-3)
    assert hidden_frames(victim.view, problem_of(victim.view)) is None


def test_what_is_not_sought_is_said():
    batch = spiking_victim(lenet5(), images=4)
    problem = problem_of(batch.view)
    assert "one step on one image" in unsolved(batch.view, problem)
    with pytest.raises(ValueError, match="here are 4 images"):
        hidden_frames(batch.view, problem)
    view = spiking_victim(spiking("mlp")).view  # whose first layer is given the image itself
    assert "takes spikes" in unsolved(view, problem_of(view))
    view = spiking_victim(lenet5(readout="rate")).view
    assert "potentials that are read out" in unsolved(view, problem_of(view))


def test_a_regression_finds_what_is_smooth_in_what_is_given_and_costs_what_it_gets_wrong():
    draw = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 3, generator=draw)
    public, private = (torch.randn(count, 6, generator=draw) for count in (400, 20))
    said = expected(public, lambda samples, _: samples @ mixing, private @ mixing, draw)
    plane = torch.linalg.qr(mixing).Q
    errors = private - said.samples
    assert (errors @ plane).square().mean() < 0.1 * (private @ plane).square().mean()
    known = said.samples + 0.1 * plane[:, :1].T  # against what is given, which says nothing of what lies beyond
    beyond = said.samples + 0.1 * torch.linalg.qr(torch.cat([plane, torch.eye(6)], 1)).Q[:, 3:4].T
    assert (said.cost(known) > 4 * said.cost(beyond)).all()


@pytest.fixture(scope="module")
def attacked():
    pixels, labels, mean, std = digits(600, 600)
    public = PublicImages(inputs=(pixels - mean) / std, labels=labels)
    victims = [spiking_victim(trained(lenet5()), start=start) for start in (0, 1, 2)]
    return [replace(victim, view=replace(victim.view, public=public)) for victim in victims]


def found_of(victims: list[Victim], iterations: int = 60):
    views, draw = [victim.view for victim in victims], torch.Generator().manual_seed(0)
    return get_attack("native_features").run_many(views, budget=Budget(iterations=iterations), generator=draw)


@pytest.fixture
def frames_alone(monkeypatch):
    """Let nothing be regressed on mean inputs, which find more where public images are many."""
    monkeypatch.setattr(native_matching, "regressed", lambda *given: None)


@pytest.mark.usefixtures("frames_alone")
def test_exact_inputs_find_more_than_matched_rows_do(attacked, monkeypatch):
    truth = torch.cat([victim.truth.images for victim in attacked])
    framed = found_of(attacked)
    monkeypatch.setattr(native_matching, "by_frames", lambda *given: None)
    matched = found_of(attacked)
    assert [item.choice for item in framed] == [CHOICE] * 3
    assert all(item.choice.startswith("hidden") for item in matched)
    means = [float(psnr(torch.cat([item.images for item in found]), truth).mean()) for found in (framed, matched)]
    assert means[0] > means[1] + 2


@pytest.mark.usefixtures("frames_alone")
def test_where_inputs_are_not_found_rows_are_matched(attacked):
    (found,) = found_of([noised(attacked[0], 1e-3)], 5)
    assert found.choice.startswith("hidden")


@pytest.mark.usefixtures("frames_alone")
def test_where_rehearsals_find_less_by_exact_inputs_rows_are_matched(attacked, monkeypatch):
    def grey(*given):
        framed = by_frames(*given)
        return replace(framed, rehearsed=[0 * images for images in framed.rehearsed])

    monkeypatch.setattr(native_matching, "by_frames", grey)
    (found,) = found_of(attacked[:1])
    assert found.choice.startswith("hidden")


@pytest.mark.usefixtures("frames_alone")
@pytest.mark.parametrize("rounded", [0, 1])
def test_a_client_that_sends_a_rounded_update_protects_no_other(attacked, rounded):
    views = [victim.view for victim in attacked[:2]]
    coarse = {name: 1e-3 for name in views[rounded].exchange.received}
    exchange = replace(views[rounded].exchange, rounding=coarse)
    views[rounded] = replace(views[rounded], exchange=exchange)
    draw = torch.Generator().manual_seed(0)
    found = get_attack("native_features").run_many(views, budget=Budget(iterations=20), generator=draw)
    assert found[1 - rounded].choice == CHOICE
    assert found[rounded].choice.startswith("hidden")


@pytest.mark.parametrize("value", [1e38, -3e38])
def test_an_update_beyond_all_numbers_is_an_update_that_tells_nothing(attacked, value):
    view = attacked[0].view
    hostile = {name: torch.full_like(array, value) for name, array in view.exchange.received.items()}
    view = replace(view, exchange=replace(view.exchange, received=hostile))
    for name in ("native_features", "native_adaptive"):
        found = get_attack(name).run(view, budget=Budget(iterations=2), generator=torch.Generator().manual_seed(0))
        assert found.images.isfinite().all()


@pytest.mark.parametrize("value", [1e38, 1e12, 0.0])
def test_an_update_that_the_server_accepts_never_breaks_it(attacked, value):
    view = attacked[0].view
    hostile = {name: torch.full_like(array, value) for name, array in view.exchange.received.items()}
    view = replace(view, exchange=replace(view.exchange, received=hostile))
    assert hidden_frames(view, problem_of(view)) is None
