"""Optimisers for one client's local training, by PyTorch's fused steps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnfl.config import TrainingConfig
from snnfl.training import kernel_adam

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
"""PyTorch's constants of Adam."""


class Optimiser(ABC):
    """An optimiser of ``torch.optim`` with ``fused=True`` to the bit, without what surrounds its arithmetic.

    PyTorch's fused step is three times as fast on one CPU thread as the looped and the foreach ones, and equal to them
    within the last bit. The optimiser around it profiles, looks for hooks, regroups parameters and keeps a state that
    could be saved, and its functional form sorts them by device and type, which are all the same here: a tenth of a
    step of LeNet-5, which calling PyTorch's fused operation saves.

    Args:
        parameters: Those that have a gradient at the first step are those that move.
        rate: Learning rate.
        config: The other options of the optimiser.
    """

    def __init__(self, parameters: Iterable[Tensor], rate: float, config: TrainingConfig) -> None:
        self._parameters = list(parameters)
        self._rate, self._config = rate, config
        self._began = False
        self._forget_gradients()  # of whoever used the model before

    @torch.no_grad()
    def step(self) -> None:
        """Follow the gradients that lie in the parameters, and take them out."""
        if not self._began:
            self._parameters = [parameter for parameter in self._parameters if parameter.grad is not None]
            self._begin()
            self._began = True
        if self._parameters:
            self._move([parameter.grad for parameter in self._parameters])  # type: ignore[misc]  # none is None
        self._forget_gradients()

    @abstractmethod
    def _begin(self) -> None:
        """Make the state of the parameters that move."""

    @abstractmethod
    def _move(self, gradients: list[Tensor]) -> None:
        """Change the parameters in place."""

    def _forget_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


class FusedSGD(Optimiser):
    """``torch.optim.SGD`` with momentum and weight decay."""

    def _begin(self) -> None:
        self._velocities: list[Tensor] = []

    def _move(self, gradients: list[Tensor]) -> None:
        first = self._config.momentum != 0 and not self._velocities
        if first:
            self._velocities = [torch.empty_like(gradient) for gradient in gradients]
        torch._fused_sgd_(
            self._parameters,
            gradients,
            self._velocities,
            lr=self._rate,
            momentum=self._config.momentum,
            weight_decay=self._config.weight_decay,
            dampening=0,
            nesterov=False,
            maximize=False,
            is_first_step=first,
        )


class AdamState(NamedTuple):
    """Of each parameter: mean and mean square of its gradients, and the steps taken."""

    means: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]

    @classmethod
    def of(cls, parameters: Sequence[Tensor]) -> AdamState:
        """Return the state before the first step."""
        means, squares = ([torch.zeros_like(parameter) for parameter in parameters] for _ in range(2))
        return cls(
            means, squares, [torch.zeros((), dtype=torch.float32, device=parameter.device) for parameter in parameters]
        )


@torch.no_grad()
def adam_step(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    state: AdamState,
    rate: float,
    *,
    weight_decay: float = 0.0,
    decoupled: bool = False,
) -> None:
    """Take a step of ``torch.optim.Adam`` (Kingma & Ba 2015, PyTorch's constants): parameters and state, in place.

    PyTorch's fused step goes through memory, whatever the layout: a gradient in another one than its parameter's, as a
    convolution may give, would move other weights than its own. So each is laid out as its parameter.

    Args:
        parameters: To move.
        gradients: Of each.
        state: From :meth:`AdamState.of`.
        rate: Learning rate.
        weight_decay: Of the parameters.
        decoupled: Whether that is AdamW's (Loshchilov & Hutter 2019), beside the gradient's step.
    """
    torch._foreach_add_(state.steps, 1)
    move = torch._fused_adamw_ if decoupled else torch._fused_adam_
    move(
        list(parameters),
        [_laid_out(*pair) for pair in zip(gradients, parameters, strict=True)],
        state.means,
        state.squares,
        [],
        state.steps,
        amsgrad=False,
        lr=rate,
        beta1=BETA1,
        beta2=BETA2,
        weight_decay=weight_decay,
        eps=EPS,
        maximize=False,
    )


def _laid_out(gradient: Tensor, parameter: Tensor) -> Tensor:
    return gradient if gradient.stride() == parameter.stride() else torch.empty_like(parameter).copy_(gradient)


def first_adam_step(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor], rate: float
) -> list[NDArray[Any]] | None:
    """Take the first :func:`adam_step` without weight decay, to the bit, in half of its memory traffic.

    It neither writes nor reads a state of zeros. A client with few batches takes few other steps.

    Returns:
        What :func:`behind_first_step` makes a state of; ``None``, and nothing has moved, where parameters aren't on a
        CPU or don't fill a piece of memory each.
    """
    if not all(map(_fills_memory, parameters)):
        return None
    states, constants = [], (1 - BETA1, 1 - BETA2, rate / (1 - BETA1), math.sqrt(1 - BETA2), EPS)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        moved, along = _memory(parameter.detach()), _memory(_laid_out(gradient, parameter))
        states.append(np.empty((2, len(moved)), moved.dtype))
        kernel_adam.begin(moved, along, states[-1], *map(moved.dtype.type, constants))
    return states


def behind_first_step(parameters: Sequence[Tensor], states: Sequence[NDArray[Any]]) -> AdamState:
    """Return the state behind :func:`first_adam_step` for further steps."""
    means, squares = (
        [
            torch.from_numpy(state[kind]).as_strided(parameter.shape, parameter.stride())
            for parameter, state in zip(parameters, states, strict=True)
        ]
        for kind in range(2)
    )
    return AdamState(means, squares, [torch.ones((), dtype=torch.float32) for _ in parameters])


def _fills_memory(value: Tensor) -> bool:
    fits = value.is_cpu and value.dtype in (torch.float32, torch.float64)
    return fits and (value.is_contiguous() or value.is_contiguous(memory_format=torch.channels_last))


def _memory(value: Tensor) -> NDArray[Any]:
    """Return a tensor's numbers as they lie in memory."""
    flat: NDArray[Any] = value.as_strided((value.numel(),), (1,)).numpy()
    return flat


class FusedAdam(Optimiser):
    """``torch.optim.Adam`` or ``AdamW``, by :func:`adam_step`."""

    def _begin(self) -> None:
        self._state: AdamState | None = None
        self._behind: list[NDArray[Any]] | None = None

    def _move(self, gradients: list[Tensor]) -> None:
        decay, decoupled = self._config.weight_decay, self._config.optimizer == "adamw"
        if self._state is None and self._behind is None and decay == 0:
            self._behind = first_adam_step(self._parameters, gradients, self._rate)
            if self._behind is not None:
                return
        if self._state is None and self._behind is not None:
            self._state, self._behind = behind_first_step(self._parameters, self._behind), None
        if self._state is None:
            self._state = AdamState.of(self._parameters)
        adam_step(self._parameters, gradients, self._state, self._rate, weight_decay=decay, decoupled=decoupled)


def optimiser_of(parameters: Iterable[Tensor], rate: float, config: TrainingConfig) -> Optimiser:
    """Return the optimiser of a configuration, whose state is empty."""
    kind = FusedSGD if config.optimizer == "sgd" else FusedAdam
    return kind(parameters, rate, config)
