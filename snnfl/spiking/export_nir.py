"""A spiking network as a file of NIR, the neuromorphic intermediate representation (Pedersen et al. 2024).

What NIR leaves open, and what is written here:

* **Time.** NIR's neurons are continuous, ``dv/dt = R I``. The unit of time is our step and ``R = 1``, so that one Euler
  step is ``v <- v + I``; read with ``dt=1``. A spike that comes back to its neuron arrives one step later.
* **Threshold.** NIR fires at ``v > v_threshold``, we at ``v >= V_th``: they differ where both are equal in every bit.
* **Reset.** NIR sets ``v`` to ``v_reset``, here 0. In continuous time ``v`` never exceeds the threshold, so that this
  is the same as subtracting it (neuromorphs/NIR, discussion of pull request 63). In time steps it is not: our network
  needs **reset by subtraction**, for which NIR has no word; it is up to the reader.
* **Amplitude.** NIR's spikes are worth 1. Ours are worth the threshold, which goes into the weights behind
  (:func:`snnfl.spiking.export.unit_spikes`).
* **Start.** NIR's neurons start at 0. For a start at ``v_0`` the threshold is ``V_th - v_0``, and each spike comes back
  over a node ``<layer>.start`` with weight ``-v_0``, so that ``V_th`` has been subtracted when the next step decides.
* **Drip.** ``V_th / 2T`` flows in at each step, with the bias of the layer before or a node ``<layer>.drip``.
* **Concatenation.** The sum of its parts, each behind a node ``<value>.<number>`` that puts its channels into place.
* **Thresholds per channel.** Most tools refuse thresholds that differ within a layer. Then the current is divided by
  them (``<layer>.current``) and they are 1, which rounds.

NIR has no maximum, no current that varies with time, no padding that an average leaves out, no neuron that fires
several times a step or takes a spike back, and nothing that comes before a simulation.

How others read it (November 2026): spikingjelly 2.0 resets to ``v_reset``; with ``v_reset=None`` set on its neurons
after reading, spikes are equal. snnTorch 1.0 reads ``IF`` as a leaky neuron and loses its state (its issue 416); with
``beta=1``, ``init_hidden=True`` and ``reset_delay=True`` set on its neurons, spikes are equal; its ``Flatten`` joins
the images of a batch, so it takes one at a time; it reads no ``Conv1d``. sinabs 3.1 bounds potentials below and lets a
neuron fire several times a step; norse 1.1 resets to zero.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from snnfl.files import write_bytes
from snnfl.spiking.export import ExportError, check_single_spikes, optional_library, unit_spikes
from snnfl.spiking.graph import Affine, GraphNode, LinearMap, MaxPool, Parameters, Spike, SpikingGraph
from snnfl.spiking.network import SpikingNetwork
from snnfl.spiking.node_operations import AFFINE_OPS
from snnfl.spiking.values import analog_value


def to_nir(network: SpikingNetwork, input_shape: Sequence[int], path: str | Path, *, steps: int | None = None) -> None:
    """Write a network as a NIR file of convolutions, affine layers, average pooling, flattening and IF neurons.

    An addition becomes several edges into one node, grouped convolutions are written with their zeros, and a factor per
    channel as a convolution with a 1x1 kernel: every tool reads these.

    Args:
        network: The spiking network.
        input_shape: Shape of one image, ``[C, H, W]`` or another that the network takes.
        path: File to write, in one step.
        steps: Length of the simulation, which only a network with a drip depends on; by default as many as the network
            was converted for.

    Raises:
        ExportError: Naming the node that NIR cannot express, or the package ``nir`` if it isn't installed.
    """
    check_single_spikes(network, "NIR has")
    nir = optional_library("nir", "snnfl[export]")
    for neurons in network.graph.spikes:
        if f"{neurons.name}.time_bias" in network.parameters:
            raise ExportError(
                f"{neurons.name}: NIR has no current that varies with time; convert with calibration=bias in place "
                "of time_bias"
            )
    steps = steps or network.steps
    if network.initial_potential == "drip" and steps is None:
        raise ExportError("a drip depends on the length of the simulation; give it as steps")
    graph, parameters = unit_spikes(network)
    shapes, drips = shapes_of(graph, parameters, input_shape), _drips(network, steps or 1)
    channels = {name: shape[0] for name, shape in shapes.items()}
    for layer in [*drips]:
        if (site := graph.calibration_site(graph.by_name[layer].inputs[0], channels)) is not None:
            parameters[f"{site.name}.bias"] = parameters[f"{site.name}.bias"] + drips.pop(layer)
    writer = Writer(nir, parameters, shapes, _starts(network), drips)
    writer.add(graph.input, nir.Input(np.array(input_shape)), [])
    for node in graph.nodes:
        writer.visit(node)
    writer.finish(graph.output, path)


def _drips(network: SpikingNetwork, steps: int) -> dict[str, Tensor]:
    """Compute what flows into each spiking layer beside its input, ``[1]`` or ``[C]``."""
    found = {node.name: network.drive(node.name, 0, 1, steps) for node in network.graph.spikes}
    return {name: drip[0] for name, drip in found.items() if drip is not None}


def _starts(network: SpikingNetwork) -> dict[str, Tensor]:
    """Read the membrane potentials before the first step, ``[1]`` or ``[C]``, of layers where they aren't zero."""
    found = {}
    for node in network.graph.spikes:
        level = network.thresholds[node.name]
        channels = max(len(level), len(network.parameters.get(f"{node.name}.potential", level)))
        (start,) = network.rest(node.name, level.new_empty(1, channels))
        if not bool((start < level).all()):
            raise ExportError(
                f"{node.name}: a neuron starts at its threshold or above, and NIR's start at zero; convert with "
                "calibration=bias in place of potential"
            )
        if bool(start.any()):
            found[node.name] = start
    return found


