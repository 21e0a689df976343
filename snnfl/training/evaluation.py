"""Accuracy and loss on held-out data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from snnfl.training.objectives import Batch


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How well a model does on a set of images.

    Attributes:
        accuracy: Part of the images whose largest output is their label, in ``[0, 1]``.
        loss: Mean cross-entropy over the images, in nats.
        images: Number of images.
    """

    accuracy: float
    loss: float
    images: int


@torch.inference_mode()
def accuracy(forward: Callable[[Tensor], Tensor], batches: Iterable[Batch]) -> float:
    """Return the part of the samples whose largest output is their label, in ``[0, 1]``.

    Args:
        forward: Maps ``[batch, *input_shape]`` to ``[batch, classes]``: a model or the simulation of a spiking network.
        batches: Inputs and labels.

    Raises:
        ValueError: If there is no sample.
    """
    return _mean([forward(inputs).argmax(dim=1) == labels for inputs, labels in batches])


@torch.inference_mode()
def accuracies(forward: Callable[[Tensor], Mapping[int, Tensor]], batches: Iterable[Batch]) -> dict[int, float]:
    """Return the :func:`accuracy` at each length of one simulation.

    Args:
        forward: Maps ``[batch, *input_shape]`` to ``[batch, classes]`` by length T.
        batches: Inputs and labels.

    Raises:
        ValueError: If there is no sample.
    """
    hits: dict[int, list[Tensor]] = {}
    for inputs, labels in batches:
        for length, logits in forward(inputs).items():
            hits.setdefault(length, []).append(logits.argmax(dim=1) == labels)
    if not hits:
        raise ValueError("no sample to evaluate; give at least one batch")
    return {length: _mean(of_length) for length, of_length in sorted(hits.items())}


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Iterable[Batch]) -> Evaluation:
    """Evaluate a model in evaluation mode, and leave every module in the mode it was in.

    Args:
        model: Maps ``[batch, *input_shape]`` to logits ``[batch, classes]``.
        batches: Inputs and labels, on the model's device.

    Raises:
        ValueError: If there is no sample.
    """
    hits, losses = [], []
    with evaluation_mode(model):
        for inputs, labels in batches:
            logits = model(inputs)
            hits.append(logits.argmax(dim=1) == labels)
            losses.append(functional.cross_entropy(logits, labels, reduction="none"))
    return Evaluation(accuracy=_mean(hits), loss=_mean(losses), images=sum(map(len, losses)))


def _mean(values: list[Tensor]) -> float:
    """Average one value per sample; read from the device once, so that no batch waits for another."""
    if not any(map(len, values)):
        raise ValueError("no sample to evaluate; give at least one batch")
    return torch.cat(values).double().mean().item()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation mode for a while, then every module to the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
