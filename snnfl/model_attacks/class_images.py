"""Images of a class by gradient ascent on a network: as published, and with what is known of images in general."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from snnfl.model_attacks.copies import Copy
from snnfl.model_attacks.registry import ModelBudget
from snnfl.private_snn.synthesis import blurred
from snnfl.threat import ModelView

Logits: TypeAlias = Callable[[Tensor], Tensor]
"""Images ``[N, *input_shape]`` to logits ``[N, classes]``, differentiable."""

BLUR_PERIOD, RATE = 4, 6.0
"""``f_blur`` and ``eta`` of Kim et al. 2022, section "Experimental Setting"."""


def algorithm_1(network: Logits, classes: Tensor, start: Tensor, iterations: int) -> Tensor:
    """Climb the logit of each image's class: PrivateSNN, Algorithm 1 (Kim et al. 2022).

    ``x <- x + eta dy_c/dx``, blurred by a Gaussian before every ``f_blur``-th step.

    Args:
        network: As :data:`Logits`.
        classes: ``[N]``, int64.
        start: ``[N, *input_shape]``; the paper's is uniform in [0, 1).
        iterations: Steps.

    Returns:
        ``[N, *input_shape]``.
    """
    images = start
    for number in range(1, iterations + 1):
        if number % BLUR_PERIOD == 0:
            images = _blurred(images)
        images = images + RATE * climb(network, images, classes)
    return images


def climb(network: Logits, images: Tensor, classes: Tensor) -> Tensor:
    """Return ``dy_c/dx`` of each image, ``[N, *input_shape]``."""
    images = images.detach().requires_grad_()
    chosen = network(images).gather(1, classes[:, None]).sum()
    (gradient,) = torch.autograd.grad(chosen, images)
    return gradient


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What is known of images before any network is asked.

    Attributes:
        rate: Learning rate of Adam over pixels.
        total_variation: Weight of neighbouring pixels' mean absolute difference.
        energy: Weight of the mean square of pixels: without it the background of a digit is anything.
        shift: Pixels by which an image is moved at each step, at most: what only one place sees is no shape.
        statistics: Weight of the distance from a network's running statistics of batch normalisation, where it has any
            (Yin et al., "Dreaming to distill", CVPR 2020, eq. 4).
    """

    rate: float = 0.05
    total_variation: float = 0.5
    energy: float = 0.1
    shift: int = 2
    statistics: float = 0.1


def with_priors(
    view: ModelView,
    network: Logits,
    classes: Tensor,
    start: Tensor,
    iterations: int,
    generator: torch.Generator,
    prior: Prior | None = None,
) -> Tensor:
    """Find images in which a network is sure to see a class, and which look like images.

    ``min_p CE(f(x(p)) / s, c) + tv TV(p) + energy mean p^2 + statistics R_BN(x)`` over pixels ``p`` in [0, 1] by Adam,
    ``x`` being the normalised image, moved by a random shift at each step and blurred every :data:`BLUR_PERIOD` steps
    of the first half. ``s`` is the deviation of the logits at the start: without it the cross-entropy of a network with
    large ones, such as accumulated potentials, has no gradient left.

    Args:
        view: Its normalisation.
        network: As :data:`Logits`; a copy's layers are compared with the view's statistics, if it has any.
        classes: ``[N]``, int64.
        start: Pixels ``[N, *input_shape]``.
        iterations: Steps.
        generator: Draws the shifts.
        prior: Weights.

    Returns:
        Normalised images, ``[N, *input_shape]``.
    """
    known = Prior() if prior is None else prior
    pixels = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([pixels], lr=known.rate)
    with torch.no_grad():
        unit = network(view.inputs(start)).std().clamp_min(1e-12)
    for number in range(1, iterations + 1):
        optimiser.zero_grad()
        images = view.inputs(_moved(pixels, known, generator))
        values = network.values(images) if view.statistics and isinstance(network, Copy) else {}
        logits = values[network.graph.output] if isinstance(network, Copy) and values else network(images)
        loss = functional.cross_entropy(logits / unit, classes, reduction="sum") + _penalty(pixels, known)
        loss = loss + known.statistics * len(pixels) * _mismatch(view, values)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        with torch.no_grad():
            pixels.clamp_(0, 1)
            if number % BLUR_PERIOD == 0 and 2 * number < iterations:
                pixels.copy_(_blurred(pixels))
    return view.inputs(pixels.detach())


def _blurred(images: Tensor) -> Tensor:
    """Blur pictures ``[N, C, H, W]``; the paper leaves the Gaussian's width open, here it is about 0.7 pixels."""
    return blurred(images) if images.dim() == 4 else images


def _moved(pixels: Tensor, prior: Prior, generator: torch.Generator) -> Tensor:
    if pixels.dim() != 4 or not prior.shift:
        return pixels
    down, across = torch.randint(-prior.shift, prior.shift + 1, (2,), generator=generator).tolist()
    return torch.roll(pixels, (down, across), (2, 3))


def _penalty(pixels: Tensor, prior: Prior) -> Tensor:
    """Return total variation and energy of pixels ``[N, ...]``, each a mean over an image, summed over images."""
    energy = prior.energy * pixels.square().flatten(1).mean(1).sum()
    if pixels.dim() != 4:
        return energy
    rows = (pixels[..., 1:, :] - pixels[..., :-1, :]).abs().flatten(1).mean(1)
    columns = (pixels[..., 1:] - pixels[..., :-1]).abs().flatten(1).mean(1)
    return energy + prior.total_variation * (rows + columns).sum()


def _mismatch(view: ModelView, values: Mapping[str, Tensor]) -> Tensor:
    """Return how far means and variances of layers' values are from a view's statistics, summed over layers."""
    terms = [torch.zeros(())]
    for layer, (mean, variance) in view.statistics.items():
        channels = values[layer].transpose(0, 1).flatten(1)
        terms.append((channels.mean(1) - mean).norm() + (channels.var(1, correction=0) - variance).norm())
    return torch.stack(terms).sum()


def classes_of(view: ModelView, budget: ModelBudget) -> Tensor:
    """Return the class of each image, ``[classes * starts]``, int64."""
    return torch.arange(view.classes).repeat_interleave(budget.starts)


def uniform(view: ModelView, budget: ModelBudget, generator: torch.Generator) -> Tensor:
    """Return one start for each image, uniform in [0, 1): ``[classes * starts, *input_shape]``."""
    return torch.rand(view.classes * budget.starts, *view.input_shape, generator=generator)


def grouped(view: ModelView, images: Tensor) -> Tensor:
    """Return images ``[classes * starts, *input_shape]`` by class, ``[classes, starts, *input_shape]``."""
    return images.view(view.classes, -1, *view.input_shape)


def class_images(view: ModelView, network: Logits, budget: ModelBudget, generator: torch.Generator) -> Tensor:
    """Return class images with priors, ``[classes, starts, *input_shape]``, from uniform pixels."""
    start = uniform(view, budget, generator)
    found = with_priors(view, network, classes_of(view, budget), start, budget.iterations, generator)
    return grouped(view, found)
