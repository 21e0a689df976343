"""DP-SGD: each sample's gradient, against autograd and Opacus; clipping and noise, against the formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from opacus import GradSampleModule
from torch import Tensor, nn

from snnfl.config import ModelConfig, TrainingConfig
from snnfl.models import build_model, drawing
from snnfl.privacy.noise import Stream, new_key
from snnfl.training import cross_entropy, proximal
from snnfl.training.private import GaussianGradients, private_gradient, sample_gradients, train_privately

ANN = {"name": "lenet5", "batch_norm": False}
LIF = {**ANN, "neuron": "lif", "time_steps": 3, "threshold": 0.3}
NETWORKS = {
    "ann": ANN,
    "lif": LIF,
    "learned": {**LIF, "learn_beta": True, "learn_threshold": True},
    "recurrent": {**LIF, "neuron": "rlif"},
    "pooled": {**LIF, "name": "convnet"},
}


def network(kind: str) -> nn.Module:
    config = ModelConfig(**NETWORKS[kind])
    return build_model(config, input_shape=(1, 8, 8), classes=10, generator=torch.Generator().manual_seed(0))


def samples(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 8, 8, generator=draw) * 2, torch.randint(10, (count,), generator=draw)


def silent(count: int) -> np.ndarray:
    return np.zeros(count)


@pytest.mark.parametrize("kind", NETWORKS)
def test_gradients_of_samples_are_those_of_each_alone(kind: str) -> None:
    model, (inputs, labels) = network(kind), samples(5)
    objective = proximal(model, 0.1) if kind == "ann" else cross_entropy
    found, losses = sample_gradients(model, inputs, labels, objective)
    trained = dict(model.named_parameters())
    assert found.keys() == trained.keys()
    for index in range(5):
        loss = objective(model, inputs[index : index + 1], labels[index : index + 1])
        expected = torch.autograd.grad(loss, list(trained.values()))
        assert losses[index].item() == pytest.approx(loss.item(), rel=1e-5)
        for name, gradient in zip(trained, expected, strict=True):
            torch.testing.assert_close(found[name][index], gradient, rtol=1e-3, atol=1e-5, msg=name)
    assert any(gradient.abs().max() > 1e-3 for gradient in found.values())


def test_each_sample_has_spikes_of_its_own_and_a_seed_gives_the_same() -> None:
    config = ModelConfig(**{**LIF, "encoding": "poisson"})
    model = build_model(config, input_shape=(1, 8, 8), classes=10, generator=torch.Generator().manual_seed(0))
    inputs, labels = torch.full((3, 1, 8, 8), 0.5), torch.zeros(3, dtype=torch.int64)
    found = []
    for seed in (1, 1, 2):
        with drawing(model, torch.Generator().manual_seed(seed)):
            found.append(sample_gradients(model, inputs, labels, cross_entropy)[1])
    assert len(set(found[0].tolist())) == 3
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert not torch.equal(found[0], found[2])


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_gradients_of_samples_are_opacus() -> None:
    model, (inputs, labels) = network("ann"), samples(6)
    found, _ = sample_gradients(model, inputs, labels, cross_entropy)
    hooked = GradSampleModule(network("ann"), loss_reduction="sum")
    nn.functional.cross_entropy(hooked(inputs), labels, reduction="sum").backward()
    for name, parameter in hooked.named_parameters():
        torch.testing.assert_close(found[name.removeprefix("_module.")], parameter.grad_sample, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["ann", "lif"])
@pytest.mark.parametrize("norm", [0.3, 1e6])
def test_a_step_is_the_sum_of_clipped_gradients_over_the_expected_number(kind: str, norm: float) -> None:
    model, (inputs, labels) = network(kind), samples(70)  # more than are in memory at once
    how = GaussianGradients(norm=norm, noise=0.0, expected=64.0, normal=silent)
    found, losses = private_gradient(model, inputs, labels, cross_entropy, how)
    each, _ = sample_gradients(model, inputs, labels, cross_entropy)
    lengths = sum(gradient.flatten(1).square().sum(1) for gradient in each.values()).sqrt()
    assert len(losses) == 70
    assert bool((lengths > norm).any()) is (norm < 1)
    for name, gradient in each.items():
        factors = (norm / lengths).clamp(max=1).view(-1, *[1] * (gradient.dim() - 1))
        torch.testing.assert_close(found[name], (factors * gradient).sum(0) / 64, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["ann", "lif"])
def test_one_sample_moves_the_sum_by_no_more_than_the_norm(kind: str) -> None:
    model, (inputs, labels) = network(kind), samples(9)
    how = GaussianGradients(norm=0.2, noise=0.0, expected=1.0, normal=silent)
    whole, _ = private_gradient(model, inputs * 50, labels, cross_entropy, how)
    without, _ = private_gradient(model, inputs[:-1] * 50, labels[:-1], cross_entropy, how)
    moved = torch.cat([(whole[name] - without[name]).flatten() for name in whole]).norm()
    assert 0.199 < moved < 0.2001


def test_noise_has_the_promised_deviation_even_without_samples() -> None:
    model, (inputs, labels) = network("ann"), samples(0)
    how = GaussianGradients(norm=0.5, noise=3.0, expected=10.0, normal=Stream(new_key(0), "sgd").normal)
    found, losses = private_gradient(model, inputs, labels, cross_entropy, how)
    drawn = torch.cat([gradient.flatten() for gradient in found.values()])
    assert not len(losses)
    assert drawn.std().item() == pytest.approx(3.0 * 0.5 / 10.0, rel=0.02)


def test_without_noise_and_bound_training_is_that_of_whole_batches() -> None:
    batches, (inputs, labels) = [], samples(24)
    for start in (0, 8, 16):
        batches.append((inputs[start : start + 8], labels[start : start + 8]))
    config = TrainingConfig(learning_rate=0.1, momentum=0.9, weight_decay=1e-3)
    one, other = network("ann"), network("ann")
    how = GaussianGradients(norm=1e9, noise=0.0, expected=8.0, normal=silent)
    result = train_privately(one, batches, config, how, server_round=1, objective=cross_entropy, samples=24)
    optimiser = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    for some, of_some in batches:
        optimiser.zero_grad()
        cross_entropy(other, some, of_some).backward()
        optimiser.step()
    assert (result.samples, result.steps) == (24, 3)
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
