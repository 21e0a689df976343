"""Shares of examples from a Dirichlet distribution, drawn anew until every client has enough."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnfl.config import ConfigError, DataConfig

MAXIMUM_DRAWS = 1_000_000
MAXIMUM_NUMBERS = 100_000_000
"""Draws, and random numbers that they hold, before it is an error that a client has too few: some ten seconds."""

BLOCK_NUMBERS = 1_000_000
"""Random numbers that are drawn at once."""


def draw_shares(
    groups: Sequence[Tensor], config: DataConfig, seed: int, *, balanced: bool = False
) -> tuple[Tensor, ...]:
    """Divide groups of examples among the clients, each by a draw from ``Dir_N(beta)``.

    All groups are drawn anew until each client has ``minimum_samples``, as NIID-Bench does (Li et al. 2022,
    ``utils.partition_data``).

    Args:
        groups: Positions of each group's examples, ``int64``.
        config: Decides the number of clients, beta, and how many examples a client needs.
        seed: Of the draws.
        balanced: Whether clients that have ``1/N`` of all examples get nothing of the groups that are left, but for the
            one example that rounding may leave to the last client.

    Returns:
        For each client its positions.

    Raises:
        ConfigError: If no draw of very many gives every client enough, with a beta and a minimum that would do.
    """
    counts = [len(group) for group in groups]
    ends, most, draws = _search(counts, config, seed, balanced, MAXIMUM_NUMBERS)
    if ends is None:
        raise ConfigError(
            f"data.minimum_samples={config.minimum_samples}: none of {draws:,} draws with data.beta={config.beta:g} "
            f"gives each of the {config.clients} clients so many training samples, the best one gives {most}; take "
            f"{_remedy(counts, config, seed, balanced, most)}"
        )
    shares = [torch.tensor_split(group, end[:-1].tolist()) for group, end in zip(groups, ends, strict=True)]
    return tuple(torch.cat(parts) for parts in zip(*shares, strict=True))


def _search(
    counts: Sequence[int], config: DataConfig, seed: int, balanced: bool, numbers: int
) -> tuple[NDArray[np.int64] | None, int, int]:
    """Draw until every client has enough, or so many numbers have been drawn.

    Returns:
        Where the clients' shares of each group end, ``[groups, clients]``, if a draw fits; the size of the smallest
        client in the best draw; and how many draws there were.
    """
    most, draws = 0, 0
    generator = np.random.default_rng(seed)
    for size in _blocks(len(counts) * config.clients, numbers):
        ends = _draw(generator, counts, config, size, balanced)
        sizes = np.diff(ends, prepend=0).sum(axis=1)
        smallest = np.where(sizes.sum(axis=1) == sum(counts), sizes.min(axis=1), 0)
        fitting = np.flatnonzero(smallest >= config.minimum_samples)
        if len(fitting):
            return ends[fitting[0]], int(smallest[fitting[0]]), draws + int(fitting[0]) + 1
        most, draws = max(most, int(smallest.max())), draws + size
    return None, most, draws


def _blocks(each: int, numbers: int) -> Iterator[int]:
    """Yield how many draws to make at once: first few, since most often the first one fits."""
    left, block = max(1, min(MAXIMUM_DRAWS, numbers // each)), 8
    while left > 0:
        size = max(1, min(block, left, BLOCK_NUMBERS // each))
        yield size
        left, block = left - size, 8 * block


def _draw(
    generator: np.random.Generator, counts: Sequence[int], config: DataConfig, draws: int, balanced: bool
) -> NDArray[np.int64]:
    """Return where each client's share of each group ends, ``[draws, groups, clients]``.

    Where all clients that may still have some of a group got the share zero, nobody has it: the draw is none.
    """
    shares = generator.dirichlet([config.beta] * config.clients, size=(draws, len(counts)))
    ends = np.empty(shares.shape, np.int64)
    sizes = np.zeros((draws, config.clients), np.int64)
    for group, count in enumerate(counts):
        share, given = shares[:, group], np.full((draws, 1), count)
        if balanced:
            share = share * (sizes < sum(counts) / config.clients)
            total = share.sum(axis=1, keepdims=True)
            given = count * (total > 0)
            share = np.divide(share, total, out=np.zeros_like(share), where=total > 0)
        end = (np.cumsum(share, axis=1) * count).astype(np.int64)
        end[:, -1:] = given  # whatever rounding leaves is the last client's
        ends[:, group] = end
        sizes += np.diff(end, prepend=0)
    return ends


def _remedy(counts: Sequence[int], config: DataConfig, seed: int, balanced: bool, most: int) -> str:
    """Name a beta and a minimum with which the same seed finds a partition."""
    choices = [] if most < 1 else [f"data.minimum_samples={most}"]
    for beta in _larger(config.beta):
        if _search(counts, replace(config, beta=beta), seed, balanced, BLOCK_NUMBERS)[0] is not None:
            choices.insert(0, f"data.beta={beta:g}")
            break
    return ", ".join([*choices, "fewer data.clients"]).replace(", fewer", " or fewer")


def _larger(beta: float) -> Iterator[float]:
    """Yield the numbers 1, 2 and 5 times a power of ten that are above beta, up to a million."""
    for exponent in range(-6, 7):
        for digit in (1, 2, 5):
            if (value := float(f"{digit}e{exponent}")) > beta:
                yield value
