"""Detectors that look at what a client changed in the weights; they need no spiking network."""

from __future__ import annotations

import torch
from torch import Tensor

from snnfl.detection.outliers import outliers
from snnfl.detection.registry import Findings, register
from snnfl.detection.view import RoundView

ROUNDING = 1e-12
"""A cosine distance below this is zero: what equal directions differ by when they are computed."""


@register("norm", source="Sun et al. 2019, section 4: a backdoor that survives averaging needs a large update")
def by_norm(view: RoundView) -> Findings:
    """Score by the L2 norm of the change."""
    scores = torch.linalg.vector_norm(view.changes, dim=1)
    return Findings(scores=scores, flagged=outliers(scores))


@register("cosine", source="Munoz-Gonzalez et al. 2019 (AFA), section 3.2: similarity to the aggregate")
def by_cosine(view: RoundView) -> Findings:
    """Score by one minus the cosine between a change and the mean change, weighted by examples."""
    weights = torch.tensor(view.examples, dtype=torch.float64)
    scores = cosine_distances(view.changes, (weights @ view.changes / weights.sum())[None])[:, 0]
    return Findings(scores=scores, flagged=outliers(scores))


@register("krum", source="Blanchard et al. 2017, section 4")
def by_krum(view: RoundView) -> Findings:
    """Score by the sum of squared distances to the ``n - f - 2`` nearest others.

    ``f`` is the largest number of attackers that Krum withstands, ``2 f + 2 < n``. Krum itself only takes the client
    with the smallest score; that one with a large score is an attacker is our reading.
    """
    count = len(view.changes)
    squares = torch.cdist(view.changes, view.changes, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    nearest = max(1, count - (count - 3) // 2 - 2)
    scores = squares.sort(dim=1).values[:, 1 : nearest + 1].sum(dim=1)  # the first one is the client itself
    return Findings(scores=scores, flagged=outliers(scores))


@register("hdbscan", source="Nguyen et al. 2022 (FLAME), section 4.2")
def by_hdbscan(view: RoundView) -> Findings:
    """Flag whom HDBSCAN on pairwise cosine distances leaves out of the one cluster of more than half of the clients.

    As in FLAME: smallest cluster ``n/2 + 1``, one neighbour, a single cluster allowed. The score is the mean distance
    to the cluster's members. Where there is no cluster nobody is flagged, and everybody counts as a member.
    """
    from sklearn.cluster import HDBSCAN  # a second to import

    count = len(view.changes)
    distances = cosine_distances(view.changes, view.changes).fill_diagonal_(0)
    distances = (distances + distances.T) / 2
    clustering = HDBSCAN(
        min_cluster_size=count // 2 + 1, min_samples=1, allow_single_cluster=True, metric="precomputed", copy=True
    )
    members = torch.from_numpy(clustering.fit_predict(distances.numpy())) >= 0
    if not members.any():
        members = torch.ones(count, dtype=torch.bool)
    return Findings(scores=distances[:, members].mean(dim=1), flagged=~members)


def cosine_distances(one: Tensor, other: Tensor) -> Tensor:
    """Return one minus the cosine between each row of either, ``[rows of one, rows of the other]``, from 0 to 2."""
    distances = 1 - unit(one) @ unit(other).T
    return torch.where(distances < ROUNDING, 0, distances)


def unit(changes: Tensor) -> Tensor:
    """Scale each row to norm 1; one of zeros stays, and has the cosine 0 with all."""
    largest = changes.abs().amax(dim=1, keepdim=True)  # whose square may not be representable
    scaled = changes / torch.where(largest > 0, largest, 1)
    norms = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / torch.where(norms > 0, norms, 1)
