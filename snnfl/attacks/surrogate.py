"""A received spiking network as a function that an attacker differentiates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from snnfl.attacks.networks import Arrays, Network
from snnfl.attacks.problem import Problem, local_training
from snnfl.config import ConversionConfig
from snnfl.conversion import fold
from snnfl.conversion.folding import norm_state
from snnfl.neurons import Neuron, NeuronState, at_threshold, broadcast, triangular
from snnfl.spiking import MaxPool, Spike, SpikingGraph, SpikingNetwork
from snnfl.spiking.correction import corrected_start
from snnfl.spiking.in_time import add_drive, constant_values, linear_value, over_time, readout
from snnfl.spiking.maximum import gate
from snnfl.threat import ServerView, ThreatModelError
from snnfl.updates import Converted


def spiking_network_of(graph: SpikingGraph, config: ConversionConfig, *, surrogate: bool) -> Network:
    """Return a spiking network as a function of its arrays: logits averaged over time, ``config.steps`` steps long.

    Each layer sees all time steps before the next one sees any: so its weights are differentiated once, not per step.

    Args:
        graph: The structure.
        config: Steps, initial potential and readout.
        surrogate: Whether spikes have the gradient of :func:`~snnfl.neurons.triangular`; their true one is zero.
    """

    def network(arrays: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        spiking = SpikingNetwork.configured(graph, arrays, config)
        constants, steps, starts = constant_values(graph, arrays, inputs), config.steps, dict[str, Tensor]()
        if rehearsal := spiking.rehearsal(steps):
            for name, after in _run(spiking, constants, rehearsal, {}, surrogate)[1].items():
                rest = broadcast(spiking.resting_potential(name), after.shape).expand(after.shape)
                starts[name] = corrected_start(spiking.correction, rest, after, arrays[f"{name}.threshold"])
        values, _ = _run(spiking, constants, steps, starts, surrogate)
        varying = [name for name in graph.readout_inputs if name not in constants]
        first = spiking.first_read(steps)
        means = {name: over_time(values[name], False, steps)[first:].mean(0) for name in varying}
        return readout(graph, arrays, {**constants, **means})

    return network


def _run(
    spiking: SpikingNetwork, constants: Mapping[str, Tensor], steps: int, starts: Mapping[str, Tensor], surrogate: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Compute the values of all steps, and for a correction the potentials of spiking layers after the last.

    Args:
        spiking: The network.
        constants: Values in front of the first spikes.
        steps: How many.
        starts: Potentials before the first, of layers where a correction has changed them.
        surrogate: As in :func:`spiking_network_of`.
    """
    values, ends, arrays = dict(constants), dict[str, Tensor](), spiking.parameters
    for node in spiking.graph.body:
        if isinstance(node, Spike):
            current = over_time(values[node.inputs[0]], node.inputs[0] in constants, steps)
            current = add_drive(current, spiking.drive(node.name, 0, steps, steps))
            neuron = replace(spiking.neuron(node.name), spike=triangular if surrogate else at_threshold)
            rest = broadcast(spiking.resting_potential(node.name), current.shape[1:]).expand(current.shape[1:])
            start = starts.get(node.name, rest)
            spikes = fire(neuron, NeuronState(start, total=neuron.no_spikes(start)), current)
            values[node.name] = torch.stack(spikes).flatten(0, 1)
            if spiking.correction != "none":
                ends[node.name] = start + current.sum(0) - torch.stack(spikes).sum(0)  # charge is conserved
        elif isinstance(node, MaxPool):
            passed, _ = gate(node, over_time(values[node.inputs[0]], False, steps), None)
            values[node.name] = passed.flatten(0, 1)
        else:
            values[node.name] = linear_value(node, values, constants, arrays, steps)
    return values, ends


def fire(neuron: Neuron, state: NeuronState, current: Tensor) -> list[Tensor]:
    """Return the spikes of consecutive steps, of a current ``[T, N, C, *space]``, as what can be differentiated."""
    spikes = []
    for flow in current.unbind():
        state, fired = neuron.step(state, flow)
        spikes.append(fired)
    return spikes


def spiking_problem(view: ServerView, problem: Problem, biases: Arrays, *, surrogate: bool) -> Problem:
    """Turn the inversion of a reconverted network into that of the spiking network itself.

    Weights are those that the server sent, folded with the batch normalisation that it sent; biases, thresholds and
    potentials are those received. A folded weight's gradient is that of the ANN's, divided by ``gamma/sigma``. The
    round counts as one step on all images.

    Args:
        view: Of an S-run.
        problem: Of the reconverted network, for shapes and target.
        biases: Any, for the folding; the received ones replace them.
        surrogate: As in :func:`spiking_network_of`.
    """
    format = view.format
    if not isinstance(format, Converted):
        raise ThreatModelError("a plain update holds no spiking network")
    sent = {**view.exchange.sent, **biases}
    received = {name: array for name, array in view.exchange.received.items() if not name.endswith(".weight")}
    target = {}
    for node in format.graph.affines:
        name = f"{node.name}.weight"
        if node.op != "scale":
            gradient = node.outputs_first(problem.target[name])
            scale = torch.ones(len(gradient)) if node.norm is None else norm_state(node, sent).scale
            per_channel = scale.view(-1, *[1] * (gradient.dim() - 1))
            target[name] = gradient / torch.where(per_channel.abs() > 0, per_channel, torch.inf)
    network = spiking_network_of(format.graph, format.conversion, surrogate=surrogate)
    return replace(
        problem,
        network=lambda arrays, inputs: network(format.deployed(arrays), inputs),
        arrays={**fold(format.graph, sent), **received},
        target=target,
        local=local_training(view, problem.count),
        orders=None,
    )
