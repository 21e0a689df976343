"""DP-SGD: gradients of samples, clipped and noised (Abadi et al., "Deep learning with differential privacy", CCS 2016).

Gradients of single samples are ``torch.func``'s, ``vmap(grad)``: Opacus' hooks take the first axis of what a layer is
called with for the samples, and a layer of a spiking network is called with all time steps of all samples at once.
``tests/snnfl/training/test_private.py`` has Opacus as the oracle of ordinary networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from snnfl.config import TrainingConfig
from snnfl.training.local import TrainingDivergedError, TrainingResult, check_weights, learning_rate
from snnfl.training.objectives import Batch, Objective
from snnfl.training.optimisers import optimiser_of

TOGETHER = 64
"""Samples whose gradients are in memory at once."""


@dataclass(frozen=True, kw_only=True)
class GaussianGradients:
    """How a step's gradient is protected: ``(sum of g_i min(1, C/|g_i|) + N(0, (z C)^2)) / B``.

    Attributes:
        norm: ``C``, of a sample's gradient over all parameters.
        noise: ``z``.
        expected: ``B``, the samples that a step is expected to draw; how many it drew would tell.
        normal: Draws standard normal numbers.
    """

    norm: float
    noise: float
    expected: float
    normal: Callable[[int], NDArray[np.float64]]


class _Loss(nn.Module):
    """The objective of one sample as a module, so that its model's parameters can be arguments."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self._objective = objective

    def forward(self, inputs: Tensor, label: Tensor) -> Tensor:
        return self._objective(self.model, inputs.unsqueeze(0), label.unsqueeze(0))


def sample_gradients(
    model: nn.Module, inputs: Tensor, labels: Tensor, objective: Objective
) -> tuple[dict[str, Tensor], Tensor]:
    """Return each sample's gradient of the objective, and its value.

    Args:
        model: Whose samples don't act on each other, so without batch normalisation.
        inputs: Shape ``[N, *input_shape]``.
        labels: Shape ``[N]``.
        objective: Of a batch; here each sample is a batch of its own.

    Returns:
        By parameter, shape ``[N, *shape]``; and the losses ``[N]``.
    """
    loss = _Loss(model, objective)
    trained = {name: p.detach() for name, p in loss.named_parameters() if p.requires_grad}

    def of_one(parameters: dict[str, Tensor], sample: Tensor, label: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(loss, parameters, (sample, label))
        return found

    one = torch.func.grad_and_value(of_one)
    differentiate = torch.func.vmap(one, in_dims=(None, 0, 0), randomness="different")  # spikes of its own
    gradients, values = differentiate(trained, inputs, labels)
    return {name.removeprefix("model."): gradient for name, gradient in gradients.items()}, values.detach()


def private_gradient(
    model: nn.Module, inputs: Tensor, labels: Tensor, objective: Objective, how: GaussianGradients
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the protected gradient of a batch, which may be empty, by parameter; and the losses of its samples."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in trained.items()}
    losses: list[Tensor] = []
    for some, of_some in zip(torch.split(inputs, TOGETHER), torch.split(labels, TOGETHER), strict=True):
        if not len(some):
            continue
        gradients, values = sample_gradients(model, some, of_some, objective)
        lengths = torch.stack([g.flatten(1).double().square().sum(1) for g in gradients.values()]).sum(0).sqrt()
        factors = (how.norm / lengths.clamp(min=1e-300)).clamp(max=1.0).to(some.dtype)
        for name, gradient in gradients.items():
            total[name] += torch.tensordot(factors, gradient, dims=1)
        losses.append(values)
    for name, gradient in total.items():
        noise = torch.from_numpy(how.normal(gradient.numel())).view(gradient.shape)
        total[name] = (gradient + how.noise * how.norm * noise.to(gradient)) / how.expected
    return total, torch.cat(losses) if losses else labels.new_empty(0, dtype=torch.float32)


def train_privately(
    model: nn.Module,
    steps: Iterable[Batch],
    config: TrainingConfig,
    how: GaussianGradients,
    *,
    server_round: int,
    objective: Objective,
    samples: int,
) -> TrainingResult:
    """Train a model in place by DP-SGD, or another optimiser of the same gradients.

    Args:
        model: Left in training mode.
        steps: A batch for each step, its samples drawn independently of each other; it may be empty.
        config: The optimiser, rate and schedule.
        how: Clipping and noise.
        server_round: Counted from 1; decides the learning rate.
        objective: Of a sample.
        samples: Of the client, which is what the result says of them.

    Raises:
        TrainingDivergedError: If a weight is beyond any that makes sense at the end.
    """
    rate = learning_rate(config, server_round)
    named = dict(model.named_parameters())
    optimiser = optimiser_of(named.values(), rate, config)
    model.train()
    losses, count = list[Tensor](), 0
    for inputs, labels in steps:
        gradients, values = private_gradient(model, inputs, labels, objective, how)
        for name, gradient in gradients.items():
            named[name].grad = gradient
        optimiser.step()
        losses.append(values)
        count += 1
    check_weights(model, [*named.values(), *model.buffers()], f"round {server_round}", rate)
    seen = torch.cat(losses)
    loss = float(seen.double().mean()) if len(seen) else 0.0
    if not np.isfinite(loss):
        raise TrainingDivergedError(f"training diverged in round {server_round}: the loss is {loss:g}")
    return TrainingResult(loss=loss, samples=samples, steps=count)
