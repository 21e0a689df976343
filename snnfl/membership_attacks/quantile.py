"""Quantile regression: how sure a network is of a sample that it wasn't trained on, guessed from the sample itself."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnfl.membership_attacks.confidence import labels_of, logit_confidence, target_of
from snnfl.membership_attacks.registry import MembershipError, register
from snnfl.threat import MembershipView

COMPONENTS = 32
"""Principal components of the samples that the regression sees, beside the label."""

FEWEST = 20
"""Samples of nobody that a regression can be fitted to."""

SMALLEST = 0.1
"""Of the fitted deviation, as a part of the mean one: a guess of none would make every surprise infinite."""


@register("quantile", source="Bertran et al., NeurIPS 2023, section 3", needs=("query", "labels", "distribution"))
def quantile(view: MembershipView, generator: torch.Generator) -> Tensor:
    """How far the target's confidence exceeds what is usual for such a sample of nobody, in deviations.

    The confidence of samples of nobody is taken to be normal, its mean and deviation functions of sample and label that
    gradient boosting fits: each quantile of it is then a threshold of its own for each sample.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor

    population = view.population
    if population is None or len(population.labels) < FEWEST:
        raise MembershipError(f"needs at least {FEWEST} samples of nobody")
    seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
    known, asked = _features(population.inputs, population.labels, view.inputs, labels_of(view), seed)
    of_nobody = logit_confidence(population.target.logits, population.labels).numpy()
    own = logit_confidence(target_of(view).logits, labels_of(view)).numpy()

    def fitted(values: NDArray[np.float64]) -> HistGradientBoostingRegressor:
        return HistGradientBoostingRegressor(max_iter=60, max_depth=4, random_state=seed).fit(known, values)

    mean = fitted(of_nobody)
    sizes = np.abs(of_nobody - mean.predict(known))
    deviation = np.maximum(fitted(sizes).predict(asked), max(SMALLEST * sizes.mean(), 1e-12))
    return torch.from_numpy((own - mean.predict(asked)) / deviation)


def _features(
    known: Tensor, known_labels: Tensor, asked: Tensor, asked_labels: Tensor, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return principal components and labels of both kinds of samples; the components are those of the first."""
    from sklearn.decomposition import PCA

    flat = [each.flatten(1).float().numpy() for each in (known, asked)]
    size = min(COMPONENTS, *flat[0].shape)
    reduce = PCA(size, svd_solver="randomized", random_state=seed).fit(flat[0])
    classes = int(max(known_labels.max(), asked_labels.max())) + 1
    hot = [np.eye(classes)[each.numpy()] for each in (known_labels, asked_labels)]
    both = [np.hstack([reduce.transform(x), y]) for x, y in zip(flat, hot, strict=True)]
    return both[0], both[1]
