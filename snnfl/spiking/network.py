"""A spiking network, its simulation in time and its analog twin."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.fx import GraphModule

from snnfl.neurons import Neuron, NeuronState, broadcast, scan
from snnfl.spiking.events import EventLayer, event_layers
from snnfl.spiking.graph import (
    Affine,
    LinearMap,
    MaxPool,
    Parameters,
    Spike,
    SpikingGraph,
    freed_after,
)
from snnfl.spiking.maximum import Accumulated, gated_maximum
from snnfl.spiking.values import analog_value, check_images, check_size, value_bytes

CHUNK_BYTES = 2 * 2**20
"""Size of the widest tensor of a chunk of time: a few such tensors stay in a third-level cache, which makes a third of
the speed, and glibc reuses their memory, where it maps every tensor above 32 MB anew."""

WEIGHT_BYTES = 16 * 2**20
"""Chunks grow up to this size with the largest weight, which is read anew for each chunk."""

CHUNK_STEPS = 8
"""Time steps per chunk: enough that reading and writing the membrane potential once per chunk costs little."""


@dataclass
class State:
    """What a simulation carries from one chunk of time to the next.

    Attributes:
        potentials: Membrane potentials by spiking layer.
        maxima: What max poolings remember, by name.
    """

    potentials: dict[str, Tensor] = field(default_factory=dict)
    maxima: dict[str, Accumulated] = field(default_factory=dict)


@dataclass(frozen=True)
class SpikingNetwork:
    """A spiking graph with its folded weights, biases and thresholds.

    Attributes:
        graph: The structure.
        parameters: ``<layer>.weight`` and ``<layer>.bias`` of every affine layer, ``<layer>.threshold`` (shape
            ``[1]`` or ``[C]``, positive) of every spiking one. A spiking layer may also have a ``<layer>.potential``
            (``[C]``), which is added to its membrane potential at t=0, and a ``<layer>.time_bias`` (``[T, C]``), whose
            row ``t`` is added to its current at step ``t``.
        initial_potential: Membrane potential at t=0: zero, or half a threshold, which centres the conversion error
            (Deng & Gu 2020). ``"drip"`` spreads that half evenly over a simulation, as the code of Li et al. (2021)
            does: each step adds ``V_th / 2T`` to the current, T being the ``steps`` that :meth:`simulate` is asked for.
        readout: Which steps the logits are the mean of: all T, or the last ``T - T // 2``. In the first ones a deep
            layer fires on rates that have yet to settle.
    """

    graph: SpikingGraph
    parameters: Parameters
    initial_potential: Literal["zero", "half", "drip"] = "zero"
    readout: Literal["all", "second_half"] = "all"

    @property
    def thresholds(self) -> dict[str, Tensor]:
        """Firing thresholds by spiking layer."""
        return {node.name: self.parameters[f"{node.name}.threshold"] for node in self.graph.spikes}

    def neuron(self, layer: str) -> Neuron:
        """Return the parameters of a layer's neurons."""
        return Neuron(threshold=self.parameters[f"{layer}.threshold"])

    @torch.inference_mode()
    def simulate(self, images: Tensor, *, steps: int, curve: Sequence[int] = ()) -> dict[int, Tensor]:
        """Run the network for ``steps`` time steps with the analog image as input at each one.

        Time advances in chunks; within one, a layer sees chunk x batch samples at once and the membrane potentials
        are carried to the next. Layers before the first spike are computed once, those after the last one once per
        point of the curve, on the mean of the spikes: they are linear, so this is exact.

        Args:
            images: Shape ``[N, ...]``.
            steps: Simulation length T.
            curve: Earlier lengths whose logits are wanted too. They are points of this one run: a drip is that of
                ``steps`` at all of them, so only with it do they differ from runs of their own.

        Returns:
            Logits ``[N, classes]`` for ``steps`` and every length in ``curve``, averaged over the steps that
            ``readout`` names.

        Raises:
            ValueError: If a length isn't a whole number in ``1..steps``, there are fewer biases in time than steps, or
                the images are no tensor, empty, not finite, of another type or device than the network, or don't fit.
        """
        wanted = _lengths(steps, curve)
        self._check_steps(wanted[-1])
        check_images(images, next(iter(self.parameters.values())))
        per_image = max(value_bytes(self.graph, self.parameters, images).values())
        images = in_fast_layout(images)
        weights = max((self.parameters[f"{node.name}.weight"].nbytes for node in self.graph.affines), default=0)
        block = max(1, max(CHUNK_BYTES, min(WEIGHT_BYTES, weights)) // (CHUNK_STEPS * per_image))
        layers = event_layers(self.graph, self.parameters)
        parts = [self._simulate_block(part, wanted, layers) for part in torch.split(images, block)]
        return {point: torch.cat([part[point] for part in parts]) for point in wanted}

    @torch.inference_mode()
    def analog(self, images: Tensor) -> Tensor:
        """Compute the logits of the analog twin: the same weights and biases, with ReLU in place of the neurons."""
        check_size(self.graph, images)
        values = {self.graph.input: in_fast_layout(images)}
        for node in self.graph.nodes:
            values[node.name] = analog_value(node, values, self.parameters)
            for name in self.graph.freed_after[node.name]:
                del values[name]
        return values[self.graph.output]

    def to(self, device: torch.device | str | None = None, *, dtype: torch.dtype | None = None) -> SpikingNetwork:
        """Return the network on another device or in another precision; it takes images of the same.

        In ``torch.bfloat16`` a simulation is an approximation, meant for GPUs: weights, currents and spikes have 8
        significant bits, so that some neurons fire at another step or not at all. Membrane potentials and sums over
        time stay float32. Measured: see docs/performance.md.
        """
        return replace(self, parameters={name: array.to(device, dtype) for name, array in self.parameters.items()})

    def save(self, path: str | Path) -> None:
        """Write the network as safetensors, in one step; equal networks give equal files."""
        from snnfl.spiking.storage import save_network

        save_network(self, path)

    @classmethod
    def load(cls, path: str | Path) -> SpikingNetwork:
        """Read a network that :meth:`save` wrote, such as a run's ``final_snn.safetensors``, without pickle.

        Raises:
            NetworkFileError: Naming the file and what is wrong with it.
        """
        from snnfl.spiking.storage import load_network

        return load_network(path)

    def to_spikingjelly(self) -> GraphModule:
        """Build a stateful module of spikingjelly's neurons, whose forward takes one time step.

        Logits are the mean of its outputs over the steps that ``readout`` names.

        Raises:
            ExportError: If spikingjelly is not installed, or its neurons cannot express the network.
        """
        from snnfl.spiking.export_spikingjelly import to_spikingjelly

        return to_spikingjelly(self)

    def rest(self, layer: str, like: Tensor) -> Tensor:
        """Return a layer's membrane potential before the first step, of the shape and layout of its current."""
        potential = broadcast(self.resting_potential(layer), like.shape)
        return torch.empty_like(like, dtype=_accumulating(like)).copy_(potential)

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

    def _check_steps(self, steps: int) -> None:
        for node in self.graph.spikes:
            bias = self.parameters.get(f"{node.name}.time_bias")
            if bias is not None and len(bias) < steps:
                raise ValueError(
                    f"steps={steps}: {node.name} has biases for {len(bias)} time steps; simulate at most as many, or "
                    f"convert with calibration_steps={steps}"
                )

    def _simulate_block(
        self, images: Tensor, wanted: Sequence[int], layers: Mapping[str, EventLayer]
    ) -> dict[int, Tensor]:
        constants = constant_values(self.graph, self.parameters, images)
        state = State()
        sums: dict[str, Tensor] = {}
        starts = {self.first_read(point) for point in wanted}
        results, before, done = dict[int, Tensor](), dict[int, dict[str, Tensor]](), 0
        for point in sorted({*wanted, *starts} - {0}):
            while done < point:
                stop = min(done + CHUNK_STEPS, point)
                for name, total in self._advance(constants, state, done, stop, wanted[-1], layers).items():
                    sums[name] = sums[name] + total if name in sums else total
                done = stop
            if point in starts:
                before[point] = dict(sums)
            if point in wanted:
                first = self.first_read(point)
                read = {name: total - before[first][name] for name, total in sums.items()} if first else sums
                means = {name: (total / (point - first)).to(images.dtype) for name, total in read.items()}
                results[point] = readout(self.graph, self.parameters, {**constants, **means})
        return results

    def _advance(
        self,
        constants: Parameters,
        state: State,
        start: int,
        stop: int,
        steps: int,
        layers: Mapping[str, EventLayer],
    ) -> dict[str, Tensor]:
        """Compute some of ``steps`` steps of every layer before the readout; return the sums that it reads."""
        graph, values, sums, length = self.graph, dict(constants), dict[str, Tensor](), stop - start
        for node in graph.body:
            if isinstance(node, Spike):
                current = over_time(values[node.inputs[0]], node.inputs[0] in constants, length)
                if node.name not in state.potentials:
                    state.potentials[node.name] = self.rest(node.name, in_fast_layout(current[0]))
                current = add_drive(current, self.drive(node.name, start, stop, steps))
                before = NeuronState(state.potentials[node.name])
                values[node.name] = scan(self.neuron(node.name), before, current).flatten(0, 1)
            elif isinstance(node, MaxPool):
                read = over_time(values[node.inputs[0]], False, length)
                passed, state.maxima[node.name] = gated_maximum(node, read, state.maxima.get(node.name))
                values[node.name] = passed.flatten(0, 1)
            else:
                values[node.name] = linear_value(node, values, constants, self.parameters, length, layers)
            if node.name in graph.readout_inputs:
                value = values[node.name]
                sums[node.name] = over_time(value, False, length).sum(0, dtype=_accumulating(value))
            for name in graph.freed_after[node.name]:
                del values[name]
        return sums


def add_drive(current: Tensor, drive: Tensor | None) -> Tensor:
    """Add ``[1 or T, 1 or C]``, or nothing, to a current ``[T, N, C, *space]``."""
    return current if drive is None else current + drive.view(len(drive), 1, -1, *[1] * (current.dim() - 3))


def in_fast_layout(images: Tensor) -> Tensor:
    """Lay pictures out channels last: convolutions of few channels run up to twice as fast, and keep the layout."""
    if images.dim() == 4:
        return images.contiguous(memory_format=torch.channels_last)
    return images.contiguous() if images.dim() > 4 else images


def constant_values(graph: SpikingGraph, parameters: Parameters, images: Tensor) -> dict[str, Tensor]:
    """Compute the image and every value in front of the first spikes: the same at every time step."""
    values = {graph.input: images}
    for node in graph.nodes:
        if node.name not in graph.varying:
            values[node.name] = analog_value(node, values, parameters)
    return values


def over_time(value: Tensor, constant: bool, length: int) -> Tensor:
    """Give a value its time axis: ``[N, ...]`` (constant) or ``[length * N, ...]`` becomes ``[length, N, ...]``."""
    return value.expand(length, *value.shape) if constant else value.view(length, -1, *value.shape[1:])


def linear_value(
    node: Affine | LinearMap,
    values: Mapping[str, Tensor],
    constants: Mapping[str, Tensor],
    parameters: Parameters,
    length: int,
    layers: Mapping[str, EventLayer] | None = None,
) -> Tensor:
    """Compute a varying value for ``length`` steps, ``[length * N, ...]``; constant inputs are repeated in time.

    A layer in ``layers`` is driven by events, unless there are too many.
    """
    inputs = [over_time(values[name], name in constants, length).flatten(0, 1) for name in node.inputs]
    sparse = layers.get(node.name) if layers is not None else None
    found = None if sparse is None else sparse.apply(inputs[0], parameters[f"{node.name}.bias"])
    return node.apply(inputs, parameters) if found is None else found


def readout(graph: SpikingGraph, parameters: Parameters, means: Mapping[str, Tensor]) -> Tensor:
    """Compute the output from constants and the means over time of spikes, or of what is linear in them."""
    values, nodes = dict(means), graph.readout_from(means)
    freed = freed_after(nodes)
    for node in nodes:
        values[node.name] = analog_value(node, values, parameters)
        for name in freed[node.name]:
            del values[name]
    return values[graph.output]


def _accumulating(value: Tensor) -> torch.dtype:
    """Return the type that sums over time have: of a short type hundreds of terms would drop their low bits."""
    return torch.promote_types(value.dtype, torch.float32)


def _lengths(steps: int, curve: Sequence[int]) -> list[int]:
    """Sort the lengths that logits are wanted for; ``steps`` is the last."""
    try:
        last, earlier = operator.index(steps), [operator.index(length) for length in curve]
    except TypeError:
        raise ValueError(f"steps={steps}, curve={curve}: give whole numbers of time steps, a curve as a list") from None
    points = sorted({*earlier, last})
    if last < 1:
        raise ValueError(f"steps={steps}: simulate at least 1 time step")
    if points[0] < 1 or points[-1] > last:
        raise ValueError(f"curve={earlier}: every length must lie between 1 and steps={steps}")
    return points
