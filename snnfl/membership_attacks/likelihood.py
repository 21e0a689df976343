"""LiRA: the likelihoods of the target's confidence under shadows that were, and were not, trained on a sample.

Carlini et al., "Membership inference attacks from first principles", S&P 2022. Confidences are logit-scaled. With fewer
than 64 shadows, all samples share a variance, as in the authors' code (``fix_variance``); means are a sample's own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from snnfl.membership_attacks.confidence import labels_of, logit_confidence, mean_where, members_of, target_of
from snnfl.membership_attacks.registry import MembershipError, register
from snnfl.threat import MembershipView

OWN_VARIANCE = 64
"""Shadows from which on each sample has variances of its own (Carlini et al., section VI-A)."""

NEEDS = ("query", "labels", "architecture", "shadow_data")


@register("lira_online", source="Carlini et al., S&P 2022, algorithm 1", needs=NEEDS)
def lira_online(view: MembershipView, generator: torch.Generator) -> Tensor:
    """``log N(c; in) - log N(c; out)`` of the target's confidence c, by shadows with and without the sample."""
    own, of_shadows, members = _confidences(view)
    mean_in, mean_out = _both_means(of_shadows, members)
    inside = _log_density(own, mean_in, _deviation(of_shadows, members))
    return inside - _log_density(own, mean_out, _deviation(of_shadows, ~members))


@register("lira_offline", source="Carlini et al., S&P 2022, equation 4", needs=NEEDS)
def lira_offline(view: MembershipView, generator: torch.Generator) -> Tensor:
    """``log Pr[Z < c]`` of the target's confidence c, for Z as of shadows without the sample."""
    own, of_shadows, members = _confidences(view)
    if members.all():
        raise MembershipError("every shadow was trained on every sample; give some that were not")
    mean_out = mean_where(of_shadows, ~members)
    mean_out = torch.where(mean_out.isnan(), of_shadows[~members].mean(), mean_out)
    standard: Tensor = (own - mean_out) / _deviation(of_shadows, ~members)
    found: Tensor = torch.special.log_ndtr(standard)
    return found


def _confidences(view: MembershipView) -> tuple[Tensor, Tensor, Tensor]:
    """Return the target's ``[N]`` and the shadows' ``[S, N]`` confidences, and the shadows' bits."""
    labels = labels_of(view)
    of_shadows = torch.stack([logit_confidence(shadow.signals.logits, labels) for shadow in view.shadows])
    return logit_confidence(target_of(view).logits, labels), of_shadows, members_of(view.shadows)


def _both_means(values: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Return each sample's mean in and out, ``[N]`` each.

    Where a sample is in all shadows or in none, its missing mean is the other one, moved by what being a member changes
    on average.
    """
    mean_in, mean_out = mean_where(values, members), mean_where(values, ~members)
    shift = (mean_in - mean_out).nanmean()
    if not torch.isfinite(shift):
        raise MembershipError("no sample has shadows on both sides; give at least two shadows, of random halves")
    mean_in, mean_out = mean_in.nan_to_num(nan=torch.inf), mean_out.nan_to_num(nan=torch.inf)
    return (
        torch.where(mean_in.isinf(), mean_out + shift, mean_in),
        torch.where(mean_out.isinf(), mean_in - shift, mean_out),
    )


def _deviation(values: Tensor, where: Tensor) -> Tensor:
    """Return the standard deviation of the values under a mask: of all together, or ``[N]`` with enough shadows."""
    together = values[where].std(correction=0)
    if len(values) < OWN_VARIANCE:
        return together.clamp_min(1e-30)
    mean = mean_where(values, where)
    own = mean_where((values - mean).square(), where).sqrt()
    return torch.where(where.sum(0) > 1, own, together).clamp_min(1e-30)


def _log_density(value: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    return -0.5 * ((value - mean) / deviation).square() - deviation.log() - 0.5 * math.log(2 * math.pi)
