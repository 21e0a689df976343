"""Attacks that need no shadows: how sure the target is of a sample, by itself or against samples of nobody."""

from __future__ import annotations

import torch
from torch import Tensor

from snnfl.membership_attacks.confidence import labels_of, log_confidence, target_of, without_ties
from snnfl.membership_attacks.registry import register
from snnfl.threat import MembershipView


@register("loss", source="Yeom et al., CSF 2018, section III-A", needs=("query", "labels"))
def loss(view: MembershipView, generator: torch.Generator) -> Tensor:
    """The smaller the target's loss on a sample, the likelier it was trained on it."""
    return log_confidence(target_of(view).logits, labels_of(view))


@register("attack_p", source="Ye et al., CCS 2022, section 4.2", needs=("query", "labels", "distribution"))
def attack_p(view: MembershipView, generator: torch.Generator) -> Tensor:
    """The part of samples of nobody on which the target's loss is larger: one threshold for a network."""
    own = log_confidence(target_of(view).logits, labels_of(view))
    return without_ties(share_below(_of_population(view), own), 1 / len(_of_population(view)), own)


def _of_population(view: MembershipView) -> Tensor:
    if view.population is None:
        raise ValueError("needs distribution")
    return log_confidence(view.population.target.logits, view.population.labels)


def share_below(values: Tensor, levels: Tensor) -> Tensor:
    """Return which part of ``values`` ``[M]`` lies strictly below each of ``levels`` ``[N]``: float64 ``[N]``."""
    ordered = values.sort().values
    return torch.searchsorted(ordered, levels.contiguous()).double() / len(values)
