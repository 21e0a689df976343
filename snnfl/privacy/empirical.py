"""Lower bounds of epsilon, by attack: what canaries that were found prove against a mechanism.

An epsilon that an accountant proves is an upper bound, of the mechanism that it was told of. A lower bound by attack is
of what really runs. If it is the larger one, the implementation is not the mechanism, or the proof is wrong.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

PARTS = (0.02, 0.05, 0.1, 0.25, 0.5)
"""Of the canaries, those with the highest scores that are guessed to be in, and as many with the lowest to be out. Each
is a test of its own, so each has a fifth of the error."""

HIGHEST, PRECISION = 60.0, 1e-3
"""Up to which an epsilon is sought, and how closely."""


def one_run_bound(scores: ArrayLike, included: ArrayLike, *, delta: float, confidence: float = 0.95) -> float:
    """Return an epsilon that a mechanism exceeds with some confidence, from one run with many canaries.

    Each canary was in the run with probability 1/2, independently of the others (Steinke, Nasr & Jagielski, "Privacy
    auditing with one (1) training run", NeurIPS 2023, algorithm 1 and theorem 5.2).

    Args:
        scores: Of each canary; higher where it is more likely in.
        included: Whether it was.
        delta: Of the mechanism.
        confidence: Probability with which the bound holds, over the run's randomness.

    Returns:
        The largest epsilon that is refuted; 0 if none is.

    Example:
        >>> truth = [True] * 50 + [False] * 50
        >>> 3 < one_run_bound([float(bit) for bit in truth], truth, delta=1e-5) < 3.1
        True
    """
    order = np.argsort(np.asarray(scores, float), kind="stable")
    truth, error = np.asarray(included, bool)[order], (1 - confidence) / len(PARTS)
    best = 0.0
    for part in PARTS:
        half = int(part * len(truth))
        correct = int(truth[len(truth) - half :].sum() + (~truth[:half]).sum()) if half else 0
        best = max(best, _largest_refuted(correct, 2 * half, len(truth), delta, error))
    return best


def _largest_refuted(correct: int, guesses: int, canaries: int, delta: float, error: float) -> float:
    low, high = 0.0, HIGHEST
    if not guesses or p_value(0.0, correct, guesses, canaries, delta) > error:
        return 0.0
    while high - low > PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(middle, correct, guesses, canaries, delta) <= error else (low, middle)
    return low


def p_value(epsilon: float, correct: int, guesses: int, canaries: int, delta: float) -> float:
    """Return how likely so many correct guesses are, at most, under an (epsilon, delta).

    ``P[B >= v] + 2 m delta max_i P[v > B >= v - i] / i`` with ``B ~ Binomial(r, e^epsilon / (1 + e^epsilon))`` (Steinke
    et al. 2023, theorem 5.2).

    Args:
        epsilon: Of the mechanism.
        correct: Guesses ``v`` that were right.
        guesses: All of them, ``r``.
        canaries: Those that could have been guessed, ``m``.
        delta: Of the mechanism.
    """
    from scipy import special  # as in :mod:`snnfl.privacy.noise`: what no run needs is imported by nobody's

    if not correct:
        return 1.0
    right = 1 / (1 + np.exp(-epsilon))
    above = float(special.bdtrc(correct - 1, guesses, right))  # P[B > v - 1]
    steps = np.arange(1, correct + 1)
    below = special.bdtrc(correct - 1 - steps, guesses, right)
    below[-1] = 1.0  # P[B >= 0]
    return min(1.0, above + 2 * canaries * delta * float(((below - above) / steps).max()))


def trials_bound(with_it: ArrayLike, without: ArrayLike, *, delta: float, confidence: float = 0.95) -> float:
    """Return an epsilon that a mechanism exceeds with some confidence, from many runs with and without a canary.

    ``P[score > t | in] <= e^epsilon P[score > t | out] + delta`` for every ``t``, and the same the other way round. The
    threshold is chosen on every other run, the two probabilities are bounded on the others (Clopper & Pearson 1934), so
    that the choice costs no confidence; Jagielski et al. 2020, Nasr et al. 2021.

    Args:
        with_it: Scores of runs with the canary.
        without: Scores of runs without it.
        delta: Of the mechanism.
        confidence: Probability with which the bound holds.
    """
    inside, outside = np.asarray(with_it, float), np.asarray(without, float)
    best: tuple[float, float, int] = (0.0, 0.0, 1)
    for sign in (1, -1):
        one, other = (inside, outside) if sign == 1 else (-outside, -inside)
        for threshold in np.quantile(np.concatenate([one[::2], other[::2]]), np.linspace(0.5, 0.9995, 200)):
            found = _refuted(one[::2] > threshold, other[::2] > threshold, delta, confidence)
            best = max(best, (found, float(threshold), sign))
    _, threshold, sign = best
    one, other = (inside, outside) if sign == 1 else (-outside, -inside)
    return _refuted(one[1::2] > threshold, other[1::2] > threshold, delta, confidence)


def _refuted(hits: NDArray[np.bool_], alarms: NDArray[np.bool_], delta: float, confidence: float) -> float:
    from scipy import special  # as above

    error = (1 - confidence) / 2
    hit, alarm = int(hits.sum()), int(alarms.sum())
    least = float(special.betaincinv(hit, len(hits) - hit + 1, error)) if hit else 0.0
    most = 1.0 if alarm == len(alarms) else float(special.betaincinv(alarm + 1, len(alarms) - alarm, 1 - error))
    return float(max(0.0, np.log(max(least - delta, 1e-300) / most)))
