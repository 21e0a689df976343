"""The judge of class images: a network that has nothing to do with the attacked one, and says what they show."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snnfl.config import ConfigError, ModelConfig, TrainingConfig
from snnfl.data import Dataset, batches
from snnfl.models import build_model
from snnfl.rng import generator
from snnfl.training import accuracy, train_locally

PIECE = 256


class Extractor(nn.Module):
    """What a network's last layer receives: features in which sets of images are compared.

    Attributes:
        num_features: How many there are.
    """

    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        self.body = network[:-1]
        self.num_features = int(network[-1].in_features)  # type: ignore[arg-type]  # of a linear layer

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images to features, ``[N, num_features]``."""
        features: Tensor = self.body(images)
        return features


@dataclass(frozen=True, kw_only=True, eq=False)
class Judge:
    """A network trained on other images than the attacked one, of another structure and from another seed.

    Attributes:
        name: Of its structure, seed and data, in tables: the extractor that distances are told with.
        network: In evaluation mode.
        accuracy: On real images that nobody trained on: what recognition of perfect images would be.
    """

    name: str
    network: nn.Sequential
    accuracy: float

    @property
    def extractor(self) -> Extractor:
        """Features for distances."""
        return Extractor(self.network).eval()

    @torch.no_grad()
    def classes(self, images: Tensor) -> Tensor:
        """Return the class that it sees in each normalised image, ``[N]``."""
        return torch.cat([self.network(piece) for piece in torch.split(images, PIECE)]).argmax(1)


def judge_network(model: str, input_shape: tuple[int, ...], classes: int, *, seed: int) -> nn.Sequential:
    """Build a judge that hasn't learned yet.

    Args:
        model: Name of its structure, whose last layer is linear.
        input_shape: Of an image.
        classes: How many.
        seed: Of its weights.

    Raises:
        ConfigError: If there is no such structure, or its last layer isn't linear.
    """
    network = build_model(
        ModelConfig(name=model, batch_norm=False),
        input_shape=input_shape,
        classes=classes,
        generator=generator(seed, "judge's weights"),
    )
    if not isinstance(network, nn.Sequential) or not isinstance(network[-1], nn.Linear):
        raise ConfigError(f"model={model}: a judge's last layer must be linear; take cnn, lenet5 or mlp")
    return network


def train_judge(
    dataset: Dataset, indices: Tensor, real: tuple[Tensor, Tensor], *, seed: int, model: str = "cnn", epochs: int = 3
) -> Judge:
    """Train a judge.

    Args:
        dataset: Its training split is used.
        indices: Of the training images that it learns from, which the attacked network must not have, ``[n]``.
        real: Normalised images and labels of neither, to measure it on.
        seed: Of weights and order; another one than the attacked network's.
        model: Name of its structure, whose last layer is linear.
        epochs: Passes over its images.

    Raises:
        ConfigError: If there is no such structure, or its last layer isn't linear.
    """
    network = judge_network(model, tuple(real[0].shape[1:]), len(dataset.class_names), seed=seed)
    training = TrainingConfig(optimizer="adam", learning_rate=1e-3)
    orders = (generator(seed, "judge's batches", epoch) for epoch in range(epochs))
    passes = (batches(dataset, indices, 64, generator=order, augment=False) for order in orders)
    train_locally(network, passes, training, server_round=1)
    network.eval()
    pieces = zip(*(torch.split(each, PIECE) for each in real), strict=True)
    name = f"{model} of {len(indices)} other training images, seed {seed}, last hidden layer"
    return Judge(name=name, network=network, accuracy=accuracy(network, pieces))
