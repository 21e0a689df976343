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


SURE = 0.3
"""Mismatch of slopes below which a label is the image's: that of an image whose factor isn't refined is less, that of
wrong labels of a separated image three times as much, and of an image that wasn't separated mostly more."""


def factors_and_labels(
    model: nn.Module, problem: Problem, layer: str, found: Separated, guessed: Tensor, *, scaled: bool
) -> tuple[Tensor, Tensor]:
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
        guessed: Labels of the batch, as the last layer tells them.
        scaled: Whether the gradient's length is known; else all slopes have a factor in common beside their own.
    """
    tables = [_by_size(problem, layer, found, sample, scaled) for sample in range(len(found.inputs))]
    labels = fitting_labels(torch.stack([table.amin(0) for _, table in tables]), guessed)
    pairs = zip(tables, labels.tolist(), strict=True)
    refined = [
        _refined(problem, layer, found, sample, sizes[table[:, label].argmin()], label, scaled)
        for sample, ((sizes, table), label) in enumerate(pairs)
    ]
    factors = torch.tensor(refined, dtype=torch.float64)
    basis = torch.linalg.qr(found.inputs.T).Q
    network, weight = _gated(model, layer, found, basis), f"{layer}.weight"
    arrays, target = (
        {name: array @ basis if name == weight else array for name, array in side.items()}
        for side in (problem.arrays, {name: problem.gradient(name) for name in problem.target})
    )
    settled = _together(network, replace(problem, arrays=arrays, target=target), found, factors, labels, scaled=scaled)
    return settled, labels


def labels_of(
    problem: Problem, layer: str, found: Separated, factors: Tensor, guessed: Tensor, *, scaled: bool
) -> Tensor:
    """Return the labels with which images of known factors give the slopes that they were separated with.

    Args:
        problem: In double precision.
        layer: Name of the first layer, behind which a ReLU stands.
        found: Its separated gradient.
        factors: Of its samples.
        guessed: Labels of the batch, as the last layer tells them.
        scaled: Whether the gradient's length is known.
    """
    rows = [_mismatches(problem, layer, found, n, factor[None], scaled)[0] for n, factor in enumerate(factors)]
    return fitting_labels(torch.stack(rows), guessed)


def fitting_labels(mismatches: Tensor, guessed: Tensor) -> Tensor:
    """Return a label for each separated sample: the one that fits, or else of the guessed ones that are left.

    Slopes of an image that was separated fit with its label alone. Of one that wasn't, none does, and which is the
    nearest means nothing; but the last layer's gradient, which separates better, has told the batch's labels.

    Args:
        mismatches: Of each sample's slopes with each label, ``[M, classes]``.
        guessed: Labels of the batch, at least ``M``.
    """
    from scipy.optimize import linear_sum_assignment  # half a second to import

    least, labels = mismatches.min(1)
    fits = least < SURE
    left = without(guessed, labels[fits])
    open_rows = (~fits).nonzero().flatten()
    costs = mismatches[open_rows][:, left].nan_to_num(posinf=1e30)
    rows, columns = map(torch.from_numpy, linear_sum_assignment(costs.numpy()))
    labels[open_rows[rows]] = left[columns]
    return labels


def without(labels: Tensor, known: Tensor) -> Tensor:
    """Return labels without known ones, each as often as it is known, and those behind them that weren't among them."""
    left, missed = labels.tolist(), 0
    for label in known.tolist():
        if label in left:
            left.remove(label)
        else:
            missed += 1
    return labels.new_tensor(left[: len(left) - missed] if missed else left)


def _by_size(problem: Problem, layer: str, found: Separated, sample: int, scaled: bool) -> tuple[Tensor, Tensor]:
    """Return factors of a separated input that are tried, and how far its slopes are off with each and each label."""
    low, high, count = SIZES
    sizes = torch.logspace(math.log10(low), math.log10(high), count, dtype=torch.float64)
    sizes = sizes / found.inputs[sample].square().mean().sqrt().clamp_min(1e-300)
    factors = torch.cat([-sizes, sizes])
    return factors, _mismatches(problem, layer, found, sample, factors, scaled)


