"""Local training: an optimiser over batches, epoch after epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snnfl.batching import batch_sizes
from snnfl.config import TrainingConfig
from snnfl.training.flattening import laid_out_gradients
from snnfl.training.head import head_at_once
from snnfl.training.normalisation import precise_batch_norm
from snnfl.training.objectives import Batch, Objective, cross_entropy
from snnfl.training.optimisers import optimiser_of
from snnfl.training.pooling import pooled_first

MAXIMUM_VALUE = 1e12
"""Beyond any weight, statistic or loss of a network that trains. Larger values, though finite, would overflow when they
are divided by a small scale, squared or summed."""


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
    """The loss, or a weight, is no longer a number, or beyond any that makes sense."""


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
    """Train a model in place, by an optimiser whose state starts anew.

    Args:
        model: Left in training mode. Frozen parameters stay as they are.
        epochs_of_batches: One iterable of batches per epoch, on the model's device.
        config: The optimiser, rate and schedule, clipping and micro-batches. The number of epochs is that of
            ``epochs_of_batches``.
        server_round: Counted from 1; decides the learning rate.
        objective: Mean loss of a batch.

    Raises:
        TrainingDivergedError: At the end of the first epoch with a loss that isn't finite or beyond
            :data:`MAXIMUM_VALUE`, or of the last one if a weight or statistic is.
        ValueError: If there is no epoch, or an epoch has no batch.
    """
    rate = learning_rate(config, server_round)
    modules = list(model.modules())
    parameters = _each(module._parameters for module in modules)
    optimiser = optimiser_of(parameters, rate, config)
    if not all(module.training for module in modules):  # to set them all anyway takes four times as long
        model.train()
    result, steps = None, 0
    with precise_batch_norm(modules), head_at_once(modules), laid_out_gradients(modules), pooled_first(modules):
        for epoch, batches in enumerate(epochs_of_batches, start=1):
            losses, sizes = [], []
            for inputs, labels in batches:
                losses.append(_differentiate(model, inputs, labels, objective, config.micro_batch))
                if config.clip_norm is not None:
                    nn.utils.clip_grad_norm_(parameters, config.clip_norm)
                optimiser.step()
                sizes.append(len(labels))
            where = f"round {server_round}, epoch {epoch}"
            steps += len(sizes)
            result = TrainingResult(loss=_mean_loss(losses, sizes, where, rate), samples=sum(sizes), steps=steps)
    if result is None:
        raise ValueError("local training without an epoch; give at least one iterable of batches")
    buffers = _each(module._buffers for module in modules)
    check_weights(model, [*parameters, *buffers], f"round {server_round}", rate)
    return result


def _each(arrays: Iterable[Mapping[str, Tensor | None]]) -> list[Tensor]:
    """Return the arrays of all layers, each once: as ``model.parameters()``, in a fifth of its time."""
    return list({array: None for named in arrays for array in named.values() if array is not None})


def _differentiate(
    model: nn.Module, inputs: Tensor, labels: Tensor, objective: Objective, micro_batch: int | None
) -> Tensor:
    """Add a batch's gradients to the parameters', part after part, and return its mean loss."""
    if micro_batch is None or len(labels) <= micro_batch:
        loss = objective(model, inputs, labels)
        loss.backward()  # type: ignore[no-untyped-call]  # PyTorch leaves it unannotated
        return loss.detach()
    losses, sizes = [], batch_sizes(len(labels), micro_batch)  # batch normalisation cannot train on one sample
    for part, of_part in zip(torch.split(inputs, sizes), torch.split(labels, sizes), strict=True):
        loss = objective(model, part, of_part) * (len(of_part) / len(labels))
        loss.backward()  # type: ignore[no-untyped-call]  # PyTorch leaves it unannotated
        losses.append(loss.detach())
    return torch.stack(losses).sum()


def _mean_loss(losses: list[Tensor], sizes: list[int], where: str, rate: float) -> float:
    """Average an epoch's losses by batch size, reading them from the device once."""
    if not losses:
        raise ValueError(f"{where}: no batch to train on; the client has no samples")
    values = torch.stack(losses).tolist()
    for step, value in enumerate(values, start=1):
        if not abs(value) <= MAXIMUM_VALUE:
            raise _diverged(f"{where}, step {step}: the loss is {value:g}", rate)
    return math.fsum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)


@torch.no_grad()
def check_weights(model: nn.Module, state: Sequence[Tensor], where: str, rate: float) -> None:
    """Look at what the last step has made: no loss tells it any more."""
    arrays = [array for array in state if array.is_floating_point()]
    numbers = [array.flatten() for array in arrays]  # a product with itself takes half of the time of a norm
    if all(square <= MAXIMUM_VALUE**2 for square in torch.stack([each.dot(each) for each in numbers]).tolist()):
        return
    norms = torch.stack(torch._foreach_norm(arrays)).tolist()
    if all(norm <= MAXIMUM_VALUE for norm in norms):  # as of half precision, in which squares have no room
        return
    named = (*model.named_parameters(), *model.named_buffers())
    names = [name for name, array in named if array.is_floating_point()]
    name, norm = next(pair for pair in zip(names, norms, strict=True) if not pair[1] <= MAXIMUM_VALUE)
    raise _diverged(f"{where}: after its last step the norm of {name} is {norm:g}", rate)


def _diverged(what: str, rate: float) -> TrainingDivergedError:
    return TrainingDivergedError(
        f"training diverged in {what} at learning rate {rate:g}; lower training.learning_rate or training.momentum"
    )
