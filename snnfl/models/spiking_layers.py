"""The layers that a spiking model has beside an ordinary one: neurons in the place of ReLUs, and what is read out."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from snnfl.config import ModelConfig
from snnfl.neurons import (
    Adaptation,
    Neuron,
    Store,
    Unrolled,
    by_subtraction,
    surrogate_spike,
    to_zero,
    unroll,
    without_reset,
)
from snnfl.neurons.normalised import Normalised, spikes_of

STEPS, BETA, THRESHOLD, SURROGATE = 25, 0.95, 1.0, "fast_sigmoid"
"""Of neurons whose configuration doesn't say: Moshruba et al., section IV-A."""

FEEDS_NEURONS = "feeds_neurons"
"""Attribute of a batch normalisation that nothing but neurons read, which may then be given what isn't computed yet."""

SMALLEST_THRESHOLD = 1e-3
"""Of learned thresholds: at zero a neuron fires whatever it receives."""

ADAPTATION = Adaptation(decay=0.97, scale=1.7)
"""Of adaptive neurons: Bellec et al. 2020, whose decay is exp(-1/35) or slower and whose scale 1.7 to 1.8."""


class SpikingNeurons(nn.Module):
    """The neurons of a layer, in the place of its ReLU.

    Args:
        config: Kind of neuron, leak, threshold, reset and surrogate gradient; what is learned.
        steps: Time steps over which a constant current flows.
        features: Of the linear layer before, whose neurons receive each other's spikes; ``None`` for no recurrence.
        reads_out: Whether these are output neurons whose potentials are read out: they don't fire.

    Attributes:
        level: The configured threshold, which the structure tells where a model has no values.
        store: What membranes keep of their potentials (:attr:`snnfl.neurons.Neuron.store`).
    """

    def __init__(
        self, config: ModelConfig, *, steps: int, features: int | None = None, reads_out: bool = False
    ) -> None:
        super().__init__()
        self.steps = steps
        self.pool = 1
        self.kind = config.neuron
        self.leaks = config.neuron != "if"
        beta = torch.tensor([BETA if config.beta is None else config.beta])
        self.level = THRESHOLD if config.threshold is None else config.threshold
        threshold = torch.tensor([self.level])
        self.beta = nn.Parameter(beta) if config.learn_beta and not reads_out else beta.item()
        self.learns_threshold = bool(config.learn_threshold) and not reads_out
        self.threshold: Tensor
        if self.learns_threshold:
            self.threshold = nn.Parameter(threshold)
        else:
            self.register_buffer("threshold", threshold, persistent=False)
        self.adaptation = ADAPTATION if config.neuron == "alif" else None
        self.spike = surrogate_spike(config.surrogate or SURROGATE, slope=config.surrogate_slope)
        self.reset = {"subtract": by_subtraction, "zero": to_zero}[config.reset or "subtract"]
        self.delayed = config.reset_delay is not False
        if reads_out:
            self.reset = without_reset
        self.recurrent = nn.Linear(features, features, bias=False) if features is not None else None
        self.store: Store | None = None

    @property
    def neuron(self) -> Neuron:
        """The neurons as a pure function of state and current; a trained leak or threshold counts as clipped."""
        beta = self.beta.clamp(0, 1) if isinstance(self.beta, Tensor) else self.beta
        return Neuron(
            threshold=self.threshold.clamp_min(SMALLEST_THRESHOLD) if self.learns_threshold else self.threshold,
            leak=beta if self.leaks else None,
            spike=self.spike,
            reset=self.reset,
            delayed=self.delayed,
            unit_spikes=True,
            adaptation=self.adaptation,
            recurrent=self.recurrent,
            store=self.store,
        )

    def forward(self, current: Tensor | Normalised) -> Tensor:
        """Map currents ``[T or 1, N, C, *space]`` to spikes ``[T, N, C, *space]``, pooled where they are to be."""
        if isinstance(current, Normalised):
            steps = self.steps if len(current.values) == 1 else None
            return spikes_of(self.neuron, current, steps, pool=self.pool)
        return self.spikes(current, pool=self.pool)

    def over_time(self, current: Tensor) -> Unrolled:
        """Map currents ``[T or 1, N, C, *space]`` to spikes and potentials ``[T, N, C, *space]``, without pooling."""
        if len(current) == 1:
            return unroll(self.neuron, current[0], self.steps, potentials=True)
        return unroll(self.neuron, current, potentials=True)

    def spikes(self, current: Tensor, *, pool: int = 1) -> Tensor:
        """Map currents ``[T or 1, N, C, *space]`` to spikes ``[T, N, C, *space]``, averaged over squares of a side."""
        if len(current) == 1:
            return unroll(self.neuron, current[0], self.steps, pool=pool).spikes
        return unroll(self.neuron, current, pool=pool).spikes

    def extra_repr(self) -> str:
        """Name the kind of neuron, and its constants."""
        beta = f", beta={self.beta:g}" if isinstance(self.beta, float) and self.leaks else ""
        pool = f", then average pooling {self.pool}x{self.pool}" if self.pool > 1 else ""
        return f"{self.kind}{beta}, steps={self.steps}{pool}"