def shapes_of(graph: SpikingGraph, parameters: Parameters, input_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every value of one image.

    Raises:
        ExportError: If the image doesn't fit.
    """
    like = next(iter(parameters.values()))
    values = {graph.input: like.new_zeros(1, *input_shape)}
    for node in graph.nodes:
        try:
            values[node.name] = analog_value(node, values, parameters)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ExportError(f"{node.name}: an image of shape {tuple(input_shape)} does not fit ({reason})") from None
    return {name: tuple(value.shape[1:]) for name, value in values.items()}


POOLINGS = ("avg_pool2d", "adaptive_avg_pool2d", "mean")
"""Maps that may be an average over windows of one size."""


@dataclass
class Writer:
    """Writes a graph node by node.

    Attributes:
        nir: The library.
        parameters: Of networks whose spikes are worth 1.
        shapes: Of one image's values.
        starts: Potentials before the first step, of layers where they aren't zero.
        drips: What flows in beside the current.
        nodes: Of NIR, so far.
        edges: Between them.
        sources: Nodes of NIR whose sum is a value of ours.
    """

    nir: Any
    parameters: Parameters
    shapes: dict[str, tuple[int, ...]]
    starts: dict[str, Tensor] = field(default_factory=dict)
    drips: dict[str, Tensor] = field(default_factory=dict)
    nodes: dict[str, Any] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)
    sources: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, made: Any, sources: Sequence[str]) -> None:
        """Add a node that reads the sum of others; whoever reads its value reads it."""
        self.nodes[name] = made
        self.edges += [(source, name) for source in sources]
        self.sources[name] = [name]

    def visit(self, node: GraphNode) -> None:
        """Add what a node of ours becomes.

        Raises:
            ExportError: If NIR cannot express it.
        """
        sources = [source for name in node.inputs for source in self.sources[name]]
        shape = self.shapes[node.inputs[0]]
        if isinstance(node, Affine):
            self.add(node.name, self._affine(node, shape), sources)
        elif isinstance(node, Spike):
            self.neurons(node, shape, sources)
        elif isinstance(node, LinearMap) and node.op == "add":
            self._sum(node)
        elif isinstance(node, LinearMap) and node.op in ("multiply", "shift") and len(shape) < 4:
            same, by = self._same(shape), node.arguments["by"]
            made = (
                self._mixed(same, shape, same.new_tensor(by)) if node.op == "shift" else self._mixed(by * same, shape)
            )
            self.add(node.name, made, sources)
        elif isinstance(node, LinearMap) and node.op == "concatenate":
            self._concatenate(node)
        elif isinstance(node, LinearMap) and node.op in ("flatten", "reshape") and len(self.shapes[node.name]) == 1:
            self.add(node.name, self.nir.Flatten({"input": np.array(shape)}, 0, -1), sources)
        elif isinstance(node, LinearMap) and len(shape) == 3 and node.op in POOLINGS:
            self._pool(node, shape, sources)
        else:
            kind = "MaxPool, which needs a memory" if isinstance(node, MaxPool) else node.op
            raise ExportError(f"{node.name}: NIR has no {kind} of values of shape {list(shape)}")

    def finish(self, output: str, path: str | Path) -> None:
        """Write the file, in one step.

        Args:
            output: Which of our values is the network's output.
            path: Of the file.

        Raises:
            ExportError: If the library cannot.
        """
        name = "output" if "output" not in self.nodes else "network_output"
        self.add(name, self.nir.Output(np.array(self.shapes[output])), self.sources[output])
        file = io.BytesIO()
        try:
            self.nir.write(file, self.nir.NIRGraph(self.nodes, self.edges))
        except ValueError as error:
            raise ExportError(f"nir cannot write it: {' '.join(str(error).split())}") from None
        write_bytes(path, file.getvalue())

    def _sum(self, node: LinearMap) -> None:
        """Write an addition as edges into one node, and one channel that is added to several as a mixture."""
        shape, found = self.shapes[node.name], list[str]()
        for number, term in enumerate(node.inputs):
            read, factor = self.shapes[term], node.arguments.get("alpha", 1) if number else 1
            if read[1:] != shape[1:] or len(shape) > 3:
                raise ExportError(
                    f"{node.name}: adds values of shape {[list(self.shapes[name]) for name in node.inputs]}, and NIR "
                    "has no broadcast in space; give both the same size"
                )
            if read == shape and factor == 1:
                found += self._once(node.name, self.sources[term], found)
            else:
                mixture = torch.eye(read[0]) if read == shape else torch.ones(shape[0], read[0])
                name = f"{node.name}.term{number}"
                self.add(name, self._mixed(factor * self._like(mixture), read), self.sources[term])
                found.append(name)
        self.sources[node.name] = found

    def _like(self, matrix: Tensor) -> Tensor:
        return matrix.to(next(iter(self.parameters.values())))

    def _same(self, shape: tuple[int, ...]) -> Tensor:
        return self._like(torch.eye(shape[0]))

    def _once(self, name: str, sources: list[str], before: list[str]) -> list[str]:
        """Give a source that comes again, as in ``x + x``, a node of its own: NIR has one edge between two nodes."""
        found: list[str] = []
        for source in sources:
            if source in (*before, *found):
                shape, again = self.shapes[name], f"{name}.{len(before) + len(found)}"
                self.add(again, self._mixed(self._same(shape), shape), [source])
                source = again
            found.append(source)
        return found

    def _concatenate(self, node: LinearMap) -> None:
        """Write a concatenation as the sum of its parts, each with its channels put into their place."""
        if node.arguments["dim"] != 1 or len(self.shapes[node.name]) > 3:
            raise ExportError(f"{node.name}: NIR has no concatenation but one of channels, dimension 1")
        places = self._same(self.shapes[node.name])
        start, found = 0, []
        for number, part in enumerate(node.inputs):
            shape = self.shapes[part]
            found.append(f"{node.name}.{number}")
            self.add(found[-1], self._mixed(places[:, start : start + shape[0]], shape), self.sources[part])
            start += shape[0]
        self.sources[node.name] = found

    def _mixed(self, weight: Tensor, shape: tuple[int, ...], bias: Tensor | None = None) -> Any:
        """Mix channels at each place of values of a shape, by a matrix ``[out, in]``."""
        bias = weight.new_zeros(len(weight)) if bias is None else bias.expand(len(weight))
        if len(shape) == 1:
            return self.nir.Affine(_array(weight), _array(bias))
        kernel = _array(weight.reshape(*weight.shape, *[1] * (len(shape) - 1)))
        if len(shape) == 2:
            return self.nir.Conv1d(shape[1], kernel, 1, 0, 1, 1, _array(bias))
        return self.nir.Conv2d(shape[1:], kernel, (1, 1), (0, 0), (1, 1), 1, _array(bias))

    def _affine(self, node: Affine, shape: tuple[int, ...]) -> Any:
        weight, bias = self.parameters[f"{node.name}.weight"], self.parameters[f"{node.name}.bias"]
        if node.op == "scale":  # as a layer whose matrix is diagonal
            return self._mixed(torch.diag(weight.expand(shape[0])), shape, bias)
        if node.op == "linear":
            return self.nir.Affine(_array(weight), _array(bias))
        if AFFINE_OPS[node.op].transposed:
            raise ExportError(f"{node.name}: NIR has no transposed convolution")
        if len({*weight.shape[2:]}) > 1:
            raise ExportError(
                f"{node.name}: nir infers no shape behind a kernel of {list(weight.shape[2:])}; use a square"
            )
        dims = len(shape) - 1
        stride, padding, dilation = (
            _per_axis(node.arguments.get(key, default), dims)
            for key, default in (("stride", 1), ("padding", 0), ("dilation", 1))
        )
        kind = self.nir.Conv1d if dims == 1 else self.nir.Conv2d
        size = shape[1] if dims == 1 else shape[1:]
        dense = _array(_without_groups(weight, node.arguments.get("groups", 1)))
        return kind(size, dense, stride, padding, dilation, 1, _array(bias))

    def neurons(self, node: Spike, shape: tuple[int, ...], sources: list[str]) -> None:
        """Add neurons, with what puts their threshold, their start and their drip into NIR's terms."""
        level = self.parameters[f"{node.name}.threshold"]
        start = self.starts.get(node.name, torch.zeros_like(level))
        drip = self.drips.get(node.name)
        if drip is not None:
            nothing = drip.new_zeros(shape[0], shape[0])
            self.add(f"{node.name}.drip", self._mixed(nothing, shape, drip), sources[:1])
            sources = [*sources, f"{node.name}.drip"]
        limit = level - start
        if bool((limit != limit[0]).any()):
            factor = torch.diag((1 / limit).expand(shape[0]))
            self.add(f"{node.name}.current", self._mixed(factor, shape), sources)
            sources, start, limit = [f"{node.name}.current"], start / limit, torch.ones_like(limit[:1])
        threshold = np.full(shape, _array(limit[0]))
        self.add(node.name, self.nir.IF(np.ones_like(threshold), threshold, np.zeros_like(threshold)), sources)
        if node.name in self.starts:
            back = f"{node.name}.start"
            self.nodes[back] = self._mixed(torch.diag(-start.expand(shape[0])), shape)
            self.edges += [(node.name, back), (back, node.name)]

    def _pool(self, node: LinearMap, shape: tuple[int, ...], sources: list[str]) -> None:
        """Add an average over windows of equal size, which is all that NIR has, where it computes the same."""
        arguments, result = node.arguments, self.shapes[node.name]
        kernel, padding = shape[1:], (0, 0)
        if node.op == "adaptive_avg_pool2d":
            kernel = tuple(max(1, size // outputs) for size, outputs in zip(shape[1:], result[1:], strict=True))
        elif node.op == "avg_pool2d":
            kernel = _per_axis(arguments["kernel_size"], 2)
            padding = _per_axis(arguments.get("padding", 0), 2)
        stride = _per_axis(arguments.get("stride", kernel), 2)
        probe = torch.arange(math.prod(shape), dtype=torch.float64).sin().view(1, *shape)
        expected, found = node.apply([probe], {}), F.avg_pool2d(probe, kernel, stride, padding)
        if found.numel() != expected.numel() or not torch.allclose(found.flatten(), expected.flatten()):
            raise ExportError(
                f"{node.name}: NIR's average pooling has windows of one size, padding included; "
                f"{node.op} from {list(shape)} to {list(result)} has not"
            )
        self.add(node.name, self.nir.AvgPool2d(np.array(kernel), np.array(stride), np.array(padding)), sources)
        if len(result) == 1:
            flat = self.nir.Flatten({"input": np.array(found.shape[1:])}, 0, -1)
            self.add(f"{node.name}.flat", flat, [node.name])
            self.sources[node.name] = [f"{node.name}.flat"]


def _per_axis(value: Any, dims: int) -> Any:
    """Write an argument as NIR wants it: words as they are, a number in one dimension, else a number per axis."""
    if isinstance(value, str):
        return value
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    values = values * dims if len(values) == 1 else values
    return values[0] if dims == 1 else values


def _without_groups(weight: Tensor, groups: int) -> Tensor:
    """Write out the zeros of a grouped convolution: most tools cannot read groups, nir's shape inference included."""
    same = torch.eye(groups, dtype=weight.dtype, device=weight.device)
    same = same.repeat_interleave(len(weight) // groups, dim=0).repeat_interleave(weight.shape[1], dim=1)
    axes = [1] * (weight.dim() - 2)
    return weight.repeat(1, groups, *axes) * same.view(*same.shape, *axes)


def _array(value: Tensor) -> NDArray[np.floating]:
    return (value if value.dtype == torch.float64 else value.float()).detach().cpu().contiguous().numpy()
