"""Encryption against a literal epoch, and what an interrupt leaves."""

from __future__ import annotations

import networks
import pytest
import torch
from references import private_snn as literal
from torch import Tensor

from snnfl import rng
from snnfl.config import ConfigError, EncryptionConfig, PublishingConfig
from snnfl.conversion import fold, trace
from snnfl.models import initialise
from snnfl.private_snn import Bounds, Encryption, begin, convert, encrypt_epoch, encryption_loss, teacher_logits
from snnfl.training import TrainingDivergedError

CONFIG = EncryptionConfig(batch_size=3, epochs=2, learning_rate=1e-3)
BOUNDS = Bounds(torch.full((1, 2, 1, 1), -1.0), torch.ones(1, 2, 1, 1))
STEPS = 9


def ann():
    model = networks.Plain().double().eval()
    initialise(model, rng.generator(3, "weights"))
    return model


def images() -> Tensor:
    return torch.rand((8, 2, 6, 6), generator=rng.generator(1, "images"), dtype=torch.float64) * 2 - 1


def labels() -> Tensor:
    return torch.rand((8, 3), generator=rng.generator(1, "labels"), dtype=torch.float64).softmax(1)


def started() -> Encryption:
    graph = trace(ann())
    how = PublishingConfig(steps=STEPS, leak=0.95)
    network = convert(graph, fold(graph, ann().state_dict()), images(), BOUNDS, how, rng.generator(2, "spikes"))
    return begin(network)


def epoch(state: Encryption, config: EncryptionConfig = CONFIG) -> Encryption:
    return encrypt_epoch(state, images(), labels(), teacher_logits(ann(), images()), config, seed=5)


def test_an_epoch_equals_a_literal_one() -> None:
    state = started()
    names = [name for name in state.network.parameters if name.endswith(("weight", "bias"))]
    weights = {name: state.network.parameters[name].clone().requires_grad_() for name in names}
    optimiser = torch.optim.Adam(weights.values(), lr=1e-3)
    thresholds = [state.network.parameters[f"{layer}.threshold"] for layer in ("relu", "relu_hidden")]
    order = torch.randperm(8, generator=rng.generator(5, "encryption order", 0))
    total = 0.0
    for number, chosen in enumerate(torch.split(order, 3)):
        draws = torch.Generator().manual_seed(rng.derive_seed(5, "encryption spikes", 0, number))
        inputs = [literal.poisson_step(images()[chosen], draws) for _ in range(STEPS)]
        logits = literal.spiking_logits(weights, inputs, leaks=(0.95, 0.95), thresholds=thresholds)
        with torch.no_grad():
            taught = ann()(images()[chosen])
        loss = literal.loss(logits, labels()[chosen], taught, m=0.7, tau=20)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        total += float(loss.detach()) * len(chosen)
    found = epoch(state)
    assert found.losses == pytest.approx((total / 8,), rel=1e-9)
    for name in names:
        assert not torch.equal(weights[name], state.network.parameters[name])
        torch.testing.assert_close(found.network.parameters[name], weights[name].detach(), rtol=1e-7, atol=1e-9)


def test_thresholds_and_leaks_stay_and_nothing_is_changed_in_place() -> None:
    state = started()
    before = {name: array.clone() for name, array in state.network.parameters.items()}
    after = epoch(state).network.parameters
    assert all(torch.equal(before[name], array) for name, array in state.network.parameters.items())
    for name in ("relu.threshold", "relu.leak", "relu_hidden.threshold", "relu_hidden.leak"):
        assert torch.equal(after[name], before[name])


def test_an_epoch_depends_on_its_number_and_the_state_alone() -> None:
    state = epoch(started())
    again = epoch(started())
    first, second = epoch(state), epoch(again)
    for name, array in first.network.parameters.items():
        assert torch.equal(array, second.network.parameters[name])
    assert first.epochs == 2
    assert first.losses[0] != first.losses[1]


def test_the_loss_without_distillation_is_the_cross_entropy() -> None:
    logits = torch.randn((4, 3), generator=rng.generator(0, "logits"), dtype=torch.float64)
    taught = torch.randn((4, 3), generator=rng.generator(1, "logits"), dtype=torch.float64)
    found = encryption_loss(logits, labels()[:4], taught, EncryptionConfig(distillation=0.0))
    torch.testing.assert_close(found, literal.loss(logits, labels()[:4], taught, m=0, tau=20))
    both = encryption_loss(logits, labels()[:4], taught, EncryptionConfig(distillation=0.3, temperature=4.0))
    torch.testing.assert_close(both, literal.loss(logits, labels()[:4], taught, m=0.3, tau=4))


def test_training_brings_the_spiking_network_to_the_ann() -> None:
    state, taught = started(), teacher_logits(ann(), images())
    config = EncryptionConfig(batch_size=4, epochs=30, learning_rate=3e-3, distillation=1.0, temperature=1.0)
    for _ in range(config.epochs):
        state = encrypt_epoch(state, images(), labels(), taught, config, seed=0)
    assert state.losses[-1] < 0.5 * state.losses[0]


def test_milestones_are_parts_of_the_epochs() -> None:
    with pytest.raises(ConfigError, match=r"milestones=\[1\.5\]: expected parts of the epochs"):
        EncryptionConfig(milestones=(1.5,))


def test_a_loss_that_is_no_number_ends_it() -> None:
    taught = teacher_logits(ann(), images())
    taught[0, 0] = torch.nan
    with pytest.raises(
        TrainingDivergedError, match=r"epoch 1 at learning rate 0\.001; lower encryption\.learning_rate"
    ):
        encrypt_epoch(started(), images(), labels(), taught, CONFIG, seed=5)
