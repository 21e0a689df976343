"""The factors of images that are known up to one each, where nobody sent the bias gradient that tells them."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from snnfl.attacks.exact import Separated
from snnfl.attacks.local import simulate
from snnfl.attacks.networks import Arrays, Network, network_of, soft_cross_entropy
from snnfl.attacks.problem import Problem

SIZES = (0.05, 5.0, 32)
"""Smallest and largest root mean square of a normalised image, and how many are tried between, of either sign."""

ITERATIONS = 300
"""Steps of L-BFGS at most; a batch of four takes about 80."""


def factors_and_labels(model: nn.Module, problem: Problem, layer: str, found: Separated) -> tuple[Tensor, Tensor]:
    """Return each sample's factor ``f``, with which ``f x`` is its image and ``d / f`` its slope, and its label.

    First each by itself, with the biases that the problem has: the slope that the network gives to ``f x`` must be
    ``d / f``. Then all together with the biases, to where the whole network's gradient is the observed one. Which unit
    of the first layer is active for which image is known by the slopes' zeros, so with one hidden layer that is smooth.
    Factors and biases are far fewer than the weights whose gradient is matched; that they have one solution alone isn't
    proved.

    Args:
        model: The architecture.
        problem: In double precision, with guesses of the biases that nobody sent.
        layer: Name of the first layer, behind which a ReLU stands.
        found: Its separated gradient.
    """
    pairs = [_alone(problem, layer, found, sample) for sample in range(len(found.inputs))]
    factors = torch.tensor([factor for factor, _ in pairs], dtype=torch.float64)
    labels = torch.tensor([label for _, label in pairs])
    basis = torch.linalg.qr(found.inputs.T).Q
    network, weight = _gated(model, layer, found, basis), f"{layer}.weight"
    arrays, target = (
        {name: array @ basis if name == weight else array for name, array in side.items()}
        for side in (problem.arrays, {name: problem.gradient(name) for name in problem.target})
    )
    return _together(network, replace(problem, arrays=arrays, target=target), found, factors, labels), labels


def label_of(problem: Problem, layer: str, found: Separated, sample: int, factor: Tensor) -> int:
    """Return the label with which an image gives the slope that it was separated with."""
    return int(_mismatches(problem, layer, found, sample, factor[None]).argmin())


def _alone(problem: Problem, layer: str, found: Separated, sample: int) -> tuple[float, int]:
    """Return factor and label with which a separated input gives the slopes that it was separated with."""
    from scipy.optimize import minimize_scalar  # half a second to import

    low, high, count = SIZES
    sizes = torch.logspace(math.log10(low), math.log10(high), count, dtype=torch.float64)
    sizes = sizes / found.inputs[sample].square().mean().sqrt().clamp_min(1e-300)
    factors = torch.cat([-sizes, sizes])
    table = _mismatches(problem, layer, found, sample, factors)
    position, label = divmod(int(table.argmin()), table.shape[1])
    best, ratio = float(factors[position]), float(sizes[1] / sizes[0])

    def mismatch(factor: float) -> float:
        return float(_mismatches(problem, layer, found, sample, factors.new_tensor([factor]))[0, label])

    bounds = sorted((best / ratio, best * ratio))
    refined = minimize_scalar(mismatch, bounds=bounds, method="bounded", options={"xatol": 1e-6 * abs(best)})
    return float(refined.x), label


def _mismatches(problem: Problem, layer: str, found: Separated, sample: int, factors: Tensor) -> Tensor:
    """Return ``||f d' - d|| / ||d||`` with ``d'`` the slope of the image ``f x``, ``[F, classes]``.

    Args:
        problem: In double precision.
        layer: The first.
        found: Slopes ``d`` and inputs ``x``, of which ``d x^T = (d / f) (f x)^T`` is known.
        sample: Which of them.
        factors: ``f``, ``[F]``.
    """
    name = f"{layer}.bias"

    def loss(bias: Tensor, image: Tensor, target: Tensor) -> Tensor:
        logits = problem.network({**problem.arrays, name: bias}, image[None])
        return soft_cross_entropy(logits, target[None]) / problem.count

    slope = vmap(vmap(grad(loss), in_dims=(None, None, 0)), in_dims=(None, 0, None))
    images = factors.view(-1, *[1] * len(problem.input_shape)) * found.inputs[sample].view(problem.input_shape)
    targets = torch.eye(problem.classes, dtype=torch.float64)
    wanted = found.slopes[:, sample]
    made = factors.view(-1, 1, 1) * slope(problem.arrays[name], images, targets)
    mismatches: Tensor = ((made - wanted).norm(dim=2) / wanted.norm()).nan_to_num(torch.inf)
    return mismatches


class _Gate(nn.Module):
    """A ReLU whose zeros are known, in place of one that finds them."""

    def __init__(self, passes: Tensor) -> None:
        super().__init__()
        self.passes = passes

    def forward(self, inputs: Tensor) -> Tensor:
        """Keep of inputs ``[B, out]`` what is known to pass."""
        return inputs * self.passes


class _Projected(nn.Module):
    """A linear layer of inputs in a space of few dimensions, with the weight on coordinates in it."""

    def __init__(self, layer: nn.Linear, basis: Tensor) -> None:
        super().__init__()
        self.basis = basis
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what the layer makes of inputs ``[B, in]``."""
        return nn.functional.linear(inputs @ self.basis, self.weight, self.bias)


def _gated(model: nn.Module, layer: str, found: Separated, basis: Tensor) -> Network:
    """Return a model as a function of a layer's weight on a basis; the ReLU behind it has the slopes' zeros."""
    gated = copy.deepcopy(model)
    leaves = [name for name, module in gated.named_modules() if not list(module.children())]
    gated.set_submodule(leaves[leaves.index(layer) + 1], _Gate((found.slopes != 0).T))
    first = gated.get_submodule(layer)
    if not isinstance(first, nn.Linear):
        raise TypeError(f"{layer}: expected a linear layer, found {type(first).__name__}")
    gated.set_submodule(layer, _Projected(first, basis))
    return network_of(gated, "train")


def _together(network: Network, problem: Problem, found: Separated, factors: Tensor, labels: Tensor) -> Tensor:
    """Move factors and unsent biases to where the gradient is the target; return the factors."""
    wanted = problem.target
    norms = {name: array.square().sum().clamp_min(1e-300) for name, array in wanted.items()}
    targets = nn.functional.one_hot(labels, problem.classes).double() * len(labels) / problem.count  # of a mean
    local = replace(problem.local, weight_decay=0.0)  # it is taken out of the target
    unsent = {name: array for name, array in problem.arrays.items() if name.endswith(".bias") and name not in wanted}
    free: Arrays = {name: torch.zeros_like(array).requires_grad_() for name, array in unsent.items()}
    change = torch.zeros_like(factors).requires_grad_()

    def closure() -> Tensor:
        optimizer.zero_grad()
        arrays = {**problem.arrays, **{name: unsent[name] + shift for name, shift in free.items()}}
        images = ((factors * (1 + change))[:, None] * found.inputs).view(-1, *problem.input_shape)
        made = simulate(network, arrays, tuple(wanted), images, targets, local)
        value = torch.stack([(made[name] - array).square().sum() / norms[name] for name, array in wanted.items()]).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer = torch.optim.LBFGS(
        [change, *free.values()],
        max_iter=ITERATIONS,
        history_size=50,
        tolerance_grad=1e-14,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )
    optimizer.step(closure)  # type: ignore[no-untyped-call]
    settled = factors * (1 + change.detach())
    return torch.where(settled.isfinite(), settled, factors)
