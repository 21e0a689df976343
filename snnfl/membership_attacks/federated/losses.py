"""Attacks by the loss of a sample: a client's network knows what it was trained on better than the one that it got."""

from __future__ import annotations

import torch
from torch import Tensor

from snnfl.membership_attacks.confidence import log_confidence
from snnfl.membership_attacks.federated.networks import answers_of
from snnfl.membership_attacks.federated.registry import register
from snnfl.threat import FederationView

NEEDS = ("architecture", "loss", "norm_statistics")


@register("round_loss", source="Yeom et al., CSF 2018, section 3.2, on the client's network", needs=NEEDS)
def round_loss(view: FederationView, generator: torch.Generator) -> Tensor:
    """``-L(x; returned)``: how small a sample's loss is after the client's local training."""
    return log_confidence(answers_of(view)[-1].after, view.labels)


@register("loss_difference", source="FedMIA (Zhu et al. 2024), section 2, loss-based attacks", needs=NEEDS)
def loss_difference(view: FederationView, generator: torch.Generator) -> Tensor:
    """``L(x; sent) - L(x; returned)``: by how much the client's local training lowers a sample's loss."""
    return _gained(view)[-1]


@register(
    "loss_trajectory",
    source="FedMIA (Zhu et al. 2024), section 2, loss series",
    needs=(*NEEDS, "earlier_rounds"),
)
def loss_trajectory(view: FederationView, generator: torch.Generator) -> Tensor:
    """The same, added up over the rounds that the client took part in."""
    return _gained(view).sum(0)


def _gained(view: FederationView) -> Tensor:
    """Return by how much each round's local training lowers the loss, ``[rounds, N]``."""
    return torch.stack(
        [
            log_confidence(each.after, view.labels) - log_confidence(each.before, view.labels)
            for each in answers_of(view)
        ]
    )
