"""The objectives against their equations, on models small enough to write them out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from snnfl.config import ModelConfig
from snnfl.models import SpikingModel, build_model, drawing
from snnfl.training import cross_entropy, exchangeable, model_contrastive, proximal


def build(seed: int = 0) -> nn.Sequential:
    draw = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        for array in model.parameters():
            array.copy_(torch.randn(array.shape, generator=draw))
    return model


def batch(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(6, 4, generator=draw), torch.randint(3, (6,), generator=draw)


def test_the_proximal_term_is_half_mu_times_the_squared_distance() -> None:
    model, (inputs, labels) = build(), batch()
    model[3].bias.requires_grad_(False)  # a frozen parameter doesn't move, so it has no part in it
    objective = proximal(model, 0.3)
    assert objective(model, inputs, labels) == cross_entropy(model, inputs, labels)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1
    distance = sum(0.1**2 * p.numel() for p in model.parameters() if p.requires_grad)
    expected = cross_entropy(model, inputs, labels) + 0.15 * distance
    loss = objective(model, inputs, labels)
    torch.testing.assert_close(loss, expected)
    plain, term = (torch.autograd.grad(value, model[0].weight)[0] for value in (expected, loss))
    torch.testing.assert_close(term - plain, torch.full((5, 4), 0.3 * 0.1))


def test_the_contrastive_term_is_that_of_the_paper() -> None:
    model, previous, (inputs, labels) = build(), build(7), batch()
    objective = model_contrastive(model, exchangeable(previous), mu=2.0, temperature=0.5)
    received = build()
    with torch.no_grad():
        for parameter in model.parameters():  # the model that is trained has moved on, the received one hasn't
            parameter += 0.1
    with torch.no_grad():
        z, z_glob, z_prev = model[:-1](inputs), received.eval()[:-1](inputs), previous.eval()[:-1](inputs)
    total = 0.0
    for row, to_global, to_previous in zip(z, z_glob, z_prev, strict=True):
        similar = [math.exp(float(row @ o / (row.norm() * o.norm())) / 0.5) for o in (to_global, to_previous)]
        total -= math.log(similar[0] / sum(similar))
    expected = functional.cross_entropy(model(inputs), labels).item() + 2.0 * total / 6
    model.train()
    assert objective(model, inputs, labels).item() == pytest.approx(expected, rel=1e-5)


def test_without_a_previous_model_of_its_own_the_contrastive_term_says_nothing() -> None:
    model, (inputs, labels) = build(), batch()
    objective = model_contrastive(model, exchangeable(model), mu=3.0, temperature=0.5)
    loss = objective(model, inputs, labels)
    assert loss.item() == pytest.approx(cross_entropy(model, inputs, labels).item() + 3 * math.log(2), rel=1e-5)
    for with_term, without in zip(
        torch.autograd.grad(loss, list(model.parameters())),
        torch.autograd.grad(cross_entropy(model, inputs, labels), list(model.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(with_term, without, atol=1e-5, rtol=1e-4)


def test_the_other_models_are_left_alone() -> None:
    model, previous, (inputs, labels) = build(), build(7), batch()
    kept = {name: array.clone() for name, array in exchangeable(previous).items()}
    objective = model_contrastive(model, exchangeable(previous), mu=1.0, temperature=0.5)
    before = objective(model, inputs, labels)
    before.backward()
    assert all(torch.equal(array, kept[name]) for name, array in exchangeable(previous).items())
    assert all(parameter.grad is None for parameter in previous.parameters())
    with torch.no_grad():
        previous[0].weight.zero_()  # the objective has copies of its own
    torch.testing.assert_close(objective(model, inputs, labels), before)


def spiking(seed: int, *, per_step: bool = False, **options: object) -> SpikingModel:
    draw = torch.Generator().manual_seed(seed)
    config = ModelConfig(name="mlp", neuron="lif", time_steps=5, **options)
    model = build_model(config, input_shape=(4,), classes=3, generator=draw)
    assert isinstance(model, SpikingModel)
    model.per_step = per_step
    return model


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("options", [{}, {"projection_head": True}, {"encoding": "poisson"}], ids=str)
def test_spiking_models_are_compared_by_their_rates(per_step: bool, options: dict[str, object]) -> None:
    model, previous, (inputs, labels) = spiking(0, per_step=per_step, **options), spiking(7, **options), batch()
    objective = model_contrastive(model, exchangeable(previous), mu=2.0, temperature=0.5)
    received = spiking(0, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1

    def draw() -> drawing:
        return drawing(model, torch.Generator().manual_seed(3))

    with draw(), torch.no_grad():
        loss = objective(model, inputs, labels).item()
    model.train()
    with draw(), torch.no_grad():
        encoded = model.encode(inputs)
        z, z_glob, z_prev = (each.body[:-1](encoded).mean(0) for each in (model, received.eval(), previous.eval()))
        similar = [functional.cosine_similarity(z, other) / 0.5 for other in (z_glob, z_prev)]
        contrastive = -torch.log_softmax(torch.stack(similar, 1), 1)[:, 0].mean()
    with draw(), torch.no_grad():
        expected = cross_entropy(model, inputs, labels) + 2.0 * contrastive
    assert loss == pytest.approx(float(expected), rel=1e-5)


def test_the_loss_of_each_step_is_averaged() -> None:
    model, (inputs, labels) = spiking(0, per_step=True), batch()
    model.eval()
    with torch.no_grad():
        steps = [functional.cross_entropy(values, labels) for values in model.over_time(inputs)]
        assert len(steps) == 5
        torch.testing.assert_close(cross_entropy(model, inputs, labels), torch.stack(steps).mean())


def test_a_model_without_an_output_layer_of_its_own_is_refused() -> None:
    class Opaque(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

    with pytest.raises(TypeError, match=r"Opaque: MOON compares .* nn.Sequential"):
        model_contrastive(Opaque(), exchangeable(Opaque()), mu=1.0, temperature=0.5)
    with pytest.raises(ValueError, match=r"'0.weight' is missing"):
        model_contrastive(build(), {}, mu=1.0, temperature=0.5)
