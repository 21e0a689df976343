"""Networks that learn from what a published one answers, or from what happens inside of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from snnfl.model_attacks.class_images import class_images
from snnfl.model_attacks.copies import Copy, copied, drawn, mean_spikes
from snnfl.model_attacks.registry import ModelAttackError, ModelBudget, Theft, register, silent
from snnfl.private_snn import PublishedNetwork, advance, encoded
from snnfl.spiking.graph import Spike
from snnfl.threat import ModelView

RATE = 1e-3
"""Learning rate of Adam, which falls to zero by a cosine."""

PIECE = 128
"""Images per question to a network: a spiking one holds all its time steps."""


def standardised(logits: Tensor) -> Tensor:
    """Return logits ``[N, classes]`` with mean 0 over classes, and deviation 1 over all."""
    centred = logits - logits.mean(1, keepdim=True)
    return centred / centred.square().mean().sqrt().clamp_min(1e-12)


@torch.no_grad()
def answers(ask: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return what is answered to images, asked in pieces."""
    return torch.cat([ask(piece) for piece in torch.split(images, PIECE)])


def query_images(view: ModelView, kind: str, budget: ModelBudget, generator: torch.Generator) -> Tensor:
    """Return images to ask about: ``public`` or ``synthetic`` ones, at most as many as the budget allows."""
    public = None if view.public is None else view.public.inputs
    images = public if kind == "public" else view.synthetic
    if images is None:
        raise ModelAttackError(f"needs {kind}_images")
    return images[torch.randperm(len(images), generator=generator)[: budget.images]]


