"""One round of one client on real images, as its server sees it: what tests of attacks share."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from snnfl import rng
from snnfl.attacks.imprint import imprinted
from snnfl.attacks.loki import loki_weights
from snnfl.auditing.ground_truth import GroundTruth
from snnfl.batching import batch_sizes
from snnfl.config import ConversionConfig, DataConfig, ModelConfig, TrainingConfig
from snnfl.conversion import convert_state
from snnfl.conversion.folding import NORM_FIELDS
from snnfl.data import load
from snnfl.models import build_model, initialise
from snnfl.models.spiking import spiking_model
from snnfl.spiking import trace
from snnfl.threat import Exchange, Knowledge, PublicImages, ServerView
from snnfl.training import exchangeable, private_biases, train_locally
from snnfl.training.objectives import Objective, cross_entropy
from snnfl.updates import Converted, Native, Plain, UpdateFormat

SCALE = 16.0
"""Digits are valued 0 to 16."""


def digits(count: int, start: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images in pixels of [0, 1], labels, and mean and standard deviation of the normalisation."""
    data = load(DataConfig(source="digits"))
    images, labels = data.train_images[start : start + count], data.train_labels[start : start + count]
    return images.float() / SCALE, labels, data.mean / SCALE, data.std / SCALE


def small_mlp(hidden: int = 32) -> nn.Module:
    return _drawn(
        OrderedDict(flatten=nn.Flatten(), fc1=nn.Linear(64, hidden), relu=nn.ReLU(), fc2=nn.Linear(hidden, 10))
    )


def small_cnn(*, norm: bool = False, activation: type[nn.Module] = nn.ReLU, spread: float = 0.0) -> nn.Module:
    """Build ``conv 8 - conv 8 - linear`` without pooling; uniform weights of +-``spread`` if it isn't zero."""
    norms = (OrderedDict(norm1=nn.BatchNorm2d(8)), OrderedDict(norm2=nn.BatchNorm2d(8))) if norm else ({}, {})
    layers = OrderedDict(
        conv1=nn.Conv2d(1, 8, 3, padding=1), **norms[0], act1=activation(),
        conv2=nn.Conv2d(8, 8, 3, padding=1), **norms[1], act2=activation(),
        flatten=nn.Flatten(), fc=nn.Linear(8 * 64, 10),
    )  # fmt: skip
    model = _drawn(layers)
    if spread:
        draw = rng.generator(0, "spread")
        for parameter in model.parameters():
            nn.init.uniform_(parameter, -spread, spread, generator=draw)
    return model


def settled_cnn() -> nn.Module:
    """Build ``small_cnn(norm=True)`` whose running statistics are those of other digits, with betas of up to 0.5."""
    model, draw = small_cnn(norm=True), rng.generator(0, "betas")
    pixels, _, mean, std = digits(200, 100)
    with torch.no_grad():
        for norm in (model.norm1, model.norm2):
            norm.bias.uniform_(0, 0.5, generator=draw)
        for _ in range(60):
            model.train()((pixels - mean) / std)
    return model


