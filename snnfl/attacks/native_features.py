"""What the linear layers' gradients of a natively trained spiking network tell of its spikes, without optimisation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from snnfl import rng
from snnfl.attacks.networks import last_linear
from snnfl.attacks.problem import Problem
from snnfl.attacks.sparse_features import Solved
from snnfl.attacks.spiking_operations import with_surrogate
from snnfl.models import SpikingModel, SpikingNeurons
from snnfl.threat import ServerView

NOISE = 3.0
"""A direction counts half where its singular value is as many times that of rounding."""

SPARE = 4
"""Singular values beyond the rank that are looked at for rounding."""

ITERATIONS = 4
"""Of the subspace of these."""

RIDGE = 1e-2
"""Of the least squares by which slopes are found: relative to the mean square of a step's inputs, plus 1."""

Forward = Callable[[Mapping[str, Tensor], Tensor], tuple[dict[str, Tensor], Tensor]]
"""``(arrays, samples) -> (inputs of linear layers over time, by layer, and logits)``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Told:
    """What one update tells of the spikes within the network.

    Attributes:
        rates: Discounted rates of the last layer's inputs, ``[M, features]``, of as many samples as it tells; ``None``
            of none, as where output neurons fire.
        rows: Directions of the first hidden linear layer's gradient, ``[k, features]`` (:func:`few_rows`); ``None``
            where there is no such layer.
    """

    rates: Tensor | None
    rows: Tensor | None


def told(view: ServerView, problem: Problem, solved: Solved | None = None) -> Told:
    """Read the linear layers' gradients.

    An output neuron whose potential is read sums its inputs with fixed weights, so of one sample ``dL/dW = d h^T`` with
    the discounted rates ``h``, and ``dL/db = d w`` with the sum ``w`` of these weights: ``h/w`` is exact. Of a batch
    the products ``d h^T`` are told apart by the zeros of ``h``. The gradient of a hidden layer is ``sum_t d_t s_t^T``
    of the ``T N`` inputs, so its rank is at most that.

    Args:
        view: Of the attacked round.
        problem: Laid out of it.
        solved: Samples of a batch that :func:`~snnfl.attacks.labels.solved` found.
    """
    model = view.model
    if not isinstance(model, SpikingModel):
        raise TypeError(f"{type(model).__name__}: expected a spiking model")
    last, rates, rows = last_linear(model), None, None
    if problem.count == 1 and discounts(model) and f"{last}.bias" in problem.target:
        weight, bias = (problem.finite(f"{last}.{part}") for part in ("weight", "bias"))
        rates = (bias @ weight / bias.square().sum().clamp_min(1e-300)).float()[None]
    elif solved is not None and solved.checked:
        rates = (solved.features / gain(model)).float()
    if (layer := hidden_linear(model)) is not None:
        rows = few_rows(problem.finite(f"{layer}.weight"), model.steps * problem.count * problem.steps)
    return Told(rates=rates, rows=rows)


def few_rows(gradient: Tensor, rank: int) -> Tensor | None:
    """Return the directions of a gradient ``[out, features]``, at most ``rank`` of them, in rows ``sqrt(S) V``.

    What all steps have in common is its largest singular value by far; what tells them apart are the others, which are
    a hundredth of it and exact, too. So each direction counts by the root of its value, and by ``S^2 / (S^2 +
    (c noise)^2)``. The whole has norm 1.

    Args:
        gradient: Of a linear layer, finite.
        rank: The largest possible one; what is beyond it is rounding.

    Returns:
        ``None`` if rows could span everything, and so tell nothing.
    """
    if rank + SPARE > min(gradient.shape):
        return None
    sizes, directions = _largest(gradient.double(), rank + SPARE)
    squares = sizes[:rank].square()
    shares = squares / (squares + (NOISE * sizes[rank]).square()).clamp_min(1e-300)
    rows = directions[:rank] * (sizes[:rank].sqrt() * shares)[:, None]
    found: Tensor = (rows / rows.norm().clamp_min(1e-300)).float()
    return found


def _largest(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the largest singular values ``[count]`` and their directions ``[count, columns]``.

    By iterated subspaces (Halko, Martinsson & Tropp 2011, algorithm 4.4), as ``torch.svd_lowrank``, which draws from
    PyTorch's global generator: so a matrix always gives the same bits.
    """
    start = torch.randn(matrix.shape[1], count, generator=rng.generator(0, "singular vectors"), dtype=matrix.dtype)
    basis = torch.linalg.qr(matrix @ start).Q
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    _, sizes, directions = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return sizes, directions


