"""How an epoch is cut into batches: the one rule of those who train, count steps or simulate training."""

from __future__ import annotations


def batch_sizes(examples: int, batch_size: int) -> list[int]:
    """Return the sizes of an epoch's batches; a single example that would be left joins the last.

    Batch normalisation cannot train on one example, and to drop it would bias small clients.

    >>> batch_sizes(9, 4), batch_sizes(10, 4), batch_sizes(1, 4)
    ([4, 5], [4, 4, 2], [1])
    """
    sizes = [batch_size] * (examples // batch_size)
    left = examples % batch_size
    if left == 1 and sizes:
        sizes[-1] += 1
    elif left:
        sizes.append(left)
    return sizes


def batch_count(examples: int, batch_size: int) -> int:
    """Return how many batches :func:`batch_sizes` has, without listing them: examples may be whatever a client claims.

    >>> batch_count(9, 4), batch_count(10, 4), batch_count(1, 4), batch_count(10**15, 1)
    (2, 3, 1, 1000000000000000)
    """
    whole, left = divmod(examples, batch_size)
    return whole + (left > 1 or (left == 1 and not whole))
