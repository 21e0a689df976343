"""A client's network before and after its local training, as its server knows it, and what both say of samples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from snnfl.attacks import biases
from snnfl.attacks.networks import Arrays, Network, network_of
from snnfl.threat import FederationView, ServerView

AT_ONCE = 256
"""Samples that a network is asked about together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What the networks of a round say of N samples.

    Attributes:
        before: Logits of the network that the client got, ``[N, classes]``.
        after: Of the one that it made of it, ``[N, classes]``.
        others: Of those that the other clients made of it, ``[N, classes]`` each.
    """

    before: Tensor
    after: Tensor
    others: tuple[Tensor, ...]


def start_of(view: ServerView) -> Arrays:
    """Return the arrays that a client starts with; private biases are guessed (:mod:`snnfl.attacks.biases`)."""
    guesses = biases.likeliest(view) if view.format.hides_biases else {}
    return {name: array.detach().float() for name, array in {**view.exchange.sent, **guesses}.items()}


def end_of(view: ServerView) -> Arrays:
    """Return the arrays that it ends with: as received, or recovered from a spiking update, biases included."""
    told = view.format.decode(view.exchange.received, view.exchange.sent, biases=view.format.hides_biases)
    return {**start_of(view), **{name: array.detach().float() for name, array in told.items()}}


@lru_cache(maxsize=1)
def answers_of(view: FederationView) -> tuple[Answers, ...]:
    """Ask the networks of every round. What is returned is kept for the next attack on the same view."""
    network = network_of(view.last.model, "eval")
    return tuple(
        Answers(
            before=logits(network, start_of(each.own), view.inputs),
            after=logits(network, end_of(each.own), view.inputs),
            others=tuple(logits(network, end_of(other), view.inputs) for other in each.others),
        )
        for each in view.rounds
    )


@torch.no_grad()
def logits(network: Network, arrays: Arrays, inputs: Tensor) -> Tensor:
    """Ask a network about samples ``[N, ...]``, some at a time."""
    return torch.cat([network(arrays, part) for part in torch.split(inputs, AT_ONCE)])
