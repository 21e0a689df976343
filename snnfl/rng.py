"""Explicit randomness: one generator per (seed, purpose, coordinates), and no global random state.

A draw depends on what it is for, never on what was drawn before it. So the same seed gives the same partition,
weights, batches and selection on every engine, in any order of execution, and after a resume.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, purpose: str, *coordinates: int) -> int:
    """Hash a seed, a purpose and coordinates to 63 bits.

    Args:
        seed: Seed of the run.
        purpose: What is drawn, for example ``"batches"``.
        coordinates: For example the round and the partition.

    Returns:
        An integer in ``[0, 2**63)``; SHA-256 makes distinct arguments independent.

    >>> derive_seed(0, "batches", 1, 2) == derive_seed(0, "batches", 1, 2)
    True
    >>> derive_seed(0, "batches", 1, 2) == derive_seed(0, "batches", 12)
    False
    """
    text = "/".join([str(seed), purpose, *map(str, coordinates)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, *coordinates: int) -> torch.Generator:
    """Return a CPU generator for one purpose, seeded by :func:`derive_seed`.

    Draws are made on the CPU and moved, so that a GPU run sees the same batches.
    """
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *coordinates))
