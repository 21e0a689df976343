"""SNFL's detection: poisoned clients by their firing thresholds (section 5.4, Fig. 3B and C).

The paper says that the distance of a client's set of thresholds to "the cluster center" tells poisoned clients (above
103.53) from normal ones (below 17.62). It names neither the clustering nor the limit. Here clients are divided into two
clusters by average linkage, which has no random start; the centre is that of the larger one, honest clients being
presumed more; the limit is that of every detector (:func:`~snnfl.detection.outliers.outliers`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from snnfl.detection.outliers import outliers
from snnfl.detection.registry import Findings, register
from snnfl.detection.view import RoundView

SNFL = "SNFL, section 5.4 and Fig. 3B, C"


@register("thresholds", source=SNFL, needs_thresholds=True)
def by_thresholds(view: RoundView) -> Findings:
    """Score by the Euclidean distance of the thresholds, as they are, to the centre of the larger cluster."""
    return _by_distance(view.layers, view.layers)


@register("log_thresholds", source=f"{SNFL}, on a logarithmic scale", needs_thresholds=True)
def by_log_thresholds(view: RoundView) -> Findings:
    """Score likewise by the thresholds' logarithms, so that the layer with the largest ones doesn't decide alone."""
    return _by_distance(view.layers.log(), view.layers)


def _by_distance(values: Tensor, layers: Tensor) -> Findings:
    scores = torch.linalg.vector_norm(values - larger_cluster_centre(values), dim=1)
    last_two = layers[:, -2:] if layers.shape[1] > 1 else layers.expand(-1, 2)
    return Findings(scores=scores, flagged=outliers(scores), points=last_two)


def larger_cluster_centre(values: Tensor) -> Tensor:
    """Return the mean of the larger of two clusters; of two equally large ones that of the first client's.

    Args:
        values: Finite, ``[clients, features]``, at least three clients.
    """
    from sklearn.cluster import AgglomerativeClustering  # a second to import

    found = torch.from_numpy(AgglomerativeClustering(n_clusters=2, linkage="average").fit_predict(values.numpy()))
    first = found == found[0]
    return values[first if 2 * int(first.sum()) >= len(found) else ~first].mean(dim=0)
