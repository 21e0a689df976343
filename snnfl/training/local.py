"""Local training by stochastic gradient descent."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snnfl.config import TrainingConfig
from snnfl.training.objectives import Batch, Objective, cross_entropy


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What one client's local training did.

    Attributes:
        loss: Mean over the samples of the last epoch, measured before each step.
        samples: Samples of the last epoch: the client's weight in FedAvg.
        steps: Optimiser steps over all epochs.
    """

    loss: float
    samples: int
    steps: int


class TrainingDivergedError(RuntimeError):
    """The loss is no longer a finite number."""


def learning_rate(config: TrainingConfig, server_round: int) -> float:
    """Return the learning rate of a round: ``rate * decay^k``, ``k`` milestones having been reached.

    The milestone round itself already has the smaller rate: "multiplied by 0.1 at communication rounds 61 and 96"
    (SNFL section 5.2).

    Args:
        config: Rate, milestones and decay.
        server_round: Counted from 1, as Flower does.

    >>> [round(learning_rate(TrainingConfig(), n), 6) for n in (60, 61, 95, 96)]
    [0.1, 0.01, 0.01, 0.001]
    """
    reached = sum(server_round >= milestone for milestone in config.milestones)
    return config.learning_rate * config.decay**reached


def train_locally(
    model: nn.Module,
    epochs_of_batches: Iterable[Iterable[Batch]],
    config: TrainingConfig,
    *,
    server_round: int,
    objective: Objective = cross_entropy,
) -> TrainingResult:
    """Train a model in place, by SGD with momentum and weight decay whose state starts anew.

    PyTorch's fused step is used: three times as fast on one CPU thread as the looped and the foreach ones, and equal to
    them within the last bit.

    Args:
        model: Left in training mode. Frozen parameters stay as they are.
        epochs_of_batches: One iterable of batches per epoch, on the model's device.
        config: Rate and schedule, momentum and weight decay. The number of epochs is that of ``epochs_of_batches``.
        server_round: Counted from 1; decides the learning rate.
        objective: Mean loss of a batch.

    Raises:
        TrainingDivergedError: At the end of the first epoch with a loss that isn't finite.
        ValueError: If there is no epoch, or an epoch has no batch.
    """
    rate = learning_rate(config, server_round)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=rate, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
    )
    model.train()
    result, steps = None, 0
    for epoch, batches in enumerate(epochs_of_batches, start=1):
        losses, sizes = [], []
        for inputs, labels in batches:
            optimizer.zero_grad()
            loss = objective(model, inputs, labels)
            loss.backward()  # type: ignore[no-untyped-call]  # PyTorch leaves it unannotated
            optimizer.step()
            losses.append(loss.detach())
            sizes.append(len(labels))
        where = f"round {server_round}, epoch {epoch}"
        steps += len(sizes)
        result = TrainingResult(loss=_mean_loss(losses, sizes, where, rate), samples=sum(sizes), steps=steps)
    if result is None:
        raise ValueError("local training without an epoch; give at least one iterable of batches")
    return result


def _mean_loss(losses: list[Tensor], sizes: list[int], where: str, rate: float) -> float:
    """Average an epoch's losses by batch size, reading them from the device once."""
    if not losses:
        raise ValueError(f"{where}: no batch to train on; the client has no samples")
    values = torch.stack(losses).tolist()
    for step, value in enumerate(values, start=1):
        if not math.isfinite(value):
            raise TrainingDivergedError(
                f"{where}, step {step}: the loss is {value} at learning rate {rate:g}; "
                "lower training.learning_rate or training.momentum"
            )
    return math.fsum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)
