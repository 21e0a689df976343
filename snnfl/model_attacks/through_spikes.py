"""Attack scenario 2: class images straight through the spiking network, by surrogate gradients."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from snnfl.model_attacks.class_images import class_images, classes_of, grouped, uniform
from snnfl.model_attacks.registry import ModelAttackError, ModelBudget, Theft, register, silent
from snnfl.private_snn import SURROGATE, PublishedNetwork, advance, encoded
from snnfl.spiking.graph import Affine, SpikingGraph
from snnfl.spiking.in_time import readout
from snnfl.threat import ModelView

SCALE = 0.01
"""``zeta`` of Kim et al. 2022, section "Experimental Setting"."""

NEEDS = ("architecture", "weights", "thresholds", "dynamics")


def algorithm_3(
    network: PublishedNetwork, classes: Tensor, start: Tensor, iterations: int, generator: torch.Generator
) -> Tensor:
    """Climb logits by gradients behind the first layer, brought back by a deconvolution: PrivateSNN, Algorithm 3.

    ``G <- G + 1/T sum_t dy_c/dx_conv1(t)``, never set to zero, and ``x <- x + zeta Deconvolution(W_1, G)``. Spikes have
    the gradients of eq. 5.

    Args:
        network: The published one.
        classes: ``[N]``, int64.
        start: ``[N, *input_shape]``; the paper's is uniform in [0, 1).
        iterations: Steps.
        generator: Draws the spikes that images are coded by.

    Returns:
        ``[N, *input_shape]``.

    Raises:
        ModelAttackError: If the image doesn't flow into one affine layer alone.
    """
    first, behind = _divided(network)
    weight, images, accumulated = network.parameters[f"{first.name}.weight"], start, torch.zeros(())
    for _ in range(iterations):
        with torch.no_grad():
            spikes = encoded(network, images / network.input_scale, network.steps, generator)
            flat = first.apply([spikes.flatten(0, 1)], network.parameters)
            current = flat.view(*spikes.shape[:2], *flat.shape[1:])
        current.requires_grad_()
        chosen = _logits(behind, current, EQUATION_5).gather(1, classes[:, None]).sum()
        (gradient,) = torch.autograd.grad(chosen, current)
        accumulated = accumulated + gradient.sum(0) / network.steps
        images = images + SCALE * deconvolved(first, weight, accumulated, images.shape)
    return images


EQUATION_5 = "triangular"
"""The surrogate gradient of the paper's attack."""


def _divided(network: PublishedNetwork) -> tuple[Affine, PublishedNetwork]:
    """Return the layer that reads the image, and the network behind it."""
    graph = network.graph
    first = graph.nodes[0]
    if not isinstance(first, Affine) or len(graph.consumers[graph.input]) != 1:
        raise ModelAttackError("the image flows into more than one convolution or linear layer")
    return first, replace(network, graph=SpikingGraph(nodes=graph.nodes[1:], input=first.name))


def deconvolved(layer: Affine, weight: Tensor, gradient: Tensor, shape: torch.Size) -> Tensor:
    """Return what a layer's transpose makes of a gradient by its outputs: a gradient by its inputs, of ``shape``."""
    inputs = gradient.new_zeros(shape, requires_grad=True)
    outputs = layer.apply(
        [inputs], {f"{layer.name}.weight": weight, f"{layer.name}.bias": weight.new_zeros(len(weight))}
    )
    (found,) = torch.autograd.grad(outputs, inputs, gradient)
    return found


def _logits(network: PublishedNetwork, current: Tensor, surrogate: str) -> Tensor:
    """Return the logits after all steps of what flows in, ``[T or 1, N, ...]``; differentiable by it."""
    _, sums = advance(network, current, network.steps, {}, surrogate)
    return readout(network.graph, network.parameters, {name: each / network.steps for name, each in sums.items()})


class StraightThrough:
    """A published network as a differentiable function of images: the coding passes gradients on as they come.

    A spike of ``poisson`` has the mean ``clip(x, -1, 1)``, whose derivative it gets; neurons have that of a surrogate
    gradient.

    Args:
        network: The published one.
        generator: Draws the coding anew at each call.
    """

    def __init__(self, network: PublishedNetwork, generator: torch.Generator) -> None:
        self.network, self.generator = network, generator

    def __call__(self, images: Tensor) -> Tensor:
        """Map ``[N, *input_shape]`` to logits ``[N, classes]``."""
        network = self.network
        with torch.no_grad():
            spikes = encoded(network, images / network.input_scale, network.steps, self.generator)
        mean = images.clamp(-network.input_scale, network.input_scale)[None]
        return _logits(network, spikes + (mean - mean.detach()), SURROGATE)


@register("scenario_2", source="Kim et al. 2022 (PrivateSNN), Algorithm 3", needs=NEEDS, requires=silent)
def scenario_2(view: ModelView, budget: ModelBudget, generator: torch.Generator) -> Theft:
    """Add gradients behind the first layer up over time, and bring them back to the image by its transpose."""
    start = uniform(view, budget, generator)
    images = algorithm_3(_published(view), classes_of(view, budget), start, budget.iterations, generator)
    return Theft(images=grouped(view, images))


@register(
    "surrogate",
    source="Algorithm 1 through the network's own surrogate gradients; this project",
    needs=NEEDS,
    requires=silent,
)
def surrogate(view: ModelView, budget: ModelBudget, generator: torch.Generator) -> Theft:
    """Make class images with priors through the spiking network itself, by surrogate gradients."""
    network = StraightThrough(_published(view), generator)
    return Theft(images=class_images(view, network, budget, generator))


def _published(view: ModelView) -> PublishedNetwork:
    if view.network is None:
        raise ModelAttackError("needs neurons that fire")
    return view.network
