"""Noise of whole numbers that clients add in shares, within the masks of secure aggregation.

Kairouz, Liu & Steinke, "The distributed discrete Gaussian mechanism for federated learning with secure aggregation",
ICML 2021, with the noise of Agarwal, Kairouz & Liu, "The Skellam mechanism for differentially private federated
learning", NeurIPS 2021: sums of Skellam numbers are Skellam numbers, so that shares add up to exactly the noise that is
proven.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from snnfl.privacy.noise import Stream

STEPS = 64.0
"""Steps of the grid in the clipping norm, in units of ``sqrt(d)`` for ``d`` numbers: rounding to it lengthens a vector
by less than a part in a thousand."""

ORDERS = (*range(2, 64), 72, 80, 96, 128, 192, 256, 512, 1024)
"""Renyi orders; the bound of the Skellam mechanism is of whole ones."""

TAIL = 12.0
"""Deviations within which all noise of a run lies, but for 1e-32 of a number."""

SHORTER = math.exp(-0.5)
"""Probability that rounding makes a vector longer than :func:`lengthened` says; it is then rounded anew."""


def steps_of(length: int) -> float:
    """Return in how many steps of the grid the clipping norm is cut."""
    return STEPS * math.sqrt(length)


def lengthened(length: int) -> float:
    """Return the norm that a clipped vector has at most on the grid, in steps (Kairouz et al. 2021, proposition 2.2).

    ``min(c + sqrt(d), sqrt(c^2 + d/4 + sqrt(2 log(1/beta)) (c + sqrt(d)/2)))`` with ``c`` steps in the norm.
    """
    norm, root = steps_of(length), math.sqrt(length)
    likely = math.sqrt(norm**2 + length / 4 + math.sqrt(2 * math.log(1 / SHORTER)) * (norm + root / 2))
    return min(norm + root, likely)


def rounded(vector: NDArray[np.float64], stream: Stream) -> NDArray[np.int64]:
    """Round each number of a vector to one of its neighbours, on average to itself, until none is too long.

    Args:
        vector: In steps, no longer than :func:`steps_of`.
        stream: Draws.

    Raises:
        ValueError: For a longer one, which could be rounded for ever.
    """
    if np.linalg.norm(vector) > steps_of(len(vector)) * (1 + 1e-9):
        raise ValueError(f"a vector of norm {np.linalg.norm(vector):g}: expected at most {steps_of(len(vector)):g}")
    bound, below = lengthened(len(vector)), np.floor(vector)
    while True:
        found = below + (stream.uniform(len(vector)) < vector - below)
        if np.linalg.norm(found) <= bound:
            return found.astype(np.int64)


def share(vector: NDArray[np.float64], norm: float, noise: float, shares: int, stream: Stream) -> NDArray[np.int64]:
    """Return what a client adds to the sum: its clipped vector on the grid, with its share of the noise.

    Args:
        vector: Its change, of any length.
        norm: To which it is clipped, ``C``.
        noise: Multiplier ``z`` of the whole sum.
        shares: Clients whose shares make up the noise; more make more.
        stream: Draws.
    """
    steps = steps_of(len(vector))
    length = float(np.linalg.norm(vector))
    scaled = vector * (steps / max(length, norm))
    return rounded(scaled, stream) + stream.skellam(len(vector), (noise * steps) ** 2 / shares)


def largest(length: int, noise: float, clients: int, shares: int) -> int:
    """Return the largest magnitude of a number of the sum, but for a probability that never happens."""
    steps = steps_of(length)
    return math.ceil(clients * lengthened(length) + TAIL * noise * steps * math.sqrt(max(1.0, clients / shares)))


def divergence(order: int, variance: float, euclid: float, absolute: float) -> float:
    """Bound the Renyi divergence of a Skellam vector and a shifted one (Agarwal et al. 2021, theorem 3.5).

    ``R(a) = a D2^2/2m + min(((2a - 1) D2^2 + 6 D1)/4m^2, 3 D1/2m)`` for the variance ``m``.

    Args:
        order: ``a``, a whole number above 1.
        variance: Of each number.
        euclid: Euclidean norm ``D2`` of the shift, which is of whole numbers.
        absolute: Sum ``D1`` of its magnitudes.
    """
    near = ((2 * order - 1) * euclid**2 + 6 * absolute) / (4 * variance**2)
    return order * euclid**2 / (2 * variance) + min(near, 3 * absolute / (2 * variance))


class SkellamLedger:
    """What uses of the Skellam mechanism prove, of vectors that :func:`share` makes.

    One client adds whole numbers of norms ``D2`` and ``D1 <= min(D2^2, sqrt(d) D2)``: none is larger than its square.

    Args:
        noise: Multiplier ``z``.
        times: Uses.
        length: Of the vector, ``d``.
    """

    def __init__(self, noise: float, times: int, length: int) -> None:
        self.noise, self.times, self.length = noise, times, length

    def divergences(self) -> list[float]:
        """Return the Renyi divergence of each of :data:`ORDERS`, of one use."""
        variance, euclid = (self.noise * steps_of(self.length)) ** 2, lengthened(self.length)
        absolute = min(euclid**2, math.sqrt(self.length) * euclid)
        return [divergence(order, variance, euclid, absolute) for order in ORDERS]

    def by_renyi(self, delta: float) -> float:
        """Return the epsilon that Renyi divergences prove."""
        if not self.times:
            return 0.0
        if self.noise <= 0:
            return math.inf
        from dp_accounting.rdp import rdp_privacy_accountant  # a second, which few runs need

        totals = self.times * np.array(self.divergences())
        epsilon, _ = rdp_privacy_accountant.compute_epsilon(np.array(ORDERS, float), totals, delta)
        return float(epsilon)

    def by_loss(self, delta: float) -> float:
        """Return infinity: there is no distribution of losses of a vector."""
        return math.inf

    def epsilon(self, delta: float) -> float:
        """Return what is proven."""
        return self.by_renyi(delta)
