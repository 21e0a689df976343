"""Whether a score of membership means what it says: members that differ in nothing else, and equal gaps compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from snnfl.auditing.membership import Trials
from snnfl.metrics.roc import Estimate, auc, mean_of

FOLDS = 5
COMPONENTS = 32
"""Principal components of the samples that the classifier sees, beside the label."""


def blind_classifier(trials: Trials, *, level: float = 0.99) -> Estimate:
    """Return the AUC of a classifier that sees the samples themselves, and no network: it must be at chance.

    Logistic regression on the principal components of the samples and on their labels, cross-validated, tells members
    from others, target by target. Where it succeeds, members differ from others in more than having been trained on (in
    their labels, their source, or how they were prepared), and no attack's score means anything.

    Args:
        trials: Inputs, labels and the truth.
        level: Of the interval; high, since one is looked at in every study.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    shown, found = _shown(trials), []
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    for target in trials.attacked:
        members = trials.networks[target].members.numpy()
        if min(members.sum(), (~members).sum()) < FOLDS:
            continue
        guess = cross_val_predict(
            LogisticRegression(max_iter=300), shown, members, cv=folds, method="decision_function"
        )
        found.append(auc(guess, members))
    return mean_of(found or [0.5], level=level)


def _shown(trials: Trials) -> NDArray[np.float64]:
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    flat = trials.inputs.flatten(1).float().numpy()
    size = min(COMPONENTS, *flat.shape)
    reduced = PCA(size, svd_solver="randomized", random_state=0).fit_transform(flat)
    hot = np.eye(int(trials.labels.max()) + 1)[trials.labels.numpy()]
    scaled: NDArray[np.float64] = StandardScaler().fit_transform(np.hstack([reduced, hot]))
    return scaled


def at_gap(gap: float, gaps: Sequence[Sequence[float]], values: Sequence[Sequence[float]]) -> Estimate | None:
    """Return what attacks find of networks whose train and test accuracies differ by ``gap`` on average.

    Networks that overfit less leak less, whatever they are made of: two kinds are compared where their gaps are equal.
    A kind has been trained for several lengths; each target's value at the gap is interpolated between the two lengths
    whose mean gaps lie around it.

    Args:
        gap: Train accuracy less test accuracy.
        gaps: Of each target at each length, ``[targets][lengths]``.
        values: What the attack finds there, likewise.

    Returns:
        Mean over the targets with its interval; ``None`` if the gap lies beyond what the kind has reached.
    """
    means, found = np.mean(np.asarray(gaps, dtype=np.float64), axis=0), np.asarray(values, dtype=np.float64)
    order = np.argsort(means, kind="stable")
    means, found = means[order], found[:, order]
    if len(means) < 2 or not means[0] <= gap <= means[-1]:
        return None
    return mean_of([float(np.interp(gap, means, of_target)) for of_target in found])


def shared_gap(gaps: Sequence[Sequence[Sequence[float]]]) -> float | None:
    """Return the middle of the mean gaps that all kinds of networks pass through; ``None`` if there is none.

    Args:
        gaps: Of each kind, target and length: ``[kinds][targets][lengths]``.
    """
    means = [np.mean(np.asarray(of_kind), axis=0) for of_kind in gaps]
    low, high = max(m.min() for m in means), min(m.max() for m in means)
    return float((low + high) / 2) if low < high else None
