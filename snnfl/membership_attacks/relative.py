"""RMIA and its relatives: how much surer of a sample the target is than shadows are.

Zarifzadeh et al., "Low-cost high-power membership inference attacks", ICML 2024. With ``p(x|t)`` the probability that
network ``t`` gives the label of ``x``, a sample's ratio is ``p(x|target) / p(x)``, where ``p(x)`` is its mean over
networks with and without the sample. The score is the part of samples ``z`` of nobody whose ratio is smaller.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snnfl.membership_attacks.confidence import (
    labels_of,
    log_confidence,
    mean_where,
    members_of,
    target_of,
    without_ties,
)
from snnfl.membership_attacks.registry import MembershipError, register
from snnfl.membership_attacks.thresholds import share_below
from snnfl.threat import MembershipView

OFFLINE = 0.33
"""``a`` of ``p_in = a p_out + 1 - a``, by which the offline attack guesses what it cannot train (section 3.2)."""

SMALLEST = 1e-300
"""Of a probability that divides."""

NEEDS = ("query", "labels", "architecture", "shadow_data", "distribution")


@register("rmia_online", source="Zarifzadeh et al., ICML 2024, algorithm 1", needs=NEEDS)
def rmia_online(view: MembershipView, generator: torch.Generator) -> Tensor:
    """The part of samples of nobody whose confidence exceeds that of shadows by less than the sample's does."""
    labels = labels_of(view)
    return _relative(view, log_confidence(target_of(view).logits, labels).exp(), _of_shadows(view).exp(), online=True)


@register("rmia", source="Zarifzadeh et al., ICML 2024, section 3.2", needs=NEEDS)
def rmia(view: MembershipView, generator: torch.Generator) -> Tensor:
    """As rmia_online, of shadows without the sample alone; what those with it would say is guessed."""
    labels = labels_of(view)
    return _relative(view, log_confidence(target_of(view).logits, labels).exp(), _of_shadows(view).exp(), online=False)


@register(
    "attack_r", source="Ye et al., CCS 2022, section 4.3", needs=("query", "labels", "architecture", "shadow_data")
)
def attack_r(view: MembershipView, generator: torch.Generator) -> Tensor:
    """The part of shadows without the sample that are less sure of it than the target is."""
    own, of_shadows = log_confidence(target_of(view).logits, labels_of(view)), _of_shadows(view)
    out = ~members_of(view.shadows)
    shares = mean_where((own >= of_shadows).double(), out)
    surer = own - torch.where(out.any(0), mean_where(of_shadows, out), of_shadows.mean(0))
    return without_ties(shares.nan_to_num(nan=0.5), 1 / len(view.shadows), surer)


@register("input_dropout", source="Guan et al., UAI 2025, arXiv 2502.13191", needs=(*NEEDS, "perturbed"))
def input_dropout(view: MembershipView, generator: torch.Generator) -> Tensor:
    """As rmia, of confidences that are averaged over samples with blanked parts."""
    labels = labels_of(view)
    signals = [target_of(view), *(shadow.signals for shadow in view.shadows)]
    blanked = [each.perturbed for each in signals if each.perturbed is not None]
    if len(blanked) < len(signals):
        raise MembershipError("a shadow was not asked about altered samples; ask all networks the same")
    means = torch.stack([log_confidence(each, labels).exp().mean(0) for each in blanked])
    return _relative(view, means[0], means[1:], online=False)


def _of_shadows(view: MembershipView) -> Tensor:
    labels = labels_of(view)
    return torch.stack([log_confidence(shadow.signals.logits, labels) for shadow in view.shadows])


def _relative(view: MembershipView, own: Tensor, of_shadows: Tensor, *, online: bool) -> Tensor:
    """Return RMIA's score; ties are ordered by the ratio.

    Args:
        view: Gives the bits and the population.
        own: The target's probabilities of the labels, ``[N]``.
        of_shadows: The shadows', ``[S, N]``.
        online: Whether shadows with a sample count too.
    """
    ratios = own / marginal(of_shadows, members_of(view.shadows), online=online)
    of_nobody = population_ratios(view, online=online)
    return without_ties(share_below(of_nobody, ratios), 1 / len(of_nobody), ratios.log())


def marginal(probabilities: Tensor, members: Tensor, *, online: bool) -> Tensor:
    """Return ``p(x)``, ``[N]``: the mean of what shadows with and without the sample say, half and half.

    Offline the former is guessed, ``p_in = a p_out + 1 - a``. So is a side that has no shadow, which happens, since
    each shadow's samples are drawn by themselves.

    Args:
        probabilities: Of the shadows, ``[S, N]``.
        members: Their bits, bool ``[S, N]``.
        online: Whether shadows with the sample count.
    """
    inside, outside = mean_where(probabilities, members), mean_where(probabilities, ~members)
    outside = torch.where(outside.isnan(), (inside - 1 + OFFLINE).clamp_min(0) / OFFLINE, outside)
    guessed = OFFLINE * outside + 1 - OFFLINE
    inside = torch.where(inside.isnan(), guessed, inside) if online else guessed
    return ((inside + outside) / 2).clamp_min(SMALLEST)


def population_ratios(view: MembershipView, *, online: bool) -> Tensor:
    """Return ``p(z|target) / p(z)`` of samples of nobody, ``[M]``; no shadow was trained on them."""
    population = view.population
    known = [shadow.population for shadow in view.shadows if shadow.population is not None]
    if population is None or not known:
        raise MembershipError("no shadow was asked about the samples of nobody; ask all networks the same")
    of_shadows = torch.stack([log_confidence(each.logits, population.labels).exp() for each in known])
    own = log_confidence(population.target.logits, population.labels).exp()
    mean = of_shadows.mean(0)
    return own / (mean.clamp_min(SMALLEST) if online else ((1 + OFFLINE) * mean + 1 - OFFLINE) / 2)