def unexplained(rows: Tensor, inputs: Tensor) -> Tensor:
    """Return which part of the rows no slopes could make of these inputs: ``min_d ||R - d^T S||^2 / ||R||^2``.

    So a linear layer's gradient is matched without its slopes, and without the surrogate that they came through.

    Args:
        rows: ``R``, as :func:`few_rows` has them of the gradient.
        inputs: ``S``, of the layer at all steps and samples, ``[M, features]``.
    """
    squares = inputs @ inputs.T
    ridge = RIDGE * (squares.diagonal().mean() + 1)
    products = inputs @ rows.T
    made: Tensor = torch.linalg.solve(squares + ridge * torch.eye(len(squares)), products)
    explained: Tensor = (products * made).sum()
    return 1 - explained


def discounts(model: SpikingModel) -> bool:
    """Tell whether each output sums its inputs with the same fixed weights."""
    readout = model.readout
    return not readout.fires and readout.kind in ("final_potential", "mean_potential")


def hidden_linear(model: SpikingModel) -> str | None:
    """Name the first linear layer, recurrent ones aside, unless it is the last one."""
    own = {id(module.recurrent) for module in model.modules() if isinstance(module, SpikingNeurons)}
    linear = [name for name, it in model.named_modules() if isinstance(it, nn.Linear) and id(it) not in own]
    return linear[0] if linear[0] != last_linear(model) else None


def gain(model: nn.Module) -> float:
    """Return by how much a logit grows with the last layer's bias: 1, or a leaky output neuron's sum over time."""
    if not isinstance(model, SpikingModel) or not discounts(model):
        return 1.0
    return float(model.readout(torch.ones(model.steps, 1, 1)))


def discounted(model: SpikingModel, inputs: Tensor) -> Tensor:
    """Return the rates ``[N, features]`` that the last layer's gradient tells of its inputs ``[T or 1, N, features]``.

    Raises:
        ValueError: If output neurons fire.
    """
    if not discounts(model):
        raise ValueError(f"readout {model.readout.kind}: its weights of the steps differ between classes")
    rates: Tensor = model.readout(inputs) / model.readout(torch.ones_like(inputs[..., :1]))
    return rates


def relaxed(view: ServerView, surrogate: str, slope: float) -> tuple[SpikingModel, Forward]:
    """Return a rebuilt network of another surrogate, and what its linear layers are given.

    The compiled scans run it: it is differentiated once.
    """
    model = copy.deepcopy(view.model)
    if not isinstance(model, SpikingModel):
        raise TypeError(f"{type(model).__name__}: expected a spiking model")
    with_surrogate(model, surrogate, slope)
    train = (view.knowledge.norm_mode or "train") == "train"
    model.eval()
    if train:
        torch.func.replace_all_batch_norm_modules_(model)
    names = {last_linear(model), hidden_linear(model) or last_linear(model)}

    def forward(arrays: Mapping[str, Tensor], inputs: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        found: dict[str, Tensor] = {}

        def keep(name: str, _: nn.Module, given: tuple[Tensor, ...]) -> None:
            found[name] = given[0]

        hooks = [model.get_submodule(name).register_forward_pre_hook(partial(keep, name)) for name in names]
        try:
            logits = torch.func.functional_call(model, dict(arrays), (inputs,), strict=False)
        finally:
            for hook in hooks:
                hook.remove()
        return found, logits

    return model, forward
