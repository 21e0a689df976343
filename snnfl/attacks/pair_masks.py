"""Masks of 32-bit seeds, searched: what Flower's legacy secure aggregation hides from a server with some minutes.

``secaggplus_mod`` (Flower 1.41) agrees on a secret of 256 bits for each pair of clients, folds it by XOR to 32 bits
and seeds a Mersenne twister with them, whose outputs are the mask (``secaggplus_utils.pseudo_rand_gen``). Where a
client has one neighbour left, its masked vector is

``y = q + m_b ± m_pair  (mod 2^32)``, with quantised values ``0 <= q <= 2^22``.

The server learns ``m_b`` by the protocol. For each of the ``2^32`` seeds it computes the first element of ``m_pair``;
what is left is in the range of ``q`` for one wrong seed in 1,024, and four elements tell the right one. The generator's
state needn't be filled for that: its first outputs depend on 401 of 624 words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

ELEMENTS = 4
"""That are compared: of ``2^32`` wrong seeds they leave one with probability ``2^32 / 2^40``."""

_LANES = 128
_REACH = 397
_UPPER, _LOWER = np.uint32(0x80000000), np.uint32(0x7FFFFFFF)
_MATRIX, _KNUTH = np.uint32(0x9908B0DF), np.uint32(1812433253)


def search(
    residue: NDArray[np.integer[Any]], *, sign: int, largest: int, start: int = 0, stop: int = 2**32
) -> list[int]:
    """Return the seeds whose mask explains a client's masked vector, of those in ``start .. stop - 1``.

    Args:
        residue: First elements of ``q ± m_pair`` modulo ``2^32``, at least :data:`ELEMENTS`.
        sign: 1 if the client has added the pair's mask, -1 if it has subtracted it.
        largest: Of the values ``q``.
        start: First seed.
        stop: One past the last.

    Raises:
        ValueError: If there are too few elements.
    """
    if len(residue) < ELEMENTS:
        raise ValueError(f"{len(residue)} elements tell no seed from others, {ELEMENTS} do")
    wanted = (np.asarray(residue[:ELEMENTS], np.int64) % 2**32).astype(np.uint32)
    found = _candidates(wanted, sign > 0, np.uint32(largest), start, stop)
    return [int(seed) for seed in found]


def mask_of(seed: int, shapes: Sequence[tuple[int, ...]]) -> list[NDArray[np.int64]]:
    """Return the mask of a seed as Flower draws it."""
    draw = np.random.RandomState(seed)
    return [draw.randint(0, 2**32 - 1, shape, dtype=np.int64) for shape in shapes]


@numba.njit(cache=True)
def _candidates(
    wanted: NDArray[np.uint32], added: bool, largest: np.uint32, start: int, stop: int
) -> list[int]:  # pragma: no cover - compiled
    """Compare the first element for many seeds at once, the others for those that are left."""
    found = [0 for _ in range(0)]
    words = np.empty((_REACH + ELEMENTS, _LANES), np.uint32)
    for first in range(start, stop, _LANES):
        for lane in range(_LANES):
            words[0, lane] = np.uint32(first + lane)
        for row in range(1, _REACH + 1):
            for lane in range(_LANES):
                before = words[row - 1, lane]
                words[row, lane] = _KNUTH * (before ^ (before >> np.uint32(30))) + np.uint32(row)
        for lane in range(_LANES):
            if first + lane >= stop or not _fits(words, lane, 0, wanted, added, largest):
                continue
            for row in range(_REACH + 1, _REACH + ELEMENTS):
                before = words[row - 1, lane]
                words[row, lane] = _KNUTH * (before ^ (before >> np.uint32(30))) + np.uint32(row)
            fits = True
            for element in range(1, ELEMENTS):
                fits = fits and _fits(words, lane, element, wanted, added, largest)
            if fits:
                found.append(first + lane)
    return found


@numba.njit(cache=True, inline="always")
def _fits(
    words: NDArray[np.uint32], lane: int, element: int, wanted: NDArray[np.uint32], added: bool, largest: np.uint32
) -> bool:  # pragma: no cover - compiled
    """Tell whether an element is in its range without the mask of a seed (Matsumoto and Nishimura 1998)."""
    y = (words[element, lane] & _UPPER) | (words[element + 1, lane] & _LOWER)
    y = words[element + _REACH, lane] ^ (y >> np.uint32(1)) ^ (_MATRIX * (y & np.uint32(1)))
    y ^= y >> np.uint32(11)
    y ^= (y << np.uint32(7)) & np.uint32(0x9D2C5680)
    y ^= (y << np.uint32(15)) & np.uint32(0xEFC60000)
    y ^= y >> np.uint32(18)
    left = wanted[element] - y if added else wanted[element] + y
    return bool(np.uint32(left) <= largest)
