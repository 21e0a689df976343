"""How many clients a part of them is."""

from __future__ import annotations

from snnfl.config.options import Config


def part_of(clients: int, fraction: float) -> int:
    """Return a part of some clients, rounded down, but at least one.

    0.29 of 100 are 29, though the product of the two doubles is below that.

    >>> [part_of(100, 0.29), int(100 * 0.29), part_of(15, 0.1), part_of(10, 0.01)]
    [29, 28, 1, 1]
    """
    return max(1, int(clients * exactly(fraction)))


def exactly(fraction: float) -> float:
    """Return a fraction by which a count can be multiplied and truncated, to give what its decimal digits say.

    The product with a double may lie below a whole number by rounding alone, by up to two parts in 2^53; what is
    returned is larger by four, which shows nowhere else. Flower's strategies multiply and truncate likewise.
    """
    return fraction * (1 + 2**-51)


def sampled_clients(config: Config) -> int:
    """Return how many clients are selected per round while all are connected."""
    return part_of(config.data.clients, config.strategy.fraction_train)


def secure_tolerance(config: Config) -> float:
    """Return which part of a round's clients may drop out, and which may collude, under secure aggregation."""
    return 0.1 if config.strategy.secure_tolerance is None else config.strategy.secure_tolerance
