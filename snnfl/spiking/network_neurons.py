"""What the neurons of a spiking network are, where they start and what flows into them: all but their simulation."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from snnfl.config import ConversionConfig
from snnfl.neurons import Neuron, broadcast
from snnfl.spiking.correction import Correction
from snnfl.spiking.graph import Parameters, SpikingGraph
from snnfl.spiking.in_time import accumulating
from snnfl.spiking.summary import summary


@dataclass(frozen=True, repr=False)
class NetworkNeurons:
    """A spiking graph with its parameters, and how its neurons compute.

    Attributes:
        graph: The structure.
        parameters: ``<layer>.weight`` and ``<layer>.bias`` of every affine layer, ``<layer>.threshold`` (shape
            ``[1]`` or ``[C]``, positive) of every spiking one. A spiking layer may also have a ``<layer>.potential``
            (``[C]``), which is added to its membrane potential at t=0, and a ``<layer>.time_bias`` (``[T, C]``), whose
            row ``t`` is added to its current at step ``t``.
        initial_potential: Membrane potential at t=0: zero, or half a threshold, which centres the conversion error
            (Deng & Gu 2020). ``"drip"`` spreads that half evenly over a simulation, as the code of Li et al. (2021)
            does: each step adds ``V_th / 2T`` to the current, T being the ``steps`` that are asked for.
        readout: Which steps the logits are the mean of: all T, or the last ``T - T // 2``. In the first ones a deep
            layer fires on rates that have yet to settle.
        steps: Simulation length T that the network was converted for: how long it runs where nothing else is said.
        signed: Whether neurons take spikes back, :class:`~snnfl.neurons.Neuron`.
        burst: How many spikes a neuron may fire in a step.
        two_sided: Whether bursts never bring a neuron's spikes above the steps so far.
        correction: What a rehearsal of :meth:`rehearsal` steps decides before a simulation,
            :func:`~snnfl.spiking.correction.corrected_start`.
        correction_steps: Its length; ``None``: that of the simulation.
    """

    graph: SpikingGraph
    parameters: Parameters
    initial_potential: Literal["zero", "half", "drip"] = "zero"
    readout: Literal["all", "second_half"] = "all"
    steps: int | None = None
    signed: bool = False
    burst: int = 1
    two_sided: bool = False
    correction: Correction = "none"
    correction_steps: int | None = None

    @classmethod
    def configured(cls, graph: SpikingGraph, parameters: Parameters, config: ConversionConfig) -> Self:
        """Return a network that is simulated as a conversion says."""
        return cls(
            graph,
            parameters,
            config.initial_potential,
            config.readout,
            config.steps,
            config.signed,
            config.burst,
            config.two_sided,
            config.correction,
            config.correction_steps,
        )

    def __repr__(self) -> str:
        options: dict[str, object] = {
            "steps": self.steps,
            "initial_potential": self.initial_potential,
            "readout": self.readout,
        }
        ordinary = {"signed": False, "burst": 1, "two_sided": False, "correction": "none", "correction_steps": None}
        options |= {name: value for name in ordinary if (value := getattr(self, name)) != ordinary[name]}
        return summary(self.graph, self.parameters, options)

    @property
    def thresholds(self) -> dict[str, Tensor]:
        """Firing thresholds by spiking layer."""
        return {node.name: self.parameters[f"{node.name}.threshold"] for node in self.graph.spikes}

    def neuron(self, layer: str) -> Neuron:
        """Return the parameters of a layer's neurons."""
        level = self.parameters[f"{layer}.threshold"]
        return Neuron(threshold=level, signed=self.signed, burst=self.burst, two_sided=self.two_sided)

    @property
    def counts(self) -> bool:
        """Whether a neuron's spikes in a step are any number."""
        return self.signed or self.burst > 1

    def rehearsal(self, steps: int) -> int:
        """Return how many steps come before a simulation of ``steps``, and cost as much."""
        if self.correction == "none":
            return 0
        return steps if self.correction_steps is None else self.correction_steps

    def rest(self, layer: str, like: Tensor) -> Tensor:
        """Return a layer's membrane potential before the first step, of the shape and layout of its current."""
        potential = broadcast(self.resting_potential(layer), like.shape)
        return torch.empty_like(like, dtype=accumulating(like)).copy_(potential)

    def resting_potential(self, layer: str) -> Tensor:
        """Return a layer's membrane potential before the first step, ``[1]`` or ``[C]``."""
        potential = self.parameters[f"{layer}.threshold"] * (0.5 if self.initial_potential == "half" else 0.0)
        calibrated = self.parameters.get(f"{layer}.potential")
        return potential if calibrated is None else potential + calibrated

    def drive(self, layer: str, start: int, stop: int, steps: int) -> Tensor | None:
        """Return what flows into a layer beside its input: drip and biases in time.

        Args:
            layer: A spiking layer.
            start: First time step.
            stop: Time step after the last.
            steps: Length of the whole simulation.

        Returns:
            Shape ``[1 or stop - start, 1 or C]``, or ``None`` for nothing.
        """
        bias = self.parameters.get(f"{layer}.time_bias")
        rows = None if bias is None else bias[start:stop]
        if self.initial_potential != "drip":
            return rows
        drip = self.parameters[f"{layer}.threshold"][None] * (0.5 / steps)
        return drip if rows is None else rows + drip

    def first_read(self, steps: int) -> int:
        """Return the first of ``steps`` steps that the logits are the mean of."""
        return steps // 2 if self.readout == "second_half" else 0

    def _length(self, steps: int | None) -> int:
        """Return how many steps to simulate."""
        length = self.steps if steps is None else steps
        if length is None:
            raise ValueError("steps=None, and the network wasn't converted for a length: say one, such as steps=32")
        return lengths(length, ())[0]

    def _check_steps(self, last: int, steps: int | None) -> None:
        """Check that the ``last`` step is defined, in a simulation of ``steps``."""
        if self.initial_potential == "drip" and steps is not None and last > steps:
            raise ValueError(
                f"{last} time steps: a drip spreads half a threshold over the steps={steps} of the simulation; give "
                f"steps={last}"
            )
        for node in self.graph.spikes:
            bias = self.parameters.get(f"{node.name}.time_bias")
            if bias is not None and len(bias) < last:
                raise ValueError(
                    f"{last} time steps: {node.name} has biases for {len(bias)}; simulate at most as many, or convert "
                    f"with calibration_steps={last}"
                )

    def _no_spikes(self, potentials: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the counts of neurons that haven't fired yet, if they count."""
        counts = {name: self.neuron(name).no_spikes(potential) for name, potential in potentials.items()}
        return {name: count for name, count in counts.items() if count is not None}

    def to(self, device: torch.device | str | None = None, *, dtype: torch.dtype | None = None) -> Self:
        """Return the network on another device or in another precision; it takes images of the same.

        In ``torch.bfloat16`` a simulation is an approximation, meant for GPUs: weights, currents and spikes have 8
        significant bits, so that some neurons fire at another step or not at all. Membrane potentials and sums over
        time stay float32. Measured: see docs/performance.md.
        """
        return replace(self, parameters={name: array.to(device, dtype) for name, array in self.parameters.items()})


def lengths(steps: int, curve: Sequence[int]) -> list[int]:
    """Sort the lengths that logits are wanted for."""
    try:
        points = sorted({operator.index(length) for length in (steps, *curve)})
    except TypeError:
        raise ValueError(f"steps={steps}, curve={curve}: give whole numbers of time steps, a curve as a list") from None
    if steps < 1:
        raise ValueError(f"steps={steps}: simulate at least 1 time step")
    if points[0] < 1:
        raise ValueError(f"curve={[*curve]}: every length must be at least 1")
    return points
