"""FedMIA: the other clients' updates of a round show what an update looks like that wasn't made of the sample.

Zhu et al., "FedMIA: An Effective Membership Inference Attack Exploiting 'All for One' Principle in Federated Learning",
arXiv 2402.06289. A measurement of the sample on each other client is taken to be normal; the score is how improbably
large that of the attacked client is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from snnfl.membership_attacks.confidence import logit_confidence
from snnfl.membership_attacks.federated import gradients, losses
from snnfl.membership_attacks.federated.gradients import gradients_of
from snnfl.membership_attacks.federated.networks import answers_of
from snnfl.membership_attacks.federated.registry import register
from snnfl.membership_attacks.likelihood import OWN_VARIANCE
from snnfl.threat import FederationView, ThreatModelError

FEDMIA = "FedMIA (Zhu et al. 2024), section 3"


@register("fedmia_loss", source=f"{FEDMIA}, FedMIA-I", needs=(*losses.NEEDS, "other_clients", "individual"))
def fedmia_loss(view: FederationView, generator: torch.Generator) -> Tensor:
    """How improbable the client's confidence of a sample is, by that of the other clients' networks."""
    of_rounds = [
        (logit_confidence(each.after, view.labels), [logit_confidence(other, view.labels) for other in each.others])
        for each in answers_of(view)
    ]
    return _improbable(of_rounds)


@register("fedmia_cosine", source=f"{FEDMIA}, FedMIA-II", needs=(*gradients.NEEDS, "other_clients", "individual"))
def fedmia_cosine(view: FederationView, generator: torch.Generator) -> Tensor:
    """How improbable the cosine of its gradient and the client's update is, by those of the other clients' updates."""
    return _improbable([(each.cosines[0], list(each.cosines[1:])) for each in gradients_of(view)])


def _improbable(of_rounds: Sequence[tuple[Tensor, Sequence[Tensor]]]) -> Tensor:
    """Return ``sum_r log Pr[M < m] - log Pr[M > m]`` of the client's measurement m, for M as of others, ``[N]``.

    In one round it ranks samples as the paper's ``Pr[M < m]`` does. Over rounds log odds are added where the paper adds
    probabilities, which can't tell what is very improbable from what is more so. As for LiRA, all samples share a
    variance below :data:`~snnfl.membership_attacks.likelihood.OWN_VARIANCE` clients, means are a sample's own.

    Args:
        of_rounds: Measurement ``[N]`` of the client and of each other client of a round.

    Raises:
        ThreatModelError: If no round has two other clients whose measurements are finite.
    """
    found = []
    for own, others in of_rounds:
        rows = [row.double() for row in others if bool(torch.isfinite(row).all())]
        if len(rows) < 2:
            continue
        values = torch.stack(rows)
        together = (values - values.mean(0)).square().sum() / (values.numel() - values.shape[1])
        variance = values.var(0) if len(rows) >= OWN_VARIANCE else together
        standard = (own.double() - values.mean(0)) / variance.sqrt().clamp_min(1e-30)
        found.append(torch.special.log_ndtr(standard) - torch.special.log_ndtr(-standard))
    if not found:
        raise ThreatModelError("needs a round with two other clients of finite networks")
    return torch.stack(found).sum(0)