class Direct(nn.Module):
    """A linear path from image to logits beside one that spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.direct = nn.Linear(64, 10)
        self.fc1 = nn.Linear(64, 16)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(16, 10)
        initialise(self, rng.generator(0, "weights"))

    def forward(self, images: Tensor) -> Tensor:
        flat = self.flatten(images)
        logits: Tensor = self.direct(flat) + self.fc2(self.relu(self.fc1(flat)))
        return logits


def _drawn(layers: OrderedDict[str, nn.Module]) -> nn.Module:
    model = nn.Sequential(layers)
    initialise(model, rng.generator(0, "weights"))
    return model


class PrincipalComponents(nn.Module):
    """Draw images from their principal components: the smallest of generative models, of digits 600 to 1599."""

    latent_shape = (40,)

    def __init__(self) -> None:
        super().__init__()
        flat = digits(1000, 600)[0].flatten(1)
        self.mean = flat.mean(0)
        _, sizes, rows = torch.linalg.svd(flat - self.mean, full_matrices=False)
        self.rows = (sizes[:40, None] / len(flat) ** 0.5) * rows[:40]

    def forward(self, latents: Tensor) -> Tensor:
        return (self.mean + latents @ self.rows).clamp(0, 1).view(-1, 1, 8, 8)


@dataclass(frozen=True, kw_only=True)
class Victim:
    """What the server has and what only scoring may know."""

    view: ServerView
    truth: GroundTruth


def attacked(
    model: nn.Module,
    *,
    start: int = 0,
    images: int = 1,
    training: TrainingConfig | None = None,
    conversion: ConversionConfig | None = None,
    knowledge: Knowledge | None = None,
    biases: dict[str, Tensor] | None = None,
    calibrating: int | None = 500,
    objective: Callable[[nn.Module], Objective] = lambda model: cross_entropy,
    length: float | None = None,
    orders: Tensor | None = None,
) -> Victim:
    """Train a client for a round on digits, for real, and return both sides; with ``conversion`` of an S-run.

    ``objective`` is made of the model with the received weights. A client with a ``length`` shortens its update to it.

    Without ``orders`` of its epochs it takes the images as they stand.

    Images that an S-client calibrates with are 64 from ``calibrating`` on, or those that it trained on.
    """
    training = training or TrainingConfig(
        epochs=1, batch_size=images, learning_rate=0.1, momentum=0.0, weight_decay=0.0
    )
    pixels, labels, mean, std = digits(images, start)
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, array in (biases or {}).items():
            model.get_parameter(name).copy_(array)
    before = {name: array.clone() for name, array in exchangeable(model).items()}
    sizes = batch_sizes(len(labels), training.batch_size)
    taken = torch.arange(len(labels)).repeat(training.epochs, 1) if orders is None else orders
    pairs = [((pixels - mean)[order] / std, labels[order]) for order in taken]
    epochs = [list(zip(*(torch.split(values, sizes) for values in pair), strict=True)) for pair in pairs]
    train_locally(model, epochs, training, server_round=1, objective=objective(model))
    if length is not None:
        trained_arrays = dict(model.named_parameters())
        change = {name: trained_arrays[name].detach() - before[name] for name in trained_arrays}
        factor = length / float(torch.cat([array.flatten() for array in change.values()]).norm())
        with torch.no_grad():
            for name, array in trained_arrays.items():
                array.copy_(before[name] + min(1.0, factor) * change[name])
    after = {name: array.clone() for name, array in exchangeable(model).items()}
    private, trained = private_biases(model), after
    sent: dict[str, Tensor] = before
    format: UpdateFormat = Plain(before)
    if conversion is not None:
        graph = trace(model)
        format = Converted(graph, before, conversion)
        sent = {name: array for name, array in before.items() if name not in private}
        inputs = ((pixels if calibrating is None else digits(64, calibrating)[0]) - mean) / std
        network = convert_state(graph, model.state_dict(), inputs, conversion)
        norms = {
            f"{node.norm}.{field}": after[f"{node.norm}.{name}"]
            for node in graph.affines if node.norm for field, name in NORM_FIELDS.items()
        }  # fmt: skip
        after = {**network.parameters, **norms}
    known = knowledge or Knowledge(
        images=images,
        batch_size=training.batch_size,
        epochs=training.epochs,
        learning_rate=training.learning_rate,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
    )
    view = ServerView(
        model=model, input_shape=(1, 8, 8), mean=mean, std=std, format=format,
        exchange=Exchange(server_round=1, sent=sent, received=after),
        knowledge=replace(known, biases=conversion is None), labels=labels if known.labels else None,
    )  # fmt: skip
    own, moved = ({name: side[name] for name in private} for side in (before, trained))
    truth = GroundTruth(images=pixels, labels=labels, biases=own, trained_biases=moved)
    return Victim(view=view, truth=truth)


def shown(victim: Victim, *, count: int = 600) -> Victim:
    """Let the server have digits of its own, none of them a victim's."""
    pixels, classes, mean, std = digits(count, 600)
    public = PublicImages(inputs=(pixels - mean) / std, labels=classes)
    return replace(victim, view=replace(victim.view, public=public))


def recordings(count: int, *, steps: int = 10, side: int = 12, seed: int = 0) -> Tensor:
    """Return event recordings of an edge that moves over noise, counts ``[N, T, 2, side, side]``."""
    draw = rng.generator(seed, "recordings")
    clock = torch.arange(steps).view(1, -1, 1, 1)
    place = torch.arange(side).float()
    start = torch.rand(count, 1, 1, 1, generator=draw) * side / 2
    distance = (place + 0.5 * place.view(-1, 1) - start - clock * side / steps).abs()
    rates = torch.stack([1.5 * (distance < 1), 0.8 * (distance < 2)], 2) + 0.02
    return torch.poisson(rates, generator=draw)


