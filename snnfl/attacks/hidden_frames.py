"""What flowed into a spiking network's first hidden linear layer at each step, exactly, from one image's gradient.

The gradient of a linear layer is ``sum_t d_t s_t^T`` of its inputs ``s_t``. Behind spiking neurons, pooled over squares
of ``p`` by ``p``, these are multiples of ``1/p^2`` in [0, 1]: a finite alphabet.

1. The last layer's gradient tells the trains of the last hidden neurons (:mod:`snnfl.attacks.spike_trains`).
2. A vector of the gradient's row space follows from its values in as many columns as the rank. All values that these
   may have are tried, and what has values of the alphabet everywhere may be an input. So are sums and differences of
   true ones, as far as they have.
3. The layer's neurons are replayed: of what may be an input, each step takes what makes them fire as they did. So
   inputs come in their order, and those that came twice, or were silent, are told, too. Neither the slopes ``d_t`` nor
   the surrogate are used.
4. What flowed in are the trains of the neurons before. So it goes from the last linear layer to the first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from snnfl.attacks.event_order import Replay
from snnfl.attacks.events import WHOLE, rounding_noise, visible
from snnfl.attacks.native_features import discounts, gain, hidden_linear
from snnfl.attacks.networks import last_linear
from snnfl.attacks.problem import Problem
from snnfl.attacks.spike_trains import MOST_STEPS, RELATIVE, step_weights, surest_trains
from snnfl.models import SpikingModel, SpikingNeurons
from snnfl.neurons.dynamics import Neuron, NeuronState
from snnfl.threat import ServerView

MOST_TRIED = 2**24
"""Values in as many columns as the rank: ten steps of pools of four have ``5^10``, two thirds of it."""

AT_ONCE = 2**24
"""Numbers of what is tried, or replayed, in memory: of an update that is made up, everything may fit."""

GLANCES = 8
"""Columns that all tried ones are looked at in; one in a hundred thousand that are no input is left."""

MOST_FITTING = 512
"""Vectors of the alphabet in one row space, and orders of them that are followed, at most: the fewest spikes first. Of
wide layers fewer orders."""

MISSES = 1
"""Neurons that may fire otherwise in a step of a replay, whose sums are rounded otherwise near the threshold."""

MOST_ORDERS = 16
"""Orders that may be left: of more, the neurons fire too seldom to tell which one it was."""

LEFT = 3.0
"""Times the rounding of all elements of a gradient that inputs may leave of it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Stage:
    """A linear layer and the neurons behind it.

    Attributes:
        name: Of the linear layer.
        neurons: Name of the neurons.
        levels: Between the values that flow in: 1 of spikes.
    """

    name: str
    neurons: str
    levels: int


def unsolved(view: ServerView, problem: Problem) -> str | None:
    """Say why a hidden layer's inputs aren't sought, or return ``None``."""
    model = view.model
    if not isinstance(model, SpikingModel) or _stages(model) is None:
        return "takes spikes, pooled or not, that flow into linear layers with nothing but neurons between them"
    if problem.count != 1 or problem.steps != 1:
        return f"takes one step on one image, whose inputs don't mix with others'; here are {problem.count} images"
    if not discounts(model) or f"{last_linear(model)}.bias" not in problem.target or model.steps > MOST_STEPS:
        return f"takes potentials that are read out of at most {MOST_STEPS} steps, and a bias there"
    if not problem.exact or not view.knowledge.learning_rate:
        return "takes updates as they are, and the learning rate"
    return None


def _stages(model: SpikingModel) -> list[_Stage] | None:
    """Return the hidden linear layers; ``None`` unless the network ends in them, and spikes flow into the first one.

    What is no flat chain of modules has none.
    """
    first, names = hidden_linear(model), {id(module): name for name, module in model.named_modules()}
    found, levels, before = list[_Stage](), 0, ""
    for module in model.body.children():
        name = names[id(module)]
        if isinstance(module, nn.Linear):
            if not levels or (not found and name != first):
                return None
            before = name
        elif isinstance(module, SpikingNeurons):
            if before:
                if module.recurrent is not None or module.pool != 1:
                    return None
                found.append(_Stage(name=before, neurons=name, levels=levels))
            levels = module.pool**2
        elif not isinstance(module, nn.Identity | nn.Flatten | nn.MaxPool2d):
            levels = 0
            if before:
                return None
    return found or None


def hidden_frames(view: ServerView, problem: Problem) -> Tensor | None:
    """Return the inputs of the first hidden linear layer over time, ``[T, features]``.

    Args:
        view: Of the attacked round.
        problem: Laid out of it.

    Returns:
        ``None`` where not all were found, as where a direction of the gradient is as small as its rounding, or neurons
        fire too seldom to tell their order.

    Raises:
        ValueError: If they aren't sought (:func:`unsolved`).
    """
    model = view.model
    if (reason := unsolved(view, problem)) is not None or not isinstance(model, SpikingModel):
        raise ValueError(f"hidden_frames: {reason}")
    stages, rate = _stages(model) or [], view.knowledge.learning_rate or 1.0
    replay = Replay(model, view.exchange.sent, stages[0].name)
    noise = rounding_noise(problem.arrays[f"{last_linear(model)}.weight"], rate)
    errors, trains, known = _last_trains(model, problem, noise)
    for stage in reversed(stages):
        weight = problem.arrays[f"{stage.name}.weight"]
        gradient, noise = problem.finite(f"{stage.name}.weight"), rounding_noise(weight, rate)
        fitting = _fitting(gradient, noise, model.steps, stage.levels)
        neurons = replay.model.neurons[stage.neurons].neuron
        currents = functional.linear(fitting.float(), weight, problem.arrays.get(f"{stage.name}.bias"))
        orders = _orders(neurons, currents, trains.float(), known)
        least = LEFT * noise * math.sqrt(gradient.numel())
        orders = [order for order in orders if _left(gradient, fitting[order]) < least]
        if not orders:
            return None
        order = min(orders, key=lambda order: _miss(model, view, stage.name, fitting[order], errors, gradient))
        trains, known = fitting[order], torch.ones(fitting.shape[1], dtype=torch.bool)
    return trains.float()