def _refined(
    problem: Problem, layer: str, found: Separated, sample: int, factor: Tensor, label: int, scaled: bool
) -> float:
    """Return the factor near a tried one with which a separated input gives its slopes."""
    from scipy.optimize import minimize_scalar  # half a second to import

    low, high, count = SIZES
    best, ratio = float(factor), (high / low) ** (1 / (count - 1))

    def mismatch(factor: float) -> float:
        tried = torch.tensor([factor], dtype=torch.float64)
        return float(_mismatches(problem, layer, found, sample, tried, scaled)[0, label])

    bounds = sorted((best / ratio, best * ratio))
    refined = minimize_scalar(mismatch, bounds=bounds, method="bounded", options={"xatol": 1e-6 * abs(best)})
    return float(refined.x)


def _mismatches(problem: Problem, layer: str, found: Separated, sample: int, factors: Tensor, scaled: bool) -> Tensor:
    """Return ``||f d' - d|| / ||d||`` with ``d'`` the slope of the image ``f x``, ``[F, classes]``.

    Of slopes that are known up to a factor it is the distance of their directions.

    Args:
        problem: In double precision.
        layer: The first.
        found: Slopes ``d`` and inputs ``x``, of which ``d x^T = (d / f) (f x)^T`` is known.
        sample: Which of them.
        factors: ``f``, ``[F]``.
        scaled: Whether the gradient's length is known.
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
    if not scaled:
        made = wanted.norm() * nn.functional.normalize(made, dim=2)
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

    def __init__(self, weight: Tensor, bias: Tensor | None, basis: Tensor) -> None:
        super().__init__()
        self.basis = basis
        self.weight, self.bias = weight, bias

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what the layer makes of inputs ``[B, in]``."""
        return nn.functional.linear(inputs @ self.basis, self.weight, self.bias)


def _gated(model: nn.Module, layer: str, found: Separated, basis: Tensor) -> Network:
    """Return a model as a function of a layer's weight on a basis; the ReLU behind it has the slopes' zeros."""
    gated = copy.deepcopy(model)
    leaves = [name for name, module in gated.named_modules() if not list(module.children())]
    gated.set_submodule(leaves[leaves.index(layer) + 1], _Gate((found.slopes != 0).T))
    of_layer = dict(gated.get_submodule(layer).named_parameters())
    gated.set_submodule(layer, _Projected(of_layer["weight"], of_layer.get("bias"), basis))
    return network_of(gated, "train")


def _together(
    network: Network, problem: Problem, found: Separated, factors: Tensor, labels: Tensor, *, scaled: bool
) -> Tensor:
    """Move factors and unsent biases to where the gradient is the target; return the factors.

    Of a gradient whose length is unknown that is a further unknown.
    """
    wanted = problem.target
    norms = {name: array.square().sum().clamp_min(1e-300) for name, array in wanted.items()}
    targets = nn.functional.one_hot(labels, problem.classes).double() * len(labels) / problem.count  # of a mean
    local = replace(problem.local, weight_decay=0.0)  # it is taken out of the target
    unsent = {name: array for name, array in problem.arrays.items() if name.endswith(".bias") and name not in wanted}
    free: Arrays = {name: torch.zeros_like(array).requires_grad_() for name, array in unsent.items()}
    change = torch.zeros_like(factors).requires_grad_()
    length = torch.zeros((), dtype=factors.dtype).requires_grad_()

    def simulated() -> Arrays:
        arrays = {**problem.arrays, **{name: unsent[name] + shift for name, shift in free.items()}}
        images = ((factors * (1 + change))[:, None] * found.inputs).view(-1, *problem.input_shape)
        return simulate(network, arrays, tuple(wanted), images, targets, local)

    size = 1.0
    if not scaled:
        made = {name: array.detach() for name, array in simulated().items()}
        squares = torch.stack([array.square().sum() for array in made.values()]).sum()
        products = torch.stack([(made[name] * array).sum() for name, array in wanted.items()]).sum()
        size = max(float(products / squares.clamp_min(1e-300)), 1e-12)

    def closure() -> Tensor:
        optimizer.zero_grad()
        made = {name: size * length.exp() * array for name, array in simulated().items()}
        value = torch.stack([(made[name] - array).square().sum() / norms[name] for name, array in wanted.items()]).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer = torch.optim.LBFGS(
        [change, *free.values(), *([] if scaled else [length])],
        max_iter=ITERATIONS,
        history_size=50,
        tolerance_grad=1e-14,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )
    optimizer.step(closure)  # type: ignore[no-untyped-call]
    settled = factors * (1 + change.detach())
    return torch.where(settled.isfinite(), settled, factors)
