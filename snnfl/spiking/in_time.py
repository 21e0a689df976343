"""Values of a spiking network over time: a simulation, a conversion and an attack compute layers alike."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from snnfl.neurons.events import EventLayer
from snnfl.spiking.graph import Affine, LinearMap, Parameters, SpikingGraph, freed_after
from snnfl.spiking.values import analog_value


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


def accumulating(value: Tensor) -> torch.dtype:
    """Return the type that sums over time have: of a short type hundreds of terms would drop their low bits."""
    return torch.promote_types(value.dtype, torch.float32)
