"""Spike trains of a hidden layer, exactly, from the last layer's gradient, and the inputs that made them.

Where potentials of the output neurons are read out, their weights ``w_t`` of the steps are known. So the last layer's
gradient tells ``h_i = sum_t w_t s_ti`` of each hidden neuron to some 1e-7 (:mod:`snnfl.attacks.native_features`). With
a leak the ``w_t`` are different numbers, and of the ``2^T`` trains few have a sum that near: in most neurons one. Of a
batch each sample's ``h`` is told apart by its zeros (:mod:`snnfl.attacks.sparse_features`).

1. Sums of the first and of the second half of the steps are listed and met in the middle (Horowitz and Sahni 1974).
   Where the same current flows at each step, as of pictures, neurons have a few hundred trains, which are listed.
2. A train says of each step on which side of its threshold a potential was, and given the train potentials are affine
   in the inputs: a convex problem, of as many conditions as neurons and steps. Wrong trains contradict the others by
   about a threshold, and are left out.
3. Given the trains, the first layer's gradient is a smooth function of the inputs, so that it is matched. They lie in
   its row space, which leaves a number per input and term: of four pictures that flow in alike at each step, sixteen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from snnfl.models import SpikingModel

MOST_STEPS = 28
"""Steps of which half the sums fit in memory."""

NARROWEST = 1e-9
"""In thresholds, the currents that must have a train in common: of fewer, it may be a rounding's."""

RELATIVE = 1e-7
"""Error of a sum of float32 products, relative to the largest one."""

WIDTHS = ((0.3, 60), (0.1, 100), (0.03, 200))
"""Of the logistic loss, in potentials, and the iterations of each."""

SHARES = ((1.0, 0.1, 200), (1.0, 0.01, 200), (0.1, 0.001, 200), (0.0, 0.0001, 1000))
"""What of the logistic loss is left while gradients are matched, the size of rows, relative to the largest, below which
they count less, and the iterations."""

MISFIRED = 0.5
"""In thresholds, how far on the wrong side a potential of a wrong train is; those of right ones rarely are."""

TOLERANCES = (1.0, 10.0, 100.0, 1000.0)
"""Times the rounding of a sum: what separates a batch's samples makes it larger, by a factor that nobody tells."""


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
        trains: Of ``N`` samples, ``[T, N, H]``, 0 or 1.
        slopes: Gradient of the loss by each spike, ``[T, N, H]``.
    """

    weight: Tensor
    bias: Tensor
    leak: float
    threshold: float
    to_zero: bool
    derivative: Callable[[Tensor], Tensor]
    trains: Tensor
    slopes: Tensor

    def of(self, neurons: Tensor) -> Layer:
        """Return the same of some neurons, which a mask ``[H]`` names."""
        weight, bias = self.weight[neurons], self.bias[neurons]
        return replace(
            self, weight=weight, bias=bias, trains=self.trains[..., neurons], slopes=self.slopes[..., neurons]
        )

    def misplaced(self, inputs: Tensor) -> Tensor:
        """Return by how much potentials are on the wrong side of the threshold for these trains, ``[T, N, H]``."""
        found: Tensor = (1 - 2 * self.trains) * (self.potentials(inputs) - self.threshold)
        return found

    def potentials(self, inputs: Tensor) -> Tensor:
        """Return the charged potentials, ``[T, N, H]``, of neurons with these trains.

        Args:
            inputs: Shape ``[T, N, features]``, or ``[1, N, features]`` of what stays the same.
        """
        currents = functional.linear(inputs, self.weight, self.bias).expand(self.trains.shape)
        found = [currents[0]]
        for current, fired in zip(currents[1:], self.trains, strict=False):
            left = found[-1] * (1 - fired) if self.to_zero else found[-1]
            found.append(self.leak * left + current - (0.0 if self.to_zero else self.threshold * fired))
        return torch.stack(found)

    def gradient(self, inputs: Tensor) -> Tensor:
        """Return the gradients of weight and, in the last column, bias, ``[H, features + 1]``: smooth in the inputs.

        Args:
            inputs: As of :meth:`potentials`.
        """
        own = self.derivative(self.potentials(inputs) - self.threshold) * self.slopes
        found, after = list[Tensor](), torch.zeros_like(own[0])
        for step in range(len(own) - 1, -1, -1):
            kept = 1 - self.trains[step] if self.to_zero else 1.0
            after = own[step] + self.leak * kept * after
            found.append(after)
        slopes = torch.stack(found[::-1])
        slopes = slopes if len(inputs) > 1 else slopes.sum(0, keepdim=True)
        return torch.cat([slopes.flatten(0, 1).T @ inputs.flatten(0, 1), slopes.sum((0, 1))[:, None]], 1)


def step_weights(model: SpikingModel) -> Tensor:
    """Return what each step weighs in what is read out, ``[T]``, float64, where potentials are read."""
    found: Tensor = model.readout(torch.eye(model.steps, dtype=torch.float64)[..., None])[:, 0]
    return found


def trains_of(sums: Tensor, weights: Tensor, tolerance: float, listed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the trains whose weighted sums are the given ones, ``[T, H]``, and which neurons have just one, ``[H]``.

    Args:
        sums: Shape ``[H]``, float64.
        weights: Of the steps, ``[T]``, float64.
        tolerance: Error of a sum.
        listed: All trains that there are, ``[K, T]``; ``None`` for any.
    """
    half = len(weights) // 2 if listed is None else 0
    first, second = _trains(half), _trains(len(weights) - half) if listed is None else listed
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