class Readout(nn.Module):
    """What the output layer's currents make of a sample: ``[T or 1, N, classes]`` to ``[N, classes]``.

    ====================  ==========================================================================================
    ``rate``              spikes of output neurons, divided by the time steps
    ``final_potential``   potentials of output neurons after the last step
    ``mean_potential``    their mean over the steps
    ``max_potential``     their maximum over the steps, class by class
    ====================  ==========================================================================================

    Output neurons whose potential is read leak like the others, but don't fire: their potential is a linear function of
    the spikes. With ``output_fires`` they fire and reset, as in the membership paper's code; potentials are then those
    before a reset.
    """

    def __init__(self, config: ModelConfig, steps: int) -> None:
        super().__init__()
        self.kind: Literal["rate", "final_potential", "mean_potential", "max_potential"]
        self.kind = config.readout or "mean_potential"
        self.fires = self.kind == "rate" or bool(config.output_fires)
        self.neurons = SpikingNeurons(config, steps=steps, reads_out=not self.fires)

    def over_time(self, currents: Tensor) -> Tensor:
        """Return the value of each step, ``[T, N, classes]``: spikes for ``rate``, else potentials."""
        steps = self.neurons.steps if len(currents) == 1 else len(currents)
        currents = currents.expand(steps, *currents.shape[1:])
        if not self.fires:
            return _combined(self._kernel(steps, currents), currents)
        spikes, potentials = unroll(self.neurons.neuron, currents, potentials=self.kind != "rate")
        return spikes if self.kind == "rate" else potentials

    def forward(self, currents: Tensor) -> Tensor:
        """Map currents ``[T or 1, N, classes]`` to ``[N, classes]``."""
        if not self.fires and self.kind in ("final_potential", "mean_potential"):
            steps = self.neurons.steps if len(currents) == 1 else len(currents)
            kernel = self._kernel(steps, currents)
            weights = kernel[-1] if self.kind == "final_potential" else kernel.mean(0)
            weights = weights.sum(0, keepdim=True) if len(currents) == 1 else weights
            return _combined(weights, currents)
        values = self.over_time(currents)
        if self.kind == "final_potential":
            return values[-1]
        return values.amax(0) if self.kind == "max_potential" else values.mean(0)

    def _kernel(self, steps: int, like: Tensor) -> Tensor:
        """Return ``K[t, s] = beta^(t-s)`` for ``s <= t``: potentials without a reset are ``K I``."""
        leak = self.neurons.neuron.leak
        times = torch.arange(steps, dtype=like.dtype, device=like.device)
        ages = times[:, None] - times
        return (1.0 if leak is None else leak) ** ages.clamp_min(0) * (ages >= 0)


def _combined(weights: Tensor, currents: Tensor) -> Tensor:
    """Add currents up over time: ``[..., T]`` by ``[T, N, classes]``."""
    found: Tensor = torch.tensordot(weights, currents, 1)
    return found
