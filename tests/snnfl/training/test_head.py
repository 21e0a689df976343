"""Local training of spiking networks, whose last layers are one function, against their layers one after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from snnfl.config import ModelConfig, TrainingConfig
from snnfl.models import SpikingModel, build_model, multiply_in_bfloat16
from snnfl.neurons.head import Head
from snnfl.rng import generator
from snnfl.training import cross_entropy, exchangeable, model_contrastive, proximal, train_locally
from snnfl.training.head import head_at_once


def spiking(name: str = "mlp", **options) -> SpikingModel:
    config = ModelConfig(**{"name": name, "neuron": "lif", "time_steps": 5, "batch_norm": False, **options})
    model = build_model(config, input_shape=(1, 8, 8), classes=10, generator=generator(0, "weights"))
    assert isinstance(model, SpikingModel)
    return model.to(memory_format=torch.channels_last)


def batch(size: int = 6) -> tuple[Tensor, Tensor]:
    draw = generator(0, "batch")
    return torch.rand(size, 1, 8, 8, generator=draw) * 2, torch.randint(10, (size,), generator=draw)


@pytest.fixture
def heads(monkeypatch) -> list[Head]:
    """Those that have been computed as one function."""
    found = list[Head]()
    apply = Head.apply

    def noted(head: Head, current: Tensor) -> Tensor:
        found.append(head)
        return apply(head, current)

    monkeypatch.setattr(Head, "apply", noted)
    return found


def gradients(model: nn.Module, objective, inputs: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
    parameters = list(model.parameters())
    loss = objective(model, inputs, labels)
    return loss.detach(), list(torch.autograd.grad(loss, parameters))


def compare(model: SpikingModel, inputs: Tensor, labels: Tensor, objective=cross_entropy) -> None:
    expected, theirs = gradients(model, objective, inputs, labels)
    with head_at_once(model.modules()):
        found, ours = gradients(model, objective, inputs, labels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    size = float(torch.stack([each.norm() for each in theirs]).norm())
    for mine, other in zip(ours, theirs, strict=True):
        assert float((mine - other).norm()) <= 1e-5 * size


@pytest.mark.parametrize("size", [1, 6])
@pytest.mark.parametrize("readout", ["mean_potential", "rate", "final_potential", "max_potential"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"output_fires": True},
        {"neuron": "if", "threshold": 0.5},
        {"reset": "zero", "reset_delay": False, "surrogate": "atan"},
        {"learn_beta": True, "learn_threshold": True},
        {"name": "convnet", "neurons": "head"},
        {"name": "convnet", "encoding": "poisson"},
    ],
    ids=str,
)
def test_losses_and_gradients_are_those_of_the_layers(heads, options, readout, size):
    if readout == "rate" and "output_fires" in options:
        options = {}
    model = spiking(**{"readout": readout, **options})
    compare(model, *batch(size))
    assert len(heads) == 1
    assert (heads[0].reader is not None) == (readout in ("mean_potential", "rate"))


def test_a_mean_of_the_cross_entropies_of_all_steps(heads):
    model = spiking(output_fires=True)
    model.per_step = True
    compare(model, *batch())
    assert [head.reader for head in heads] == [None]


@pytest.mark.parametrize("kind", ["proximal", "contrastive"])
def test_objectives_with_a_term_of_their_own(heads, kind):
    model, previous = spiking(), spiking()
    with torch.no_grad():
        for parameter in previous.parameters():
            parameter.mul_(0.9)
    objective = (
        proximal(previous, 0.3)
        if kind == "proximal"
        else model_contrastive(model, exchangeable(previous), mu=1.0, temperature=0.5)
    )
    compare(model, *batch(), objective)
    assert len(heads) == (kind == "proximal")  # the contrastive term reads the spikes


@pytest.mark.parametrize("neuron", ["rlif", "alif"])
def test_other_neurons_are_computed_as_ever(heads, neuron):
    compare(spiking(neuron=neuron), *batch())
    assert not heads


def test_whoever_looks_at_spikes_sees_them(heads):
    model, seen = spiking(), list[Tensor]()
    name, neurons = list(model.neurons.items())[-1]
    neurons.register_forward_hook(lambda module, given, spikes: seen.append(spikes))
    with head_at_once(model.modules()):
        cross_entropy(model, *batch())
        recorded = model.record(batch()[0])
    assert not heads
    assert torch.equal(seen[0], recorded[name].spikes)


@pytest.mark.parametrize("hook", ["register_full_backward_hook", "register_full_backward_pre_hook"])
@pytest.mark.parametrize("place", ["neurons", "output", "readout"])
def test_whoever_looks_at_gradients_sees_them(heads, place, hook):
    model, seen = spiking(), list[nn.Module]()
    watched = {"neurons": model.body[-2], "output": model.body[-1], "readout": model.readout}[place]
    getattr(watched, hook)(lambda module, *gradients: seen.append(module))
    with head_at_once(model.modules()):
        cross_entropy(model, *batch()).backward()
    assert seen == [watched]


def test_whoever_looks_at_all_modules_sees_the_last_ones(heads):
    model, seen = spiking(), list[nn.Module]()
    hook = nn.modules.module.register_module_forward_hook(lambda module, given, made: seen.append(module))
    try:
        with head_at_once(model.modules()):
            cross_entropy(model, *batch())
    finally:
        hook.remove()
    assert {*model.body[-2:], model.readout} <= {*seen}


def test_bfloat16_multiplies_as_ever(heads):
    model = spiking()
    multiply_in_bfloat16(model, True)
    with head_at_once(model.modules()):
        cross_entropy(model, *batch())
    assert not heads


def test_another_model_stays_as_it_is():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with head_at_once(model.modules()):
        assert type(model) is nn.Sequential


@pytest.mark.parametrize("options", [{}, {"micro_batch": 4}, {"clip_norm": 0.1}], ids=str)
def test_local_training_does_so_and_gives_the_same_weights(heads, options, monkeypatch):
    inputs, labels = batch(12)
    epochs = [[(inputs[:6], labels[:6]), (inputs[6:], labels[6:])]] * 2
    config = TrainingConfig(optimizer="sgd", learning_rate=0.01, momentum=0.5, weight_decay=0.0, **options)
    models = [spiking(output_fires=True) for _ in range(2)]
    results = [train_locally(models[0], epochs, config, server_round=1)]
    assert heads
    assert type(models[0]) is SpikingModel
    monkeypatch.setattr(Head, "takes", lambda head, current: False)
    results.append(train_locally(models[1], epochs, config, server_round=1))
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-5)
    for mine, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
