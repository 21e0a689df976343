"""Made-up clients whose presence in a federation is to be guessed from what it releases."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from snnfl.privacy.empirical import one_run_bound
from snnfl.privacy.noise import Stream


class Canaries:
    """Updates in directions that no two of them share, each in the run with probability 1/2.

    Canary ``j`` moves a random set of coordinates, by ``C / sqrt(k)`` each with random signs: a vector of the longest
    length that clipping leaves, orthogonal to all others. Real updates and noise have next to nothing in its direction,
    so what the released sums have there tells whether it was in (after Andrew et al., "One-shot empirical privacy
    estimation for federated learning", ICLR 2024).

    Args:
        count: How many; at most one per coordinate.
        size: Length of an update's vector.
        key: Decides directions, who is in, and in which rounds each is drawn.

    Raises:
        ValueError: For more canaries than coordinates.
    """

    def __init__(self, count: int, size: int, key: bytes) -> None:
        if count > size:
            raise ValueError(f"{count} canaries: an update has {size} numbers, and each canary needs one of its own")
        self.count, self._key = count, key
        stream = Stream(key, "canaries")
        each = size // max(count, 1)
        self._places = np.argsort(stream.uniform(size))[: each * count].reshape(count, each)
        self._values = np.where(stream.uniform(each * count) < 0.5, 1.0, -1.0).reshape(count, each) / np.sqrt(
            max(each, 1)
        )
        self.included = stream.uniform(count) < 0.5
        self.scores = np.zeros(count)

    def updates(self, server_round: int, rate: float, size: int) -> NDArray[np.float64]:
        """Return the sum of the unit updates of those that are in and drawn for a round."""
        drawn = self.included & (Stream(self._key, "canary cohort", server_round).uniform(self.count) < rate)
        total = np.zeros(size)
        total[self._places[drawn]] = self._values[drawn]
        return total

    def observe(self, released: NDArray[np.float64]) -> None:
        """Add what a released sum, over the clipping norm, has in each canary's direction to its score."""
        self.scores = self.scores + (released[self._places] * self._values).sum(1)

    def bound(self, delta: float, confidence: float = 0.95) -> float:
        """Return the epsilon that the scores so far refute."""
        return one_run_bound(self.scores, self.included, delta=delta, confidence=confidence)
