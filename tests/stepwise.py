"""A spiking network one time step after the other, by its equations alone: what tests compare the engine with."""

from __future__ import annotations

from collections.abc import Callable

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
) -> Tensor:
    """Simulate; return what one layer gives at each step, ``[steps, N, ...]``: the last, or ``upto``.

    A drip is that of ``total`` steps, or of ``steps``.
    """
    graph, parameters, last = network.graph, network.parameters, upto or network.graph.output
    potentials, found, sums = dict[str, Tensor](), list[Tensor](), Sums()
    for step in range(steps):
        values = {graph.input: images}
        for node in graph.nodes:
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
                potentials[node.name] = start + (0.5 * level if network.initial_potential == "half" else 0)
            drive = parameters[f"{node.name}.time_bias"][step] if f"{node.name}.time_bias" in parameters else nothing
            drip = level / (2 * (total or steps)) if network.initial_potential == "drip" else 0
            charged = potentials[node.name] + inputs[0] + drive.view(axes) + drip
            values[node.name], potentials[node.name] = neurons(charged, level)
            if node.name == last:
                break
        found.append(values[last])
    return torch.stack(found)


def logits(network: SpikingNetwork, images: Tensor, steps: int, neurons: Fire = fire) -> dict[int, Tensor]:
    """Simulate; return the logits of every number of steps up to ``steps``, averaged over those that count."""
    found, half = outputs(network, images, steps, neurons=neurons), network.readout == "second_half"
    return {length: found[length // 2 if half else 0 : length].mean(0) for length in range(1, steps + 1)}
