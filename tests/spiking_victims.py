"""One round of one client that trains a spiking network on digits, as its server sees it."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from victims import Victim, digits

from snnfl import rng
from snnfl.auditing.ground_truth import GroundTruth
from snnfl.config import ModelConfig, TrainingConfig
from snnfl.models import SpikingModel, build_model, initialise
from snnfl.models.spiking import spiking_model
from snnfl.threat import Exchange, Knowledge, ServerView
from snnfl.training import exchangeable, train_locally
from snnfl.updates.native import Native

STEPS = 6


def spiking(
    name: str = "lenet5",
    *,
    shape: tuple[int, ...] = (1, 8, 8),
    sequence: bool = False,
    hidden: int | None = None,
    **options: object,
):
    """Build a spiking network for digits, or for sequences of their rows; ``hidden`` makes an ``mlp`` narrower."""
    steps = {} if sequence else {"time_steps": STEPS}
    config = ModelConfig(**{"name": name, "neuron": "lif", "batch_norm": False, **steps, **options})
    draw = rng.generator(0, "weights")
    if hidden is not None:
        inputs = math.prod(shape[1:] if sequence else shape)
        first, last = nn.Linear(inputs, hidden), nn.Linear(hidden, 10)
        layers = nn.Sequential(OrderedDict(flatten=nn.Flatten(), fc1=first, relu1=nn.ReLU(), fc2=last))
        initialise(layers, draw)
        return spiking_model(layers, config, input_shape=shape, sequence=sequence, generator=draw)
    model = build_model(config, input_shape=shape, classes=10, generator=draw, sequence=sequence)
    assert isinstance(model, SpikingModel)
    return model


def trained(model: nn.Module, rounds: int = 40) -> nn.Module:
    """Train a network on other digits, briefly."""
    pixels, labels, mean, std = digits(400, 200)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for start in [32 * step % 384 for step in range(rounds)]:
        inputs = _shaped(model, (pixels[start : start + 32] - mean) / std)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels[start : start + 32]).backward()
        optimizer.step()
    return model


def spiking_victim(model: nn.Module, *, start: int = 0, images: int = 1, knowledge: Knowledge | None = None) -> Victim:
    """Train a client for one step on digits, for real, and return both sides."""
    training = TrainingConfig(epochs=1, batch_size=images, learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    pixels, labels, mean, std = digits(images, start)
    client = copy.deepcopy(model)
    before = {name: array.clone() for name, array in exchangeable(client).items()}
    train_locally(client, [[(_shaped(model, (pixels - mean) / std), labels)]], training, server_round=1)
    after = {name: array.clone() for name, array in exchangeable(client).items()}
    flags = {"images": images, "batch_size": images, "epochs": 1, "learning_rate": 0.1}
    view = ServerView(
        model=client, input_shape=model.input_shape, mean=mean, std=std, format=Native(before, model.layers),
        exchange=Exchange(server_round=1, sent=before, received=after),
        knowledge=knowledge or Knowledge(**flags), sequence=model.sequence,
    )  # fmt: skip
    return Victim(view=view, truth=GroundTruth(images=_shaped(model, pixels), labels=labels, biases={}))


def _shaped(model: nn.Module, pixels: Tensor) -> Tensor:
    return pixels.view(-1, *model.input_shape)
