"""Attack scenario 1: the spiking network becomes an ordinary one again, of which class images are made."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from snnfl.model_attacks.class_images import algorithm_1, class_images, classes_of, grouped, uniform
from snnfl.model_attacks.copies import Scaled, clipped, copied, mean_spikes, search_scales, structure_of
from snnfl.model_attacks.learning import standardised
from snnfl.model_attacks.registry import ModelAttackError, ModelBudget, Theft, register, silent
from snnfl.threat import ModelView

KIM = "Kim et al. 2022 (PrivateSNN)"

PROBES = 16
"""Class images of each class, and as many of noise, on which scales are tried."""


@register("scenario_1", source=f"{KIM}, attack scenario 1 and Algorithm 1", needs=("architecture", "weights"))
def scenario_1(view: ModelView, budget: ModelBudget, generator: torch.Generator) -> Theft:
    """Copy the weights into a ReLU network, and climb its logits."""
    return _published(view, copied(view), budget, generator)


@register(
    "scenario_1_thresholds",
    source=f"{KIM}, attack scenario 1, with thresholds",
    needs=("architecture", "weights", "thresholds"),
)
def scenario_1_thresholds(view: ModelView, budget: ModelBudget, generator: torch.Generator) -> Theft:
    """As scenario_1, with each ReLU clipped at the threshold in whose place it stands: a neuron fires once a step."""
    return _published(view, clipped(view), budget, generator)


@register(
    "scenario_1_scales",
    source=f"{KIM}, section Two Types of Leakage Problems: a search over layer-wise scales",
    needs=("architecture", "weights", "logits"),
)
def scenario_1_scales(view: ModelView, budget: ModelBudget, generator: torch.Generator) -> Theft:
    """As scenario_1, with a scale for each layer by which the copy answers as the network does.

    It is asked about images that the attacker makes of the copy itself, so no image is needed.
    """
    layers = {node.name: Scaled(torch.ones(1)) for node in structure_of(view).spikes}
    network = copied(view, layers)
    made = class_images(view, network, _few(budget), generator).flatten(0, 1)
    probes = torch.cat([made, view.inputs(torch.rand(made.shape, generator=generator))])
    if view.logits is None:
        raise ModelAttackError("needs logits")
    wanted = standardised(view.logits(probes))

    @torch.no_grad()
    def score() -> float:
        return -float(functional.mse_loss(standardised(network(probes)), wanted))

    search_scales(list(layers.values()), score)
    return _published(view, network, budget, generator)


@register("priors", source="Yosinski et al. 2015; Yin et al. 2020", needs=("architecture", "weights"))
def priors(view: ModelView, budget: ModelBudget, generator: torch.Generator) -> Theft:
    """As scenario_1, with class images that must look like images: smooth, and within the pixels' range."""
    network = copied(view)
    return Theft(images=class_images(view, network, budget, generator), network=network)


@register(
    "priors_statistics",
    source="Yin et al., CVPR 2020 (DeepInversion)",
    needs=("architecture", "weights", "norm_statistics"),
)
def priors_statistics(view: ModelView, budget: ModelBudget, generator: torch.Generator) -> Theft:
    """As priors, with layers that must give what batch normalisation says they give for training images."""
    network = copied(view)
    return Theft(images=class_images(view, network, budget, generator), network=network)


@register(
    "mean_rates",
    source="the rate of a leaky neuron by its mean current; this project",
    needs=("architecture", "weights", "thresholds", "dynamics"),
    requires=silent,
)
def mean_rates(view: ModelView, budget: ModelBudget, generator: torch.Generator) -> Theft:
    """Copy weights, thresholds and leaks into a network of neurons' mean rates, which has exact gradients."""
    network = mean_spikes(view)
    return Theft(images=class_images(view, network, budget, generator), network=network)


def _published(view: ModelView, network: nn.Module, budget: ModelBudget, generator: torch.Generator) -> Theft:
    start = uniform(view, budget, generator)
    images: Tensor = algorithm_1(network, classes_of(view, budget), start, budget.iterations)
    return Theft(images=grouped(view, images), network=network)


def _few(budget: ModelBudget) -> ModelBudget:
    return ModelBudget(starts=PROBES, iterations=min(budget.iterations, 60))
