"""What each lock does to a network, and that encryption goes on from it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import thefts
import torch

from snnfl import rng
from snnfl.config import ConfigError, EncryptionConfig
from snnfl.private_snn import begin, encrypt_epoch, teacher_logits
from snnfl.private_snn.locks import rounded, with_own_neurons, wrongness

CONFIG = EncryptionConfig(images=100, epochs=2, batch_size=25, learning_rate=3e-3)


def encrypted(config: EncryptionConfig):
    network = thefts.published()
    images = thefts.view(network).synthetic
    taught = teacher_logits(lambda some: network.analog(some).detach(), images)
    state = begin(network)
    for _ in range(config.epochs):
        state = encrypt_epoch(state, images, taught.softmax(1), taught, config, seed=0)
    return state.network


def right(network) -> float:
    images, labels = thefts.real()
    with torch.no_grad():
        return float((network.analog(images).argmax(1) == labels).float().mean())


def test_channels_have_thresholds_and_leaks_of_their_own() -> None:
    network = thefts.published()
    config = replace(CONFIG, threshold_spread=1.0, lowest_leak=0.6)
    found = with_own_neurons(network, config, rng.generator(0, "neurons"))
    for node in network.graph.spikes:
        factors = found.parameters[f"{node.name}.threshold"] / network.parameters[f"{node.name}.threshold"]
        leaks = found.parameters[f"{node.name}.leak"]
        assert len(factors.unique()) == len(factors) == len(leaks) > 1
        assert 0.5 <= float(factors.min()) < 1 < float(factors.max()) <= 2
        assert 0.6 <= float(leaks.min()) < float(leaks.max()) <= 1
    images = thefts.real()[0][:5]
    assert not torch.equal(found(images, rng.generator(1, "s")), network(images, rng.generator(1, "s")))


def test_no_lock_leaves_all_as_it_is() -> None:
    network = thefts.published()
    assert with_own_neurons(network, CONFIG, rng.generator(0, "neurons")).parameters == network.parameters
    assert rounded(network.parameters, CONFIG) == network.parameters


def test_thresholds_stay_through_encryption() -> None:
    config = replace(CONFIG, threshold_spread=1.0)
    drawn = with_own_neurons(thefts.published(), config, rng.generator(0, "encryption neurons"))
    found = encrypted(config)
    for node in found.graph.spikes:
        name = f"{node.name}.threshold"
        torch.testing.assert_close(found.parameters[name], drawn.parameters[name])


@pytest.mark.parametrize("bits", [2, 4])
def test_what_is_published_takes_few_levels(bits: int) -> None:
    found = encrypted(replace(CONFIG, bits=bits))
    for name, array in found.parameters.items():
        if name.endswith("weight"):
            assert len(array.unique()) <= 2**bits - 1


def test_the_penalty_makes_the_copy_worse() -> None:
    assert right(encrypted(replace(CONFIG, relu_penalty=30.0))) < right(encrypted(CONFIG)) - 0.05


def test_a_copy_that_is_never_right_has_no_penalty() -> None:
    labels = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    assert float(wrongness(torch.tensor([[-50.0, 50.0], [50.0, -50.0]]), labels)) < 1e-30
    logits = torch.tensor([[0.3, -0.7], [1.0, 0.5]], requires_grad=True)
    p = logits.softmax(1)
    wanted = -(torch.log(1 - p[0, 0]) + torch.log(1 - p[1, 1])) / 2
    torch.testing.assert_close(wrongness(logits, labels), wanted)


def test_one_bit_is_refused() -> None:
    with pytest.raises(ConfigError, match="bits"):
        EncryptionConfig(bits=1)
