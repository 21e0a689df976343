"""A network that is small, trained on real digits and published, and what a thief has of it."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
from torch import Tensor, nn

from snnfl import rng
from snnfl.auditing.judge import Judge, train_judge
from snnfl.config import DataConfig, ModelConfig, PublishingConfig, TrainingConfig
from snnfl.conversion import fold, trace
from snnfl.data import Dataset, batches, load
from snnfl.models import build_model
from snnfl.private_snn import Bounds, PublishedNetwork, convert
from snnfl.threat import ModelKnowledge, ModelView, PublicImages
from snnfl.threat.model import parts_of
from snnfl.training import train_locally

OWN = torch.arange(700)
"""The owner's training images of digits; those behind them are the judge's and the thief's."""

JUDGED = torch.arange(700, 1200)
PUBLIC = torch.arange(1200, 1437)


def dataset() -> Dataset:
    return load(DataConfig(source="digits"))


def bounds() -> Bounds:
    like = torch.zeros(1, *dataset().input_shape)
    low, high = (dataset().normalise(torch.full_like(like, value)) for value in (dataset().lowest, dataset().scale))
    return Bounds(low, high)


def real() -> tuple[Tensor, Tensor]:
    return dataset().normalise(dataset().test_images), dataset().test_labels


@functools.cache
def ann() -> nn.Module:
    config = ModelConfig(name="lenet5", batch_norm=False)
    draws = rng.generator(0, "weights")
    model = build_model(config, input_shape=dataset().input_shape, classes=10, generator=draws)
    orders = (rng.generator(0, "order", epoch) for epoch in range(15))
    passes = (batches(dataset(), OWN, 32, generator=order, augment=False) for order in orders)
    train_locally(model, passes, TrainingConfig(optimizer="adam", learning_rate=3e-3), server_round=1)
    return model.eval()


@functools.cache
def judge() -> Judge:
    return train_judge(dataset(), JUDGED, real(), seed=1, model="cnn", epochs=12)


@functools.cache
def published(steps: int = 24) -> PublishedNetwork:
    """The converted network: nothing is encrypted yet."""
    graph = trace(ann())
    own = dataset().normalise(dataset().train_images[OWN[:64]])
    how = PublishingConfig(steps=steps)
    return convert(graph, fold(graph, ann().state_dict()), own, bounds(), how, rng.generator(0, "spikes"))


def shuffled(network: PublishedNetwork) -> PublishedNetwork:
    """A network with the same weights in random order."""
    found = dict(network.parameters)
    for number, name in enumerate(name for name in found if name.endswith(("weight", "bias"))):
        order = torch.randperm(found[name].numel(), generator=rng.generator(0, "shuffled", number))
        found[name] = found[name].flatten()[order].view(found[name].shape)
    return network.holding(found)


def view(network: PublishedNetwork, *, fires: bool = True, denied: tuple[str, ...] = ()) -> ModelView:
    """What a thief has of it; without ``fires`` of the ordinary network with the same weights."""
    low, high = (each[0, :, 0, 0] for each in bounds())
    draws = rng.generator(0, "questions")

    def logits(images: Tensor) -> Tensor:
        return network(images, draws) if fires else network.analog(images).detach()

    parts = parts_of(network.graph, network.parameters)
    found = ModelView(
        input_shape=network.input_shape,
        classes=10,
        mean=-low / (high - low),
        std=1 / (high - low),
        knowledge=ModelKnowledge().without(denied),
        network=network if fires else None,
        logits=logits,
        labels=lambda images: logits(images).argmax(1),
        public=PublicImages(inputs=dataset().normalise(dataset().train_images[PUBLIC]), labels=None),
        synthetic=dataset().normalise(dataset().train_images[PUBLIC[:100]]),
        **parts,
    )
    return found if fires else replace(found, thresholds={})