def constant_trains(steps: int, leak: float, threshold: float, *, to_zero: bool) -> Tensor:
    """Return all trains of neurons into which the same current flows at each step, ``[K, steps]``, float64.

    A train's potentials are affine in the current, ``u_t = a_t I + b_t`` with ``a_t > 0``, so that each step parts the
    currents that have had the same train in two at most, at ``(V_th - b_t) / a_t``.

    Args:
        steps: Number of time steps.
        leak: Part of a potential that is left after a step.
        threshold: Of the neurons.
        to_zero: As of :class:`Layer`.
    """
    low, high = (torch.full((1,), end, dtype=torch.float64) for end in (-torch.inf, torch.inf))
    slope, offset = torch.zeros(2, 1, dtype=torch.float64)
    trains = torch.zeros(1, 0, dtype=torch.float64)
    for step in range(steps):
        fired = trains[:, -1] if step else torch.zeros_like(slope)
        kept = 1 - fired if to_zero else 1.0
        slope = leak * kept * slope + 1
        offset = leak * kept * offset - (0.0 if to_zero else threshold * fired)
        edge = (threshold - offset) / slope
        ends = torch.cat([low, torch.maximum(low, edge)]), torch.cat([torch.minimum(high, edge), high])
        wide = ends[1] - ends[0] > NARROWEST * threshold
        fires = torch.cat([torch.zeros_like(edge), torch.ones_like(edge)])
        trains = torch.cat([trains.repeat(2, 1), fires[:, None]], 1)[wide]
        low, high, slope, offset = ends[0][wide], ends[1][wide], slope.repeat(2)[wide], offset.repeat(2)[wide]
    return trains


def surest_trains(
    sums: Tensor, weights: Tensor, rounding: float, listed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return :func:`trains_of` with the one of :data:`TOLERANCES` under which most neurons have just one train.

    Args:
        sums: Shape ``[H]``, float64.
        weights: Of the steps, ``[T]``, float64.
        rounding: Error of a sum, at least.
        listed: As of :func:`trains_of`.
    """
    tried = (trains_of(sums, weights, times * rounding, listed) for times in TOLERANCES)
    return max(tried, key=lambda found: int(found[1].sum()))


def inputs_of(layer: Layer, wanted: Tensor, *, inputs: int, samples: int) -> tuple[Tensor, float]:
    """Return the inputs that made the trains and the gradient, and what share of it is left.

    Where there are more features than inputs, these lie in the row space of the gradient. Where the trains of some
    samples aren't known, the gradient of the others isn't either, and only trains are matched.

    Args:
        layer: With the known trains, of ``N`` samples.
        wanted: Gradients of weight and bias, ``[H, features + 1]``, float64.
        inputs: Of each sample: one that flows in alike at all steps, or one for each step.
        samples: Of the whole batch, at least ``N``.

    Returns:
        Shape ``[inputs, N, features]``, and ``||found - wanted|| / ||wanted||``.
    """
    features, count = layer.weight.shape[1], layer.trains.shape[1]
    basis = torch.eye(features, dtype=torch.float64)
    if features > inputs * samples:
        basis = torch.linalg.svd(wanted[:, :-1], full_matrices=False)[2][: inputs * samples]
    within = replace(layer, weight=layer.weight @ basis.T)
    free = torch.zeros(inputs, count, len(basis), dtype=torch.float64, requires_grad=True)
    for width, iterations in WIDTHS:
        _minimise(free, partial(_misfired, within, free, width), iterations)
    right = within.misplaced(free).detach().amax((0, 1)) < MISFIRED * layer.threshold
    if not bool(right.all()):
        within, wanted = within.of(right), wanted[right]
        _minimise(free, partial(_misfired, within, free, WIDTHS[-1][0]), WIDTHS[-1][1])
    inside = torch.cat([wanted[:, :-1] @ basis.T, wanted[:, -1:]], 1)
    outside = (wanted[:, :-1] - inside[:, :-1] @ basis).square().sum(1)
    sizes = torch.linalg.vector_norm(wanted, dim=1)

    def left() -> Tensor:
        squares: Tensor = (within.gradient(free) - inside).square().sum(1) + outside
        return squares

    def unlike(floor: float) -> Tensor:
        value: Tensor = (left() / (sizes + floor * sizes.max()).square()).log1p().mean()
        return value

    for share, floor, iterations in SHARES if count == samples else ():
        objective = lambda share=share, floor=floor: unlike(floor) + share * _misfired(within, free, WIDTHS[-1][0])  # noqa: E731
        _minimise(free, objective, iterations)
    with torch.no_grad():
        share_left = left().sum().sqrt() / torch.linalg.matrix_norm(wanted).clamp_min(1e-300)
        return free @ basis, float(share_left)


def _misfired(layer: Layer, inputs: Tensor, width: float) -> Tensor:
    """Return the logistic loss of potentials on the wrong side, convex in the inputs."""
    value: Tensor = width * functional.softplus(layer.misplaced(inputs) / width).mean()
    return value


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
