"""A neuron: its parameters, its state, and one time step as a pure function of state and current.

========  ========================================  ========================================================
charge    ``u(t) = leak * v(t-1) + I(t)``           without a leak: integrate-and-fire
fire      ``s(t) = spike(u(t), V_th)``              1 where the neuron fires, else 0
reset     ``v(t) = reset(u(t), s(t), V_th)``        what a spike leaves on the membrane
========  ========================================  ========================================================

Without a leak, with reset by subtraction and spikes that are worth ``V_th`` this is SNFL equation 5 (Rueckauer et al.
2016), the neuron of converted networks. Networks that are trained as spiking ones have spikes worth 1, a leak and a
spike function with a surrogate derivative (:mod:`snnfl.neurons.surrogates`); where ``delayed``, the reset comes with
the next step and carries no gradient, as in snnTorch:

=====================  ====================================================
by subtraction         ``u(t) = leak * u(t-1) + I(t) - V_th s(t-1)``
to zero                ``u(t) = leak * u(t-1) (1 - s(t-1)) + I(t)``
=====================  ====================================================

Neurons of converted networks that have few steps may fire several times in one (``burst``), and take spikes back that
they fired (``signed``), as far as there are any: a total is never negative, and with ``two_sided`` never more than one
per step so far. So a total is what it would be had all the charge come evenly:

=====================  =====================================================================================
up to ``burst`` times  while ``u >= V_th``, and ``n(t) < t`` if two-sided: ``u <- u - V_th``, ``s <- s + 1``
likewise, if signed    while ``u < 0`` and ``n(t) > 0``: ``u <- u + V_th``, ``s <- s - 1``
=====================  =====================================================================================

Bursts: Li & Zeng, "Efficient and accurate conversion of spiking neural network with burst spikes", IJCAI 2022. Signed
spikes with a memory of what was fired: Wang et al., "Signed neuron with memory: towards simple, accurate and
high-efficient ANN-SNN conversion", IJCAI 2022.

:mod:`snnfl.neurons.kernels` and :mod:`snnfl.neurons.unrolled` run many steps at once, and compute what
:meth:`Neuron.step` does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

SpikeFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``(charged potential, threshold) -> 1 where the neuron fires, else 0``; its derivative is a surrogate's, or zero."""

Store: TypeAlias = Callable[[Tensor], Tensor]
"""``charged potential -> what the membrane keeps of it``, elementwise."""

