"""Random numbers that nobody can tell without a key: noise is only worth as much as its generator.

NumPy's and PyTorch's generators are no ciphers, and a run's seed is known to its clients. Whoever can repeat the noise
can take it off.
"""

from __future__ import annotations

import hashlib
import math
import secrets

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

KEY_BYTES = 32

FEW = 10.0
"""Means up to which the distribution function has less than 100 steps that double precision tells apart."""

LARGEST_VARIANCE = 1e13
"""Of Skellam numbers: beyond, double precision no longer tells the probabilities of neighbouring ones apart."""


def new_key(seed: int | None = None) -> bytes:
    """Return a key of the system's randomness, or one that follows from a seed: for repeating an experiment alone."""
    if seed is None:
        return secrets.token_bytes(KEY_BYTES)
    return hashlib.sha256(f"snnfl noise {seed}".encode()).digest()


class Stream:
    """The key stream of ChaCha20 (RFC 8439), as numbers.

    Args:
        key: Of :data:`KEY_BYTES`.
        purpose: What the numbers are for, with its coordinates: each purpose has a stream of its own.

    Example:
        >>> float(Stream(bytes(32), "noise", 1).uniform(1)[0]) == float(Stream(bytes(32), "noise", 2).uniform(1)[0])
        False
    """

    def __init__(self, key: bytes, *purpose: str | int) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key of {len(key)} bytes: expected {KEY_BYTES}")
        own = hashlib.sha256(key + repr(purpose).encode()).digest()
        self._cipher = Cipher(algorithms.ChaCha20(own, bytes(16)), mode=None).encryptor()

    def words(self, count: int) -> NDArray[np.uint64]:
        """Return the next 64-bit words."""
        return np.frombuffer(self._cipher.update(bytes(8 * count)), np.uint64)

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Return numbers in (0, 1), of 53 bits."""
        return np.asarray(((self.words(count) >> np.uint64(11)) + 0.5) * 2.0**-53, np.float64)

    def normal(self, count: int) -> NDArray[np.float64]:
        """Return standard normal numbers (Box and Muller 1958)."""
        half = (count + 1) // 2
        radius, angle = np.sqrt(-2 * np.log(self.uniform(half))), 2 * math.pi * self.uniform(half)
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]

    def skellam(self, count: int, variance: float) -> NDArray[np.int64]:
        """Return differences of two Poisson numbers, each of half the variance.

        Sums of Skellam numbers are Skellam, with the sum of the variances (Agarwal et al. 2021).

        Raises:
            ValueError: For a variance above :data:`LARGEST_VARIANCE`.
        """
        if variance > LARGEST_VARIANCE:
            raise ValueError(f"a variance of {variance:g}: expected at most {LARGEST_VARIANCE:g}")
        return self._poisson(count, variance / 2) - self._poisson(count, variance / 2)

    def _poisson(self, count: int, mean: float) -> NDArray[np.int64]:
        """Return Poisson numbers: by inversion where few are likely, else by transformed rejection."""
        if mean < FEW:
            from scipy import special  # a sixth of a second to import, in every process of a client

            likely = special.pdtr(np.arange(100), mean)
            return np.searchsorted(likely, self.uniform(count)).astype(np.int64)
        found, open_ = np.empty(count), np.arange(count)
        while len(open_):
            proposed, accepted = self._proposed(len(open_), mean)
            found[open_[accepted]] = proposed[accepted]
            open_ = open_[~accepted]
        return found.astype(np.int64)

    def _proposed(self, count: int, mean: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return proposals for Poisson numbers, and which are accepted (Hoermann 1993, algorithm PTRS)."""
        from scipy import special  # as above

        b = 0.931 + 2.53 * math.sqrt(mean)
        a, scale = -0.059 + 0.02483 * b, 1.1239 + 1.1328 / (b - 3.4)
        u, v = self.uniform(count) - 0.5, self.uniform(count)
        near = 0.5 - np.abs(u)
        k = np.floor((2 * a / near + b) * u + mean + 0.43)
        ratio = np.log(v * scale / (a / near**2 + b))
        mass = k * math.log(mean) - mean - special.gammaln(np.maximum(k, 0) + 1)
        return k, (k >= 0) & (ratio <= mass)