def _last_trains(model: SpikingModel, problem: Problem, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the slope by the logits ``[classes]``, the last hidden neurons' trains ``[T, H]``, and whose are known."""
    last = last_linear(model)
    weight, bias = (problem.finite(f"{last}.{part}") for part in ("weight", "bias"))
    errors = bias / gain(model)
    sums = errors @ weight / errors.square().sum().clamp_min(1e-300)
    rounding = 6 * noise / float(errors.norm().clamp_min(1e-300))
    trains, known = surest_trains(sums, step_weights(model), rounding + RELATIVE * float(sums.abs().max()))
    return errors, trains, known


def _fitting(gradient: Tensor, noise: float, most: int, levels: int) -> Tensor:
    """Return all vectors of a row space whose values are ``0, 1/levels, .. 1``, zero first, then by their sum.

    Args:
        gradient: Of a linear layer, ``[out, features]``, float64.
        noise: Standard deviation of an error of its elements.
        most: Its rank at most.
        levels: Of the values.

    Returns:
        Shape ``[M, features]`` with ``M >= 1``; zero alone where there are too many to be tried.
    """
    from scipy.linalg import qr  # half a second to import

    found = gradient.new_zeros(1, gradient.shape[1])
    active, basis = visible(gradient, noise=noise, most=most)
    rank, kinds = len(basis), levels + 1
    if rank == 0 or kinds**rank > MOST_TRIED:
        return found
    chosen = torch.from_numpy(qr(basis.numpy(), mode="r", pivoting=True)[1][:rank].copy()).long()
    whole = torch.linalg.solve(basis[:, chosen], basis)
    glances, part = torch.linspace(0, whole.shape[1] - 1, GLANCES).long(), max(1, AT_ONCE // whole.shape[1])
    for start in range(0, kinds**rank, part):
        numbers = torch.arange(start, min(start + part, kinds**rank))
        values = torch.stack([numbers // kinds**place % kinds for place in range(rank)], 1).double()
        for columns in (*glances[:, None], slice(None)):
            made = values @ whole[:, columns]
            near = made.round()
            fits = ((made - near).abs() < WHOLE) & (near >= 0) & (near <= levels)
            values = values[fits.all(1)]
        vectors = gradient.new_zeros(len(values), gradient.shape[1])
        vectors[:, active] = (values @ whole).round() / levels
        found = torch.cat([found, vectors[vectors.any(1)]])
        found = found[found.sum(1).argsort(stable=True)][:MOST_FITTING]
    return found + 0.0  # no -0.0


def _orders(neuron: Neuron, currents: Tensor, trains: Tensor, known: Tensor) -> list[Tensor]:
    """Return which inputs make neurons fire as they did, in order: ``[T]`` indices each; none of too many.

    Args:
        neuron: Of all neurons.
        currents: Of each input that may be, ``[M, H]``.
        trains: Of the neurons, ``[T, H]``.
        known: Of which neurons they are, ``[H]``.
    """
    count, most = len(currents), max(MOST_ORDERS + 1, min(MOST_FITTING, AT_ONCE // currents.numel()))
    state, orders = neuron.at_rest(currents[:1]), torch.zeros(1, 0, dtype=torch.long)
    misses = torch.zeros(1, dtype=torch.long)
    for train in trains:
        before = _rows(state, torch.arange(len(orders)).repeat_interleave(count))
        after, spikes = neuron.step(before, currents.repeat(len(orders), 1))
        wrong = (spikes != train)[:, known].sum(1)
        total = misses.repeat_interleave(count) + wrong
        kept = (wrong <= MISSES).nonzero()[:, 0]
        kept = kept[total[kept].argsort(stable=True)][:most]
        orders = torch.cat([orders[kept // count], (kept % count)[:, None]], 1)
        state, misses = _rows(after, kept), total[kept]
    return list(orders) if len(orders) <= MOST_ORDERS else []


def _rows(state: NeuronState, rows: Tensor) -> NeuronState:
    adaptation = None if state.adaptation is None else state.adaptation[rows]
    return NeuronState(state.potential[rows], adaptation)


def _left(gradient: Tensor, inputs: Tensor) -> float:
    """Return the norm of what no slopes could make of a gradient with these inputs."""
    return float(torch.linalg.matrix_norm(gradient - gradient @ torch.linalg.pinv(inputs) @ inputs))


def _miss(model: SpikingModel, view: ServerView, layer: str, inputs: Tensor, errors: Tensor, gradient: Tensor) -> float:
    """Return how far the gradient that inputs have in the network is from the observed one."""
    replay = Replay(model, view.exchange.sent, layer)
    slopes = replay.gradients(replay.currents(inputs[:, None]), errors[None].float())[:, 0]
    return float(torch.linalg.matrix_norm(slopes.T.double() @ inputs - gradient))