def spiking_victim(
    samples: Tensor,
    labels: Tensor,
    *,
    sequence: bool,
    training: TrainingConfig | None = None,
    layers: nn.Module | None = None,
    **options: object,
) -> Victim:
    """Train a client's natively spiking network for a round, for real, and return both sides.

    Args:
        samples: As the network sees them, pixels of mean 0 and standard deviation 1.
        labels: Of them.
        sequence: Whether their first axis is time.
        training: One step on all of them by default.
        layers: Of the network, whose ReLUs become neurons; by default those that the registry makes of ``options``.
        options: Of the model (:class:`~snnfl.config.ModelConfig`); an ``mlp`` without batch normalisation by default.
    """
    training = training or TrainingConfig(
        epochs=1, batch_size=len(samples), learning_rate=0.1, momentum=0.0, weight_decay=0.0
    )
    config = ModelConfig(**{"name": "mlp", "neuron": "lif", "batch_norm": False, **options})  # type: ignore[arg-type]
    shape = tuple(samples.shape[1:])
    weights = rng.generator(0, "weights")
    if layers is None:
        model = build_model(config, input_shape=shape, classes=10, generator=weights, sequence=sequence)
    else:
        initialise(layers, weights)
        model = spiking_model(layers, config, input_shape=shape, sequence=sequence, generator=weights)
    before = {name: array.clone() for name, array in exchangeable(model).items()}
    sizes = batch_sizes(len(samples), training.batch_size)
    batches = list(zip(torch.split(samples, sizes), torch.split(labels, sizes), strict=True))
    train_locally(model, [batches] * training.epochs, training, server_round=1)
    after = {name: array.clone() for name, array in exchangeable(model).items()}
    known = Knowledge(
        images=len(samples), batch_size=training.batch_size, epochs=training.epochs,
        learning_rate=training.learning_rate, momentum=training.momentum, weight_decay=training.weight_decay,
    )  # fmt: skip
    scale = float(samples.max()) if sequence else 1.0  # a pixel of 1 is the largest count
    channels = samples.shape[2] if sequence else samples.shape[1]
    view = ServerView(
        model=model, input_shape=shape, mean=torch.zeros(channels), std=torch.ones(channels) / scale,
        format=Native(before, model.layers), exchange=Exchange(server_round=1, sent=before, received=after),
        knowledge=known, sequence=sequence,
    )  # fmt: skip
    return Victim(view=view, truth=GroundTruth(images=samples / scale, labels=labels))


def imprinted_victim(images: int = 2) -> Victim:
    """Return a client that a malicious server sent weights of its own making."""
    model, (pixels, _, mean, std) = small_mlp(200), digits(500, 1000)
    model.load_state_dict(imprinted(model, dict(model.state_dict()), (pixels - mean) / std, seed=0))
    known = Knowledge(images=images, batch_size=images, epochs=1, learning_rate=0.1, crafted_weights=True)
    return attacked(model, images=images, knowledge=known)


def sorting_cnn(maps: int = 9, units: int = 256) -> nn.Module:
    """Build ``conv - linear - linear`` without pooling, with maps for three of LOKI's clients."""
    layers = OrderedDict(
        conv1=nn.Conv2d(1, maps, 3, padding=1), relu1=nn.ReLU(),
        flatten=nn.Flatten(), fc2=nn.Linear(maps * 64, units), relu2=nn.ReLU(), fc3=nn.Linear(units, 10),
    )  # fmt: skip
    return _drawn(layers)


def loki_victim(images: int = 2) -> Victim:
    """Return the same of the weights that LOKI's server sends the first of three clients."""
    model, (pixels, _, mean, std) = sorting_cnn(), digits(500, 1000)
    model.load_state_dict(loki_weights(model, dict(model.state_dict()), (pixels - mean) / std, seed=0, client=0))
    known = Knowledge(images=images, batch_size=images, epochs=1, learning_rate=0.1, crafted_weights=True)
    return attacked(model, images=images, knowledge=known)
