"""Local training by stochastic gradient descent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from snnfl.config import TrainingConfig
from snnfl.training.normalisation import precise_batch_norm
from snnfl.training.objectives import Batch, Objective, cross_entropy

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


class FusedSGD:
    """``torch.optim.SGD(fused=True)`` to the bit, for one client and without what surrounds its arithmetic.

    PyTorch's fused step is three times as fast on one CPU thread as the looped and the foreach ones, and equal to them
    within the last bit. The optimiser around it profiles, looks for hooks, regroups parameters and keeps a state that
    could be saved: a tenth of a step of LeNet-5, which calling PyTorch's functional form of it saves.

    Args:
        parameters: Those that have a gradient at the first step are those that move.
        rate: Learning rate.
        config: Momentum and weight decay.
    """

    def __init__(self, parameters: Iterable[Tensor], rate: float, config: TrainingConfig) -> None:
        self._parameters = list(parameters)
        self._velocities: list[Tensor | None] = []
        self._rate, self._config = rate, config
        self._forget_gradients()  # of whoever used the model before

    @torch.no_grad()
    def step(self) -> None:
        """Follow the gradients that lie in the parameters, and take them out."""
        if not self._velocities:
            self._parameters = [parameter for parameter in self._parameters if parameter.grad is not None]
            self._velocities = [None] * len(self._parameters)
        sgd(
            self._parameters,
            [parameter.grad for parameter in self._parameters],  # type: ignore[misc]  # it would refuse None
            self._velocities,
            lr=self._rate,
            momentum=self._config.momentum,
            weight_decay=self._config.weight_decay,
            dampening=0,
            nesterov=False,
            maximize=False,
            fused=True,
        )
        self._forget_gradients()

    def _forget_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


def train_locally(
    model: nn.Module,
    epochs_of_batches: Iterable[Iterable[Batch]],
    config: TrainingConfig,
    *,
    server_round: int,
    objective: Objective = cross_entropy,
) -> TrainingResult:
    """Train a model in place, by SGD with momentum and weight decay whose state starts anew.

    Args:
        model: Left in training mode. Frozen parameters stay as they are.
        epochs_of_batches: One iterable of batches per epoch, on the model's device.
        config: Rate and schedule, momentum and weight decay. The number of epochs is that of ``epochs_of_batches``.
        server_round: Counted from 1; decides the learning rate.
        objective: Mean loss of a batch.

    Raises:
        TrainingDivergedError: At the end of the first epoch with a loss that isn't finite or beyond
            :data:`MAXIMUM_VALUE`, or of the last one if a weight or statistic is.
        ValueError: If there is no epoch, or an epoch has no batch.
    """
    rate = learning_rate(config, server_round)
    parameters: list[Tensor] = list(model.parameters())
    optimizer = FusedSGD(parameters, rate, config)
    if not all(module.training for module in model.modules()):  # to set them all anyway takes four times as long
        model.train()
    result, steps = None, 0
    with precise_batch_norm(model):
        for epoch, batches in enumerate(epochs_of_batches, start=1):
            losses, sizes = [], []
            for inputs, labels in batches:
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
    _check_weights(model, [*parameters, *model.buffers()], f"round {server_round}", rate)
    return result


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
def _check_weights(model: nn.Module, state: Sequence[Tensor], where: str, rate: float) -> None:
    """Look at what the last step has made: no loss tells it any more."""
    arrays = [array for array in state if array.is_floating_point()]
    norms = torch.stack(torch._foreach_norm(arrays)).tolist()
    if all(norm <= MAXIMUM_VALUE for norm in norms):
        return
    named = (*model.named_parameters(), *model.named_buffers())
    names = [name for name, array in named if array.is_floating_point()]
    name, norm = next(pair for pair in zip(names, norms, strict=True) if not pair[1] <= MAXIMUM_VALUE)
    raise _diverged(f"{where}: after its last step the norm of {name} is {norm:g}", rate)


def _diverged(what: str, rate: float) -> TrainingDivergedError:
    return TrainingDivergedError(
        f"training diverged in {what} at learning rate {rate:g}; lower training.learning_rate or training.momentum"
    )
