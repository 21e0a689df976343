"""A neuron: its parameters, its state, and one time step as a pure function of state and current.

======  =====================================  =======================================================
charge  ``u(t) = leak * v(t-1) + I(t)``        without a leak: integrate-and-fire
fire    ``s(t) = V_th spike(u(t), V_th)``      1 where the neuron fires, else 0; a spike is worth ``V_th``
reset   ``v(t) = reset(u(t), s(t), V_th)``     what a spike leaves on the membrane
======  =====================================  =======================================================

Without a leak and with reset by subtraction this is SNFL equation 5 (Rueckauer et al. 2016), the neuron of converted
networks. :mod:`snnfl.neurons.kernels` runs many steps at once, and computes what :meth:`Neuron.step` does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

SpikeFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``(charged potential, threshold) -> 1 where the neuron fires, else 0``; its derivative is a surrogate's, or zero."""

Reset: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(charged potential, spikes worth V_th, threshold) -> potential after the spike``."""


class NeuronState(NamedTuple):
    """What a layer of neurons carries from one step to the next: membrane potentials, ``[N, C, *space]``."""

    potential: Tensor


def at_threshold(charged: Tensor, threshold: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Fire where ``u >= V_th``. The derivative is the true one, zero.

    Returns:
        Truth values, or ``out``, which is written in its own type: for numbers that takes a sixth of the time.
    """
    return torch.ge(charged, threshold, out=out)


def triangular(charged: Tensor, threshold: Tensor) -> Tensor:
    """Fire where ``u >= V_th``, with the derivative ``max(0, 1 - |u - V_th| / V_th) / V_th`` by ``u``.

    The derivative is that of PrivateSNN, eq. 5 (Kim et al. 2022). It is the exact one of a smooth step that is added
    and taken away again, so that spikes can be differentiated twice.
    """
    distance = (charged / threshold - 1).clamp(-1, 1)
    smooth = torch.where(distance < 0, (1 + distance) ** 2 / 2, 1 - (1 - distance) ** 2 / 2)
    return at_threshold(charged, threshold).to(charged.dtype) + (smooth - smooth.detach())


def by_subtraction(charged: Tensor, spikes: Tensor, threshold: Tensor) -> Tensor:
    """Take off what the spike is worth, and keep what lies above the threshold: the soft reset."""
    return charged - spikes


def to_zero(charged: Tensor, spikes: Tensor, threshold: Tensor) -> Tensor:
    """Forget the potential of a neuron that fired: the hard reset."""
    return charged - charged * (spikes / threshold)


@dataclass(frozen=True, kw_only=True)
class Neuron:
    """The neurons of one layer.

    Attributes:
        threshold: ``V_th > 0``, shape ``[1]`` (one for the layer) or ``[C]`` (one per channel).
        leak: Part of the potential that is left after a step; ``None``: all of it.
        spike: Where a neuron fires, and what derivative that has.
        reset: What is left of the potential after a spike.
    """

    threshold: Tensor
    leak: Tensor | float | None = None
    spike: SpikeFunction = at_threshold
    reset: Reset = by_subtraction

    def step(self, state: NeuronState, current: Tensor) -> tuple[NeuronState, Tensor]:
        """Take one time step, without changing what is given.

        Args:
            state: Before the step.
            current: Input current, ``[N, C, *space]``.

        Returns:
            The state after the step, and the spikes, each worth the threshold, of the current's shape.
        """
        threshold = broadcast(self.threshold, current.shape)
        kept = state.potential if self.leak is None else self.leak * state.potential
        charged = current + kept
        spikes = self.spike(charged, threshold) * threshold
        return NeuronState(self.reset(charged, spikes, threshold)), spikes

    @property
    def integrates_and_fires(self) -> bool:
        """Whether nothing leaks, a spike is fired at the threshold, and is subtracted: what most kernels compute."""
        return self.leak is None and self.spike is at_threshold and self.reset is by_subtraction


def broadcast(per_channel: Tensor, shape: torch.Size) -> Tensor:
    """Give ``[1]`` or ``[C]`` trailing axes, so that it broadcasts over ``shape = [N, C, *space]``."""
    return per_channel.view(-1, *[1] * (len(shape) - 2))
