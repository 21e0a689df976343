"""A spiking network one time step after the other, by its equations alone: what tests compare the engine with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from snnfl.spiking import MaxPool, Spike, SpikingNetwork

Fire = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Sums = dict[str, tuple[Tensor, Tensor]]


def fire(charged: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """Return spikes and what is left of the potential (SNFL equation 5)."""
    spikes = torch.where(charged >= level, level, 0.0)
    return spikes, charged - spikes


def fire_in_a_loop(charged: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """Do the same for one neuron after the other, in plain Python."""
    spikes, left = list[float](), list[float]()
    for potential, threshold in zip(
        charged.flatten().tolist(), level.expand_as(charged).flatten().tolist(), strict=True
    ):
        fired = potential >= threshold
        spikes.append(threshold if fired else 0.0)
        left.append(potential - threshold if fired else potential)
    return charged.new_tensor(spikes).view_as(charged), charged.new_tensor(left).view_as(charged)


def count_in_a_loop(
    network: SpikingNetwork, charged: Tensor, level: Tensor, counts: Tensor, time: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what neurons fire that may fire several times and take spikes back, what is left, and their counts."""
    spikes, left, after = list[float](), list[float](), list[int]()
    thresholds = level.expand_as(charged).flatten().tolist()
    for u, threshold, count in zip(charged.flatten().tolist(), thresholds, counts.flatten().tolist(), strict=True):
        fired = taken = 0
        while fired < network.burst and u >= threshold and not (network.two_sided and count + fired == time + 1):
            u, fired = u - threshold, fired + 1
        while network.signed and taken < network.burst and u + threshold < threshold and count + fired - taken > 0:
            u, taken = u + threshold, taken + 1
        spikes.append((fired - taken) * threshold)
        left.append(u)
        after.append(int(count + fired - taken))
    return (
        charged.new_tensor(spikes).view_as(charged),
        charged.new_tensor(left).view_as(charged),
        torch.tensor(after).view(charged.shape),
    )


def rehearsed(network: SpikingNetwork, images: Tensor, steps: int) -> dict[str, Tensor]:
    """Return the potentials that a correction starts from, neuron by neuron."""
    plain, ends = replace(network, correction="none", correction_steps=None), dict[str, Tensor]()
    outputs(plain, images, network.correction_steps or steps, ends=ends)
    starts = dict[str, Tensor]()
    for layer, after in ends.items():
        level = network.parameters[f"{layer}.threshold"].view([-1, *[1] * (after.dim() - 2)])
        rest = (plain.resting_potential(layer).view([-1, *[1] * (after.dim() - 2)]) + torch.zeros_like(after)).flatten()
        found = []
        for start, v, threshold in zip(
            rest.tolist(), after.flatten().tolist(), level.expand_as(after).flatten().tolist(), strict=True
        ):
            if network.correction == "residual":
                found.append(-1e300 if v < 0 else start)
            else:
                found.append(start + threshold * math.floor(v / threshold))
        starts[layer] = after.new_tensor(found).view_as(after)
    return starts


def pass_maximum(node: MaxPool, value: Tensor, sums: Sums) -> Tensor:
    """Return what passes a max pooling at one step: the growth of the largest sum so far in each window."""
    nothing = torch.zeros_like(value)
    total, largest = sums.get(node.name, (nothing, node.apply([nothing], {})))
    sums[node.name] = total + value, node.apply([total + value], {})
    return sums[node.name][1] - largest


def outputs(
    network: SpikingNetwork,
    images: Tensor,
    steps: int,
    *,
    upto: str | None = None,
    total: int | None = None,
    neurons: Fire = fire,
    ends: dict[str, Tensor] | None = None,
    currents: Tensor | None = None,
) -> Tensor:
    """Simulate; return what one layer gives at each step, ``[steps, N, ...]``: the last, or ``upto``.

    A drip is that of ``total`` steps, or of ``steps``. The potentials at the end are written to ``ends``. Of a layer of
    neurons ``currents`` are what it receives at each step, where that is known already.
    """
    graph, parameters, last = network.graph, network.parameters, upto or network.graph.output
    potentials, found, sums = dict[str, Tensor]() if ends is None else ends, list[Tensor](), Sums()
    starts = {} if network.correction == "none" else rehearsed(network, images, total or steps)
    counts = dict[str, Tensor]()
    for step in range(steps):
        values = {graph.input: images} if currents is None else {graph.by_name[last].inputs[0]: currents[step]}
        for node in graph.nodes if currents is None else [graph.by_name[last]]:
            inputs = [values[name] for name in node.inputs]
            if not isinstance(node, Spike):
                maximum = isinstance(node, MaxPool)
                values[node.name] = pass_maximum(node, *inputs, sums) if maximum else node.apply(inputs, parameters)
                if node.name == last:
                    break
                continue
            axes = [-1, *[1] * (inputs[0].dim() - 2)]
            level, nothing = parameters[f"{node.name}.threshold"].view(axes), images.new_zeros(1)
            if step == 0:
                start = parameters.get(f"{node.name}.potential", nothing).view(axes) + torch.zeros_like(inputs[0])
                start = start + (0.5 * level if network.initial_potential == "half" else 0)
                potentials[node.name] = starts.get(node.name, start)
                counts[node.name] = torch.zeros_like(inputs[0])
            drive = parameters[f"{node.name}.time_bias"][step] if f"{node.name}.time_bias" in parameters else nothing
            drip = level / (2 * (total or steps)) if network.initial_potential == "drip" else 0
            charged = potentials[node.name] + inputs[0] + drive.view(axes) + drip
            if network.counts:
                values[node.name], potentials[node.name], counts[node.name] = count_in_a_loop(
                    network, charged, level, counts[node.name], step
                )
            else:
                values[node.name], potentials[node.name] = neurons(charged, level)
            if node.name == last:
                break
        found.append(values[last])
    return torch.stack(found)


def logits(network: SpikingNetwork, images: Tensor, steps: int, neurons: Fire = fire) -> dict[int, Tensor]:
    """Simulate; return the logits of every number of steps up to ``steps``, averaged over those that count."""
    network = replace(network, correction_steps=network.rehearsal(steps) or None)
    found, half = outputs(network, images, steps, neurons=neurons), network.readout == "second_half"
    return {length: found[length // 2 if half else 0 : length].mean(0) for length in range(1, steps + 1)}
