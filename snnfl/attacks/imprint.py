"""Beyond honest-but-curious: a server that sends weights which sort a client's images apart (Robbing the Fed)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from snnfl import rng
from snnfl.attacks.labels import infer_labels
from snnfl.attacks.networks import Arrays
from snnfl.attacks.problem import Problem, problem_of
from snnfl.attacks.reconstruction import Reconstruction
from snnfl.attacks.registry import Budget, register
from snnfl.threat import ServerView, ThreatModelError

SLACK = 1e-3
"""Part of the largest difference of bias gradients below which a bin counts as empty."""


def imprinted(model: nn.Module, state: Mapping[str, Tensor], public: Tensor, seed: int) -> Arrays:
    """Return a state whose first layer sorts images into bins by their brightness.

    Row ``i`` of the first layer is ``h`` with ``<h, x>`` the standardised mean of the inputs, and its bias ``-q_i``,
    where ``q_1 < ... < q_K`` are quantiles of ``<h, x>`` over public images. All columns of the second layer are equal,
    so that the loss has the same slope by each unit that an image activates. The gradients of neighbouring rows then
    differ by the images between their quantiles alone (Fowl et al., "Robbing the Fed", ICLR 2022, section 3).

    Args:
        model: Its first two layers are linear, the first of them on the image itself, with a bias.
        state: Its arrays.
        public: Normalised inputs of anybody, ``[M, *input_shape]``.
        seed: Draws the second layer's values.

    Raises:
        ThreatModelError: If the model has no such layers.
    """
    first, second = _layers(model, math.prod(public.shape[1:]))
    units, width = state[f"{first}.weight"].shape
    slope, biases = sorting(public.flatten(1).mean(1), units)
    return {
        **state,
        f"{first}.weight": torch.full((units, width), slope / width),
        f"{first}.bias": biases,
        f"{second}.weight": equal_columns(state[f"{second}.weight"], seed) / units,
    }


def sorting(brightness: Tensor, units: int) -> tuple[float, Tensor]:
    """Return by what units multiply an image's brightness, and their biases, one for each bin's lower end.

    Args:
        brightness: Of public images, ``[M]``.
        units: How many bins there are.
    """
    mean, deviation = brightness.mean(), brightness.std().clamp_min(1e-6)
    shares = (torch.arange(units) + 0.5) / units
    bounds = torch.quantile(((brightness - mean) / deviation).double(), shares.double()).float()
    return float(1 / deviation), -bounds - float(mean / deviation)


def equal_columns(weight: Tensor, seed: int) -> Tensor:
    """Return a weight of this shape whose columns are one standard normal vector, drawn by the seed."""
    return torch.randn(len(weight), 1, generator=rng.generator(seed, "imprint")).repeat(1, weight.shape[1])


def _layers(model: nn.Module, inputs: int) -> tuple[str, str]:
    named = [(name, module) for name, module in model.named_modules() if not [*module.children()]]
    layers = [(name, module) for name, module in named if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)]
    linear = [(name, module) for name, module in layers[:2] if isinstance(module, nn.Linear)]
    if len(linear) < 2 or linear[0][1].in_features != inputs or linear[0][1].bias is None:
        raise ThreatModelError(
            "imprinting needs two linear layers to begin with, the first on the image itself and with a bias"
        )
    if any(isinstance(module, nn.BatchNorm1d) for _, module in named):
        raise ThreatModelError("imprinting sets biases, which batch normalisation behind the first layer undoes")
    return linear[0][0], linear[1][0]


def _unready(view: ServerView) -> str | None:
    if view.knowledge.steps != 1:
        return "sorts the images of one step apart, and the client took several, or nobody knows how many"
    try:
        _layers(view.model, math.prod(view.input_shape))
    except ThreatModelError as error:
        return str(error)
    return None


@register(
    "imprint",
    source="Fowl et al. 2022, Robbing the Fed",
    needs=("architecture", "loss", "images", "batch_size", "epochs", "biases", "crafted_weights"),
    against="plain",
    requires=_unready,
)
def imprint(views: Sequence[ServerView], budget: Budget, generator: torch.Generator) -> list[Reconstruction]:
    """Read each image off the difference of neighbouring rows of the first layer's gradient.

    ``x = (dW_i - dW_{i+1}) / (db_i - db_{i+1})``, exact for an image that is alone in its bin; of several in one bin it
    is a mean. Bins are taken by the size of their bias gradient, as many as the client has images.
    """
    return [_read(view, generator) for view in views]


def _read(view: ServerView, generator: torch.Generator) -> Reconstruction:
    problem = problem_of(view)
    layer, _ = _layers(view.model, math.prod(view.input_shape))
    weight, bias = (problem.gradient(f"{layer}.{kind}") for kind in ("weight", "bias"))
    return read_apart(view, problem, apart(weight[None], bias[None], problem.count), generator)


def apart(weight: Tensor, bias: Tensor, count: int) -> Tensor:
    """Return what lies in the fullest bins, ``[at most count, pixels]``: means of the images that are in one together.

    Args:
        weight: Gradients of the rows of the layer that sorts, ``[layers, bins, pixels]``.
        bias: Those of their biases, ``[layers, bins]``.
        count: Of bins that are read, of all layers together.
    """
    rows, sizes = (
        torch.cat([gradient.double(), torch.zeros_like(gradient[:, :1]).double()], dim=1).diff(dim=1).flatten(0, 1)
        for gradient in (weight, bias)
    )
    filled = sizes.abs() > SLACK * sizes.abs().max()
    order = torch.where(filled, sizes.abs(), -1.0).argsort(descending=True)[:count]
    chosen = order[filled[order]]
    return (rows[chosen] / sizes[chosen, None]).float()


def read_apart(view: ServerView, problem: Problem, found: Tensor, generator: torch.Generator) -> Reconstruction:
    """Return a reconstruction of what was read, ``[at most count, pixels]``, with grey for what wasn't."""
    images = found.view(-1, *view.input_shape)
    grey = view.inputs(torch.full((problem.count - len(images), *view.input_shape), 0.5))
    made = torch.cat([images, grey])
    value = float(1 - len(images) / problem.count)
    labels = infer_labels(view, problem, generator)
    return Reconstruction(images=made, labels=labels, objective=value, curve=((0, value),), trail=(made,))
