"""Spike trains of a hidden layer, exactly, from the last layer's gradient, and the sequence that made them.

Where potentials of the output neurons are read out, their weights ``w_t`` of the steps are known. So the last layer's
gradient tells ``h_i = sum_t w_t s_ti`` of each hidden neuron to some 1e-7 (:mod:`snnfl.attacks.native_features`). With
a leak the ``w_t`` are different numbers, and of the ``2^T`` trains few have a sum that near: in most neurons one.

1. Sums of the first and of the second half of the steps are listed and met in the middle (Horowitz and Sahni 1974).
2. A train says of each step on which side of its threshold a potential was, and given the train potentials are affine
   in the inputs: a convex problem, of as many conditions as neurons and steps.
3. Given the trains, the first layer's gradient is a smooth function of the inputs, so that it is matched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from snnfl.models import SpikingModel

MOST_STEPS = 28
"""Steps of which half the sums fit in memory."""

RELATIVE = 1e-7
"""Error of a sum of float32 products, relative to the largest one."""

WIDTHS = ((0.3, 60), (0.1, 100), (0.03, 200))
"""Of the logistic loss, in potentials, and the iterations of each."""

SHARES = ((1.0, 0.1), (1.0, 0.01), (0.1, 0.001), (0.0, 0.0001))
"""What of the logistic loss is left while gradients are matched, and the size of rows, relative to the largest, below
which they count less."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A first linear layer and its leaky neurons, of those whose trains are known; float64.

    Attributes:
        weight: Shape ``[H, features]``.
        bias: Shape ``[H]``.
        leak: Part of a potential that is left after a step.
        threshold: Of the neurons.
        to_zero: Whether a spike takes all of the potential, and not a threshold; with the next step either way.
        derivative: Of a spike by ``u - V_th``.
        trains: Shape ``[T, H]``, 0 or 1.
        slopes: Gradient of the loss by each spike, ``[T, H]``.
    """

    weight: Tensor
    bias: Tensor
    leak: float
    threshold: float
    to_zero: bool
    derivative: Callable[[Tensor], Tensor]
    trains: Tensor
    slopes: Tensor

    def potentials(self, inputs: Tensor) -> Tensor:
        """Return the charged potentials, ``[T, H]``, of neurons with these trains, by inputs ``[T, features]``."""
        currents = functional.linear(inputs, self.weight, self.bias)
        found = [currents[0]]
        for current, fired in zip(currents[1:], self.trains, strict=False):
            left = found[-1] * (1 - fired) if self.to_zero else found[-1]
            found.append(self.leak * left + current - (0.0 if self.to_zero else self.threshold * fired))
        return torch.stack(found)

    def gradient(self, inputs: Tensor) -> Tensor:
        """Return the gradients of weight and, in the last column, bias, ``[H, features + 1]``: smooth in the inputs."""
        own = self.derivative(self.potentials(inputs) - self.threshold) * self.slopes
        found, after = list[Tensor](), torch.zeros_like(self.bias)
        for step in range(len(own) - 1, -1, -1):
            kept = 1 - self.trains[step] if self.to_zero else 1.0
            after = own[step] + self.leak * kept * after
            found.append(after)
        slopes = torch.stack(found[::-1])
        return torch.cat([slopes.T @ inputs, slopes.sum(0)[:, None]], 1)


def step_weights(model: SpikingModel) -> Tensor:
    """Return what each step weighs in what is read out, ``[T]``, float64, where potentials are read."""
    found: Tensor = model.readout(torch.eye(model.steps, dtype=torch.float64)[..., None])[:, 0]
    return found


def trains_of(sums: Tensor, weights: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Return the trains whose weighted sums are the given ones, ``[T, H]``, and which neurons have just one, ``[H]``.

    Args:
        sums: Shape ``[H]``, float64.
        weights: Of the steps, ``[T]``, float64.
        tolerance: Error of a sum.
    """
    half = len(weights) // 2
    first, second = (_trains(count) for count in (half, len(weights) - half))
    ahead, (behind, order) = first @ weights[:half], (second @ weights[half:]).sort()
    trains, known = sums.new_zeros(len(weights), len(sums)), torch.zeros(len(sums), dtype=torch.bool)
    for place, wanted in enumerate(sums):
        low, high = (torch.searchsorted(behind, wanted - ahead + side) for side in (-tolerance, tolerance))
        hits = high - low
        if int(hits.sum()) == 1:
            one = int(hits.argmax())
            trains[:, place] = torch.cat([first[one], second[order[low[one]]]])
            known[place] = True
    return trains, known


def _trains(steps: int) -> Tensor:
    """Return all trains of some steps, ``[2^steps, steps]``."""
    return ((torch.arange(2**steps)[:, None] >> torch.arange(steps)) & 1).double()


def sequence_of(layer: Layer, wanted: Tensor) -> tuple[Tensor, float]:
    """Return the inputs ``[T, features]`` that made the trains and the gradient, and what share of it is left.

    Where there are more features than steps, inputs lie in the row space of the gradient.

    Args:
        layer: With the known trains.
        wanted: Gradients of weight and bias, ``[H, features + 1]``, float64.
    """
    steps, features = len(layer.trains), layer.weight.shape[1]
    basis = torch.eye(features, dtype=torch.float64)
    if features > steps:
        basis = torch.linalg.svd(wanted[:, :-1], full_matrices=False)[2][:steps]
    free = torch.zeros(steps, len(basis), dtype=torch.float64, requires_grad=True)
    sides: Tensor = 2 * layer.trains - 1
    sizes: Tensor = torch.linalg.vector_norm(wanted, dim=1)

    def misfired(width: float) -> Tensor:
        past = sides * (layer.potentials(free @ basis) - layer.threshold)
        value: Tensor = width * functional.softplus(-past / width).mean()
        return value

    def unlike(floor: float) -> Tensor:
        left = (layer.gradient(free @ basis) - wanted).square().sum(1)
        return (left / (sizes + floor * sizes.max()).square()).log1p().mean()

    for width, iterations in WIDTHS:
        _minimise(free, lambda width=width: misfired(width), iterations)  # type: ignore[misc]
    for share, floor in SHARES:
        objective = lambda share=share, floor=floor: unlike(floor) + share * misfired(WIDTHS[-1][0])  # noqa: E731
        _minimise(free, objective, WIDTHS[-1][1])
    with torch.no_grad():
        found = free @ basis
        left = torch.linalg.matrix_norm(layer.gradient(found) - wanted) / torch.linalg.matrix_norm(wanted)
    return found, float(left)


def _minimise(free: Tensor, objective: Callable[[], Tensor], iterations: int) -> None:
    """Take iterations of L-BFGS, in place."""
    optimizer = torch.optim.LBFGS(
        [free], max_iter=iterations, max_eval=2 * iterations, history_size=100, tolerance_grad=1e-14,
        tolerance_change=1e-16, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> float:
        value = objective()
        (free.grad,) = torch.autograd.grad(value, free)
        return float(value.detach())

    optimizer.step(closure)  # type: ignore[no-untyped-call]
