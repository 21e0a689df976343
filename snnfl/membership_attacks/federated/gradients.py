"""Attacks by the gradient of a sample: an update is made of those of its members."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from snnfl.attacks.local import LocalTraining, decayed
from snnfl.attacks.networks import Arrays, Network, network_of
from snnfl.attacks.problem import decay_of, local_training, seen_gradient
from snnfl.membership_attacks.federated.networks import start_of
from snnfl.membership_attacks.federated.registry import register
from snnfl.threat import FederationView, RoundView, ServerView

AT_ONCE = 128
"""Samples whose gradients are in memory together, at most."""

VALUES = 2**24
"""Values of gradients that are in memory together: 64 MiB. Of large networks fewer samples fit."""

NEEDS = ("architecture", "loss", "norm_statistics", "update_statistics")
LI = "Li et al., ICLR 2023, section 3"


@dataclass(frozen=True, kw_only=True, eq=False)
class Gradients:
    """Products of N samples' gradients ``g``, at what the client got, and the K updates ``D`` of a round.

    Attributes:
        squares: ``|g|^2``, ``[N]``.
        products: ``<g, D>``, ``[K, N]``; the first row is that of the client that is asked about.
        lengths: ``|D|``, ``[K]``.
    """

    squares: Tensor
    products: Tensor
    lengths: Tensor

    @property
    def cosines(self) -> Tensor:
        """``<g, D> / (|g| |D|)``, ``[K, N]``; 0 where either is zero."""
        scale = self.squares.sqrt() * self.lengths[:, None]
        return torch.where(scale > 0, self.products / scale.clamp_min(1e-300), 0.0)


@register("gradient_cosine", source=LI, needs=NEEDS)
def gradient_cosine(view: FederationView, generator: torch.Generator) -> Tensor:
    """``cos(g, D)`` of a sample's gradient and the client's update, averaged over rounds."""
    return torch.stack([each.cosines[0] for each in gradients_of(view)]).mean(0)


@register("gradient_difference", source=LI, needs=(*NEEDS, "batch_size", "epochs", "learning_rate", "optimizer"))
def gradient_difference(view: FederationView, generator: torch.Generator) -> Tensor:
    """``|D|^2 - |D - g|^2``: what is left less of an update without the sample's gradient; averaged over rounds.

    An update is taken for the sum of its members' gradients, a step's batch and the epochs being divided out.
    """
    found = []
    for each, signals in zip(view.rounds, gradients_of(view), strict=True):
        known = each.own.knowledge
        per_sample = (known.batch_size or 1) * (1 - (known.momentum or 0.0)) / (known.epochs or 1)
        found.append(2 * per_sample * signals.products[0] - signals.squares)
    return torch.stack(found).mean(0)


@lru_cache(maxsize=1)
def gradients_of(view: FederationView) -> tuple[Gradients, ...]:
    """Compare samples with the updates of every round. What is returned is kept for the next attack on the view."""
    network = network_of(view.last.model, "eval")
    return tuple(_of_round(network, each, view.inputs, view.labels) for each in view.rounds)


def _of_round(network: Network, each: RoundView, inputs: Tensor, labels: Tensor) -> Gradients:
    updates = [update_of(client) for client in (each.own, *each.others)]
    return compared(network, start_of(each.own), updates, inputs, labels)


def compared(network: Network, arrays: Arrays, updates: Sequence[Arrays], inputs: Tensor, labels: Tensor) -> Gradients:
    """Compare samples' gradients with updates, some samples at a time.

    Args:
        network: What clients train, in evaluation mode.
        arrays: What the client got.
        updates: Sums of gradients; the arrays of the first are compared.
        inputs: ``[N, *input_shape]``.
        labels: ``[N]``.
    """
    names = tuple(updates[0])
    columns = torch.stack([torch.cat([of[name].flatten() for name in names]) for of in updates], dim=1)
    squares, products = list[Tensor](), list[Tensor]()
    for rows in _rows(network, arrays, names, inputs, labels):
        squares.append(rows.double().square().sum(1))
        products.append((rows @ columns).double().T)
    return Gradients(
        squares=torch.cat(squares), products=torch.cat(products, dim=1), lengths=columns.double().norm(dim=0)
    )


def _rows(network: Network, arrays: Arrays, names: Sequence[str], inputs: Tensor, labels: Tensor) -> Iterator[Tensor]:
    """Yield the flat gradients of a part of the samples, ``[part, parameters]``."""
    fixed = {name: array for name, array in arrays.items() if name not in names}
    free = {name: arrays[name] for name in names}

    def loss(given: Arrays, sample: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(network({**fixed, **given}, sample[None]), label[None])

    slopes = vmap(grad(loss), in_dims=(None, 0, 0))
    part = max(1, min(AT_ONCE, VALUES // max(1, sum(array.numel() for array in free.values()))))
    for some, theirs in zip(torch.split(inputs, part), torch.split(labels, part), strict=True):
        found = slopes(free, some, theirs)
        yield torch.cat([found[name].flatten(1) for name in names], dim=1)


def update_of(view: ServerView) -> Arrays:
    """Return a client's update as a sum of gradients: without weight decay, as far as that is known."""
    known = view.knowledge
    whole = known.steps is not None and {"learning_rate", "optimizer"} <= known.facts
    local = local_training(view, None if whole else 1)
    seen, start = seen_gradient(view, local.learning_rate), start_of(view)
    decay = decay_of(view, seen, local, known.steps or 1)
    return {name: array - decay * start[name] for name, array in seen.items()}


def without_decay(change: Arrays, start: Arrays, local: LocalTraining, steps: int) -> Arrays:
    """Take the weight decay of ``steps`` steps out of a change per learning rate."""
    decay = decayed(local, steps)
    return {name: array - decay * start[name] for name, array in change.items()}