def follow(
    network: nn.Module,
    images: Tensor,
    targets: Tensor,
    loss: Callable[[Any, Tensor], Tensor],
    budget: ModelBudget,
    generator: torch.Generator,
    *,
    forward: Callable[[Tensor], Any] | None = None,
) -> None:
    """Train a network on the answers of another, in place.

    Args:
        network: Is trained as a whole.
        images: ``[N, *input_shape]``.
        targets: One for each image.
        loss: Of what ``forward`` gives for a batch, and the batch's targets.
        budget: Epochs and batch.
        generator: Draws batches.
        forward: Of the network; by default its logits.
    """
    compute = network if forward is None else forward
    steps = budget.epochs * -(-len(images) // budget.batch)
    optimiser = torch.optim.Adam(network.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for batch in _batches(len(images), budget, generator):
        optimiser.zero_grad()
        loss(compute(images[batch]), targets[batch]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()


def _batches(count: int, budget: ModelBudget, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(budget.epochs):
        yield from torch.split(torch.randperm(count, generator=generator), budget.batch)


def learn_logits(
    view: ModelView, network: nn.Module, images: Tensor, budget: ModelBudget, generator: torch.Generator
) -> None:
    """Train a network on the logits of the published one, in place.

    The mean squared error of both, standardised, and the cross-entropy of the class that they say: of the error alone a
    new network learns more slowly than of classes alone, which whoever has logits has, too.
    """
    if view.logits is None:
        raise ModelAttackError("needs logits")
    wanted = standardised(answers(view.logits, images))
    with torch.no_grad():
        scale = (network(images[:PIECE]) - network(images[:PIECE]).mean(1, keepdim=True)).std().clamp_min(1.0)
    follow(network, images, wanted * scale, _answer_error, budget, generator)


def _answer_error(found: Tensor, wanted: Tensor) -> Tensor:
    error = functional.mse_loss(found - found.mean(1, keepdim=True), wanted)
    return error + functional.cross_entropy(found, wanted.argmax(1))


def learn_labels(
    view: ModelView, network: nn.Module, images: Tensor, budget: ModelBudget, generator: torch.Generator
) -> None:
    """Train a network on the classes that the published one says, in place."""
    if view.labels is None:
        raise ModelAttackError("needs labels")
    follow(network, images, answers(view.labels, images), functional.cross_entropy, budget, generator)


def learn_rates(
    network: Copy, published: PublishedNetwork, images: Tensor, budget: ModelBudget, generator: torch.Generator
) -> None:
    """Train a network's hidden layers to give what the published one's neurons give in the mean over time, in place.

    The sum over layers of the mean squared error, each divided by the mean square of what the neurons give.

    Args:
        network: Of the same structure.
        published: The published network.
        images: ``[N, *input_shape]``.
        budget: Epochs and batch.
        generator: Draws batches, and the coding.
    """
    pieces = [mean_outputs(published, piece, generator) for piece in torch.split(images, PIECE)]
    wanted = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
    sizes = {name: each.square().mean().clamp_min(1e-12) for name, each in wanted.items()}
    everything = torch.arange(len(images))

    def error(found: dict[str, Tensor], which: Tensor) -> Tensor:
        terms = [(found[name] - wanted[name][which]).square().mean() / size for name, size in sizes.items()]
        return torch.stack(terms).sum()

    follow(network, images, everything, error, budget, generator, forward=network.values)


@torch.no_grad()
def mean_outputs(network: PublishedNetwork, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Return what each layer of neurons gives in the mean over all steps, ``[N, C, *space]``, by layer.

    Layer by layer the network is cut off behind it, and run with the same draws.
    """
    current = encoded(network, images / network.input_scale, network.steps, generator)
    found, nodes = dict[str, Tensor](), network.graph.nodes
    for number, node in enumerate(nodes, start=1):
        if isinstance(node, Spike):
            front = replace(network, graph=replace(network.graph, nodes=nodes[:number]))
            _, sums = advance(front, current, network.steps, {})
            found[node.name] = sums[node.name] / network.steps
    return found


def _fine_tuned(view: ModelView, kind: str, budget: ModelBudget, generator: torch.Generator) -> nn.Module:
    network = copied(view)
    learn_logits(view, network, query_images(view, kind, budget, generator), budget, generator)
    return network


def _matched(view: ModelView, kind: str, budget: ModelBudget, generator: torch.Generator) -> nn.Module:
    network, images = mean_spikes(view), query_images(view, kind, budget, generator)
    if view.network is None:
        raise ModelAttackError("needs neurons that fire")
    learn_rates(network, view.network, images, budget, generator)
    learn_logits(view, network, images, budget, generator)
    return network


def _asked_logits(view: ModelView, kind: str, budget: ModelBudget, generator: torch.Generator) -> nn.Module:
    network = drawn(view, generator)
    learn_logits(view, network, query_images(view, kind, budget, generator), budget, generator)
    return network


def _asked_labels(view: ModelView, kind: str, budget: ModelBudget, generator: torch.Generator) -> nn.Module:
    network = drawn(view, generator)
    learn_labels(view, network, query_images(view, kind, budget, generator), budget, generator)
    return network


WHITE_BOX = ("architecture", "weights", "logits")

WAYS = {
    "fine_tuning": (
        _fine_tuned, WHITE_BOX, None,
        "Copy the weights into a ReLU network, and train it further on the network's logits for {} images.",
    ),
    "spike_rates": (
        _matched, (*WHITE_BOX, "thresholds", "dynamics"), silent,
        "Train a copy until its layers answer as the neurons fire, then on the network's logits, for {} images.",
    ),
    "logits": (
        _asked_logits, ("architecture", "logits"), None,
        "Train a new ReLU network on the logits that the network answers to {} images.",
    ),
    "labels": (
        _asked_labels, ("architecture", "labels"), None,
        "Train a new ReLU network on the classes that the network answers to {} images.",
    ),
}  # fmt: skip
"""How a network is made, what that needs, what else, and in words; each is tried with public and synthetic images."""

SOURCES = {
    "fine_tuning": "this project",
    "spike_rates": "FitNets (Romero et al., ICLR 2015), with rates as hints",
    "logits": "Tramer et al., USENIX Security 2016; Hinton et al. 2015",
    "labels": "Orekondy et al., CVPR 2019 (Knockoff Nets)",
}


def _register(name: str, kind: str) -> None:
    make, needs, lacks, words = WAYS[name]

    def steal(view: ModelView, budget: ModelBudget, generator: torch.Generator) -> Theft:
        network = make(view, kind, budget, generator)
        return Theft(images=class_images(view, network, budget, generator), network=network)

    steal.__doc__, steal.__module__ = words.format(kind), __name__
    requires = lacks or (lambda view: None)
    register(f"{name}_{kind}", source=SOURCES[name], needs=(*needs, f"{kind}_images"), requires=requires)(steal)


for _name in WAYS:
    for _kind in ("public", "synthetic"):
        _register(_name, _kind)
