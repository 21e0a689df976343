"""How many images an update is of, where nobody says."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snnfl.attacks.problem import problem_of
from snnfl.threat import ServerView

MOST = 64
"""Images that are counted at most, whatever a hostile update seems to be of."""


def count_images(view: ServerView) -> int | None:
    """Return the number of images: the known one, that of the given labels, or what the update tells of it."""
    if view.knowledge.images is not None:
        return view.knowledge.images
    return images_told(view) if view.labels is None else len(view.labels)


def images_told(view: ServerView) -> int | None:
    """Count the images of one pass by the ranks of linear layers' gradients.

    ``dL/dW = sum_n d_n x_n^T`` is a sum of as many matrices of rank one as there are images, in one step or several. So
    its rank is their number, if the layer has more inputs and outputs (the last one: more classes) than that. The layer
    of the largest rank counts. Images that no layer tells apart, or that none learns from, aren't counted.

    Args:
        view: Of a plain run.

    Returns:
        The number; ``None`` where no layer is large enough, or the update isn't one of few images: noise has full rank.
        An image counts anew in each epoch, so it is ``None``, too, where there are known to be several.
    """
    if view.knowledge.epochs is not None and view.knowledge.epochs > 1:
        return None
    problem = problem_of(view, count=1)
    layers = [f"{name}.weight" for name, module in view.model.named_modules() if isinstance(module, nn.Linear)]
    seen = [(problem.gradient(name), problem.arrays[name]) for name in layers if name in problem.target]
    ranks = [rank for gradient, weight in seen if (rank := _rank(gradient, weight, problem.local.learning_rate))]
    return max(ranks) if ranks and max(ranks) <= MOST else None


def uncounted(view: ServerView) -> str | None:
    """Say why nobody knows how many images there were, or ``None`` if it is known."""
    if count_images(view) is not None:
        return None
    return "the number of images is denied, and the update doesn't tell: one pass over few images has a low rank"


def _rank(gradient: Tensor, weight: Tensor, rate: float) -> int | None:
    """Return the rank of a gradient beyond what rounding makes of it; ``None`` for a full one.

    A received weight is rounded by less than a unit in the last place, and noise of deviation ``s`` in a matrix
    ``[m, n]`` has singular values up to ``s (sqrt(m) + sqrt(n))``. The client computed the gradient to as many digits.

    Args:
        gradient: ``[m, n]``.
        weight: As it was sent.
        rate: The learning rate that the weight's change was divided by.
    """
    small = gradient.double() if len(gradient) <= gradient.shape[1] else gradient.double().T
    values = torch.linalg.eigvalsh(small @ small.T).clamp_min(0).sqrt()
    noise = float(weight.abs().max()) / rate * sum(side**0.5 for side in weight.shape)
    rank = int((values > torch.finfo(weight.dtype).eps * (noise + float(values.max()))).sum())
    return rank if rank < len(values) - 1 else None