Reset: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(charged potential, 1 where it fired, threshold) -> potential after the spike``."""


class NeuronState(NamedTuple):
    """What a layer of neurons carries from one step to the next, each ``[N, C, *space]``.

    Attributes:
        potential: Membrane potentials.
        adaptation: What adaptive neurons add to their thresholds, before its scale; ``None`` for others.
        spikes: Of the last step, which recurrent neurons receive; ``None`` for others.
        total: Spikes so far less those taken back, int32, of neurons that count them; ``None`` for others.
        time: Steps so far, which only two-sided neurons look at.
    """

    potential: Tensor
    adaptation: Tensor | None = None
    spikes: Tensor | None = None
    total: Tensor | None = None
    time: int = 0


class Adaptation(NamedTuple):
    """Thresholds that rise with a neuron's own spikes: ``V_th(t) = V_th + scale a(t)``, ``a(t+1) = decay a(t) + s(t)``.

    Source: Bellec et al., "A solution to the learning dilemma for recurrent networks of spiking neurons", Nature
    Communications 2020, eq. 7 and 8. A spike takes the threshold without its adaptation off the membrane.
    """

    decay: Tensor | float
    scale: Tensor | float


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


def by_subtraction(charged: Tensor, fired: Tensor, threshold: Tensor) -> Tensor:
    """Take off a threshold for a spike, and keep what lies above it: the soft reset."""
    return charged - fired * threshold


def to_zero(charged: Tensor, fired: Tensor, threshold: Tensor) -> Tensor:
    """Forget the potential of a neuron that fired: the hard reset."""
    return charged - charged * fired


def without_reset(charged: Tensor, fired: Tensor, threshold: Tensor) -> Tensor:
    """Keep the potential as it is."""
    return charged


@dataclass(frozen=True, kw_only=True)
class Neuron:
    """The neurons of one layer.

    Attributes:
        threshold: ``V_th > 0``, shape ``[1]`` (one for the layer) or ``[C]`` (one per channel).
        leak: Part of the potential that is left after a step; ``None``: all of it.
        spike: Where a neuron fires, and what derivative that has.
        reset: What is left of the potential after a spike.
        delayed: Whether the reset comes a step late and without a gradient, as in snnTorch.
        detached: Whether a reset that isn't delayed passes no gradient on from its spikes.
        unit_spikes: Whether a spike is worth 1, and not the threshold.
        adaptation: Of adaptive neurons.
        recurrent: What a layer's spikes, ``[N, C, *space]``, add to its own current at the next step.
        store: What the membrane keeps of a charged potential before the neuron fires or doesn't, such as the nearest of
            a few levels; ``None``: all of it.
        signed: Whether a neuron whose potential is negative takes back a spike, if it has fired any.
        burst: How many spikes a neuron may fire, or take back, in one step.
        two_sided: Whether a neuron has never fired more spikes than there were steps.
    """

    threshold: Tensor
    leak: Tensor | float | None = None
    spike: SpikeFunction = at_threshold
    reset: Reset = by_subtraction
    delayed: bool = False
    detached: bool = False
    unit_spikes: bool = False
    adaptation: Adaptation | None = None
    recurrent: Callable[[Tensor], Tensor] | None = None
    store: Store | None = None
    signed: bool = False
    burst: int = 1
    two_sided: bool = False

    def at_rest(self, like: Tensor) -> NeuronState:
        """Return the state before the first step: nothing charged, nothing fired.

        Args:
            like: A current of one step, ``[N, C, *space]``.
        """
        zero = torch.zeros_like(like)
        return NeuronState(
            zero,
            None if self.adaptation is None else zero,
            None if self.recurrent is None else zero.clone(),
            self.no_spikes(zero),
        )

    def no_spikes(self, potential: Tensor) -> Tensor | None:
        """Return the count of neurons with these potentials that haven't fired yet; ``None`` if they count none."""
        return torch.zeros_like(potential, dtype=torch.int32) if self.counts else None

    def step(self, state: NeuronState, current: Tensor) -> tuple[NeuronState, Tensor]:
        """Take one time step, without changing what is given.

        Args:
            state: Before the step.
            current: Input current, ``[N, C, *space]``.

        Returns:
            The state after the step, and the spikes, each worth the threshold or 1, of the current's shape.
        """
        after, spikes, _ = self.advance(state, current)
        return after, spikes

    def advance(self, state: NeuronState, current: Tensor) -> tuple[NeuronState, Tensor, Tensor]:
        """Take one time step as :meth:`step`, and return the charged potentials, too: those that fired or didn't."""
        if self.counts:
            return self._advance_counting(state, current)
        threshold = broadcast(self.threshold, current.shape)
        level = threshold
        if self.adaptation is not None and state.adaptation is not None:
            level = threshold + self.adaptation.scale * state.adaptation
        if self.recurrent is not None and state.spikes is not None:
            current = current + self.recurrent(state.spikes)
        charged = self._charge(state.potential, current, threshold, level)
        if self.store is not None:
            charged = self.store(charged)
        fired = self.spike(charged, level)
        potential = charged
        if not self.delayed:
            potential = self.reset(charged, fired.detach() if self.detached else fired, threshold)
        adaptation = state.adaptation
        if self.adaptation is not None and adaptation is not None:
            adaptation = self.adaptation.decay * adaptation + fired
        after = NeuronState(potential, adaptation, None if self.recurrent is None else fired)
        return after, fired.to(charged.dtype) if self.unit_spikes else fired * threshold, charged

    def _advance_counting(self, state: NeuronState, current: Tensor) -> tuple[NeuronState, Tensor, Tensor]:
        """Take one time step of neurons that fire several times, or take spikes back; what is counted has no gradient.

        The tests are ``u >= V_th`` and ``not u + V_th >= V_th``, so that one spike function serves for both.
        """
        threshold = broadcast(self.threshold, current.shape)
        charged = potential = state.potential + current
        count = torch.zeros_like(potential, dtype=torch.int32) if state.total is None else state.total
        spikes = torch.zeros_like(potential)
        for _ in range(self.burst):
            fired = self.spike(potential, threshold).to(potential.dtype)
            if self.two_sided:
                fired = fired * (count + spikes.detach() < state.time + 1)
            spikes, potential = spikes + fired, potential - fired * threshold
        for _ in range(self.burst if self.signed else 0):
            back = (1 - self.spike(potential + threshold, threshold).to(potential.dtype)) * (
                count + spikes.detach() > 0
            )
            spikes, potential = spikes - back, torch.where(back != 0, potential + back * threshold, potential)
        after = NeuronState(potential, total=count + spikes.detach().to(torch.int32), time=state.time + 1)
        return after, spikes * threshold, charged

    def _charge(self, before: Tensor, current: Tensor, threshold: Tensor, level: Tensor) -> Tensor:
        if not self.delayed or self.reset is without_reset:
            return current + (before if self.leak is None else self.leak * before)
        late = self.spike(before, level).detach()
        if self.reset is by_subtraction:
            return current + (before if self.leak is None else self.leak * before) - late * threshold
        before = self.reset(before, late, threshold)
        return current + (before if self.leak is None else self.leak * before)

    @property
    def integrates_and_fires(self) -> bool:
        """Whether it is the neuron of converted networks, which all of :mod:`snnfl.neurons.kernels` compute."""
        plain = self.leak is None and self.spike is at_threshold and self.reset is by_subtraction
        special = self.delayed or self.unit_spikes or self.adaptation or self.recurrent or self.store
        return plain and not (special or self.counts)

    @property
    def counts(self) -> bool:
        """Whether its spikes in a step are any number, and it counts them."""
        return self.signed or self.burst > 1

    @property
    def integrates_and_counts(self) -> bool:
        """Whether it is a neuron of converted networks for few steps, which the kernels compute, too."""
        return self.counts and self.spike is at_threshold


def broadcast(per_channel: Tensor, shape: torch.Size) -> Tensor:
    """Give ``[1]`` or ``[C]`` trailing axes, so that it broadcasts over ``shape = [N, C, *space]``."""
    return per_channel.view(-1, *[1] * (len(shape) - 2))
