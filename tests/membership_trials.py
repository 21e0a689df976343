"""Small networks, trained on real digits, and what membership attacks are given of them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn

from snnfl import rng
from snnfl.auditing.membership import Trained, Trials, drawn_members, drawn_overlap
from snnfl.config import DataConfig, ModelConfig, TrainingConfig
from snnfl.data import Dataset, batches, load
from snnfl.membership_attacks.signals import measure
from snnfl.models import build_model
from snnfl.threat import Shadow
from snnfl.training import train_locally

CANDIDATES, NOBODY = 600, 360


@cache
def digits() -> Dataset:
    return load(DataConfig(source="digits", training_images=CANDIDATES, test_images=NOBODY))


def trained(dataset: Dataset, members: Tensor, seed: int, *, spiking: bool = True, epochs: int = 15) -> nn.Module:
    """Train a network on some samples of a data set."""
    config = ModelConfig(name="mlp", batch_norm=False)
    if spiking:
        config = replace(config, neuron="lif", time_steps=4, readout="final_potential")
    draw = rng.generator(seed, "weights")
    network = build_model(config, input_shape=dataset.input_shape, classes=dataset.classes, generator=draw)
    order, indices = rng.generator(seed, "batches"), torch.nonzero(members).flatten()
    training = TrainingConfig(optimizer="adam", learning_rate=0.003, batch_size=64, weight_decay=0.0)
    epochs_of = (batches(dataset, indices, 64, generator=order, augment=False) for _ in range(epochs))
    train_locally(network, epochs_of, training, server_round=1)
    return network


@cache
def trials(*, spiking: bool = True, networks: int = 4, epochs: int = 15) -> Trials:
    """Return trained networks as membership attacks are tried on them, with every shadow and every signal."""
    data = digits()
    inputs, of_nobody = data.normalise(data.train_images), data.normalise(data.test_images)
    reserve = replace(data, train_images=data.test_images, train_labels=data.test_labels)

    found = []
    for number in range(networks):
        members = drawn_members(0, CANDIDATES, number)
        network = trained(data, members, number, spiking=spiking, epochs=epochs)
        most = drawn_overlap(0, members, number)
        overlap = trained(data, most, 100 + number, spiking=spiking, epochs=epochs)
        found.append(
            Trained(
                signals=measure(network, inputs, perturbed=True, white_box=True),
                members=members,
                population=measure(network, of_nobody, perturbed=True, white_box=True),
                overlap=Shadow(
                    signals=measure(overlap, inputs, perturbed=True, white_box=True),
                    members=most,
                    used=most | ~members,
                ),
            )
        )
    own = drawn_members(0, NOBODY, 0, "disjoint")
    disjoint = trained(reserve, own, 999, spiking=spiking, epochs=epochs)
    return Trials(
        inputs=inputs,
        labels=data.train_labels,
        networks=found,
        nobody=(of_nobody, data.test_labels),
        disjoint=Shadow(signals=measure(disjoint, of_nobody, perturbed=True, white_box=True), members=own),
    )
