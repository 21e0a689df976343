"""A spiking network, its simulation in time and its analog twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from snnfl.spiking.graph import Affine, LinearMap, Parameters, Spike, SpikingGraph
from snnfl.spiking.neuron import broadcast, integrate_and_fire

CHUNK_BYTES = 16 * 2**20
"""Size of the widest tensor of a chunk of time. glibc reuses memory below 32 MB and maps every larger tensor anew."""

CHUNK_STEPS = 8
"""Time steps per chunk: enough that reading and writing the membrane potential once per chunk costs little."""


@dataclass(frozen=True)
class SpikingNetwork:
    """A spiking graph with its folded weights, biases and thresholds.

    Attributes:
        graph: The structure.
        parameters: ``<layer>.weight`` and ``<layer>.bias`` of every affine layer, ``<layer>.threshold`` (shape
            ``[1]`` or ``[C]``, positive) of every spiking one.
        initial_potential: Membrane potential at t=0: zero, or half a threshold, which centres the conversion error
            (Deng & Gu 2020).
    """

    graph: SpikingGraph
    parameters: Parameters
    initial_potential: Literal["zero", "half"] = "zero"

    @property
    def thresholds(self) -> dict[str, Tensor]:
        """Firing thresholds by spiking layer."""
        return {node.name: self.parameters[f"{node.name}.threshold"] for node in self.graph.spikes}

    @torch.inference_mode()
    def simulate(self, images: Tensor, *, steps: int, curve: Sequence[int] = ()) -> dict[int, Tensor]:
        """Run the network for ``steps`` time steps with the analog image as input at each one.

        Time advances in chunks; within one, a layer sees chunk x batch samples at once and the membrane potentials
        are carried to the next. Layers before the first spike are computed once, those after the last one once per
        point of the curve, on the mean of the spikes: they are linear, so this is exact.

        Args:
            images: Shape ``[N, ...]``.
            steps: Simulation length T.
            curve: Earlier lengths whose logits are wanted too.

        Returns:
            Logits ``[N, classes]``, averaged over time, for ``steps`` and every length in ``curve``.

        Raises:
            ValueError: If a length isn't in ``1..steps``.
        """
        points = sorted({*curve, steps})
        if points[0] < 1 or points[-1] > steps:
            raise ValueError(f"curve={list(curve)}: every length must lie between 1 and steps={steps}")
        images = in_fast_layout(images)
        per_image = _widest(self.graph, self.parameters, images[:1])
        block = max(1, CHUNK_BYTES // (CHUNK_STEPS * per_image))
        parts = [self._simulate_block(part, points) for part in torch.split(images, block)]
        return {point: torch.cat([part[point] for part in parts]) for point in points}

    @torch.inference_mode()
    def analog(self, images: Tensor) -> Tensor:
        """Compute the logits of the analog twin: the same weights and biases, with ReLU in place of the neurons."""
        values = {self.graph.input: in_fast_layout(images)}
        for node in self.graph.nodes:
            values[node.name] = analog_value(node, values, self.parameters)
            for name in self.graph.freed_after[node.name]:
                del values[name]
        return values[self.graph.output]

    def rest(self, layer: str, like: Tensor) -> Tensor:
        """Return a layer's membrane potential before the first step, of the shape and layout of its current."""
        level = broadcast(self.parameters[f"{layer}.threshold"], like.shape)
        return torch.empty_like(like).copy_(level * (0.0 if self.initial_potential == "zero" else 0.5))

    def _simulate_block(self, images: Tensor, points: Sequence[int]) -> dict[int, Tensor]:
        constants = constant_values(self.graph, self.parameters, images)
        potentials: dict[str, Tensor] = {}
        sums: dict[str, Tensor] = {}
        results, done = dict[int, Tensor](), 0
        for point in points:
            while done < point:
                length = min(CHUNK_STEPS, point - done)
                for name, total in self._advance(constants, potentials, length).items():
                    sums[name] = sums[name] + total if name in sums else total
                done += length
            means = {name: total / point for name, total in sums.items()}
            results[point] = readout(self.graph, self.parameters, {**constants, **means})
        return results

    def _advance(self, constants: Parameters, potentials: dict[str, Tensor], length: int) -> dict[str, Tensor]:
        """Compute ``length`` steps of every layer before the readout; return the sums over time that it reads."""
        graph, values, sums = self.graph, dict(constants), dict[str, Tensor]()
        for node in graph.body:
            if isinstance(node, Spike):
                current = over_time(values[node.inputs[0]], node.inputs[0] in constants, length)
                if node.name not in potentials:
                    potentials[node.name] = self.rest(node.name, current[0])
                spikes = integrate_and_fire(current, self.parameters[f"{node.name}.threshold"], potentials[node.name])
                values[node.name] = spikes.flatten(0, 1)
            else:
                values[node.name] = linear_value(node, values, constants, self.parameters, length)
            if node.name in graph.readout_inputs:
                sums[node.name] = over_time(values[node.name], False, length).sum(0)
            for name in graph.freed_after[node.name]:
                del values[name]
        return sums


def in_fast_layout(images: Tensor) -> Tensor:
    """Lay pictures out channels last: convolutions of few channels run up to twice as fast, and keep the layout."""
    return images.contiguous(memory_format=torch.channels_last) if images.dim() == 4 else images


def analog_value(node: Affine | LinearMap | Spike, values: Mapping[str, Tensor], parameters: Parameters) -> Tensor:
    """Compute one value of the analog twin."""
    inputs = [values[name] for name in node.inputs]
    return F.relu(inputs[0]) if isinstance(node, Spike) else node.apply(inputs, parameters)


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
) -> Tensor:
    """Compute a varying value for ``length`` steps, ``[length * N, ...]``; constant inputs are repeated in time."""
    inputs = [over_time(values[name], name in constants, length).flatten(0, 1) for name in node.inputs]
    return node.apply(inputs, parameters)


def readout(graph: SpikingGraph, parameters: Parameters, means: Mapping[str, Tensor]) -> Tensor:
    """Compute the layers behind the last spikes from the means over time of what they read."""
    values = dict(means)
    for node in graph.nodes:
        if node.name in graph.tail and node.name in graph.varying:
            values[node.name] = analog_value(node, values, parameters)
    return values[graph.output]


def _widest(graph: SpikingGraph, parameters: Parameters, image: Tensor) -> int:
    """Return the bytes of the largest value of one image."""
    values = {graph.input: image}
    widest = 1
    for node in graph.nodes:
        values[node.name] = analog_value(node, values, parameters)
        widest = max(widest, values[node.name].nbytes)
    return widest
