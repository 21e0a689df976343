"""How far an update may go: relative to what was sent, to the other updates of its round, and to how the run started.

Each array's magnitude is bounded, in each update and in the aggregate:

``magnitude <= factor * max(median of the round's magnitudes, scale of the array at the start)``

The *magnitude* is the root mean square of the change against what was sent, for a running variance that of its root,
the deviation; of what the server never sends (folded weights, thresholds and the like) it is that of the values. The
*median* is the lower one, so of two updates it is the smaller magnitude; a single update has none to be compared with.
The *scale* is the root mean square of the initial weights, and 1 for vectors, whose unit is an activation. It doesn't
grow with the network, so that a liar cannot raise the bound from round to round.

The factor is generous, for honest clients stay an order of magnitude below it. One liar within it can still ruin an
average: docs/backdoor.md says what was measured, and what to do about it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

Magnitudes = Mapping[str, float]
"""By name of the array, or of the metric."""

BLOCK = 2**16
"""Numbers of an array that are looked at together: what is computed of them stays in the cache of a core."""

LENIENCE = 10.0
"""For what only a spiking network has: the largest activation of a client with images of one class, which decides a
threshold, was up to 140 times that of the others in trials."""


def changes(arrays: Mapping[str, Tensor], sent: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the magnitude of each array: of its change where it was sent, else of itself.

    Args:
        arrays: float32. Names that end in ``running_var`` hold variances, none below zero.
        sent: Their counterparts, as far as there are any.
    """
    if not arrays:
        return {}
    small = {name: array for name, array in arrays.items() if array.numel() <= BLOCK}
    differences = [_difference(name, array, sent.get(name)) for name, array in small.items()]
    norms = torch.stack([torch.linalg.vector_norm(each) for each in differences]).tolist() if small else []
    lengths = dict(zip(small, norms, strict=True))
    lengths |= {name: _length(name, arrays[name], sent.get(name)) for name in arrays.keys() - small.keys()}
    return {name: lengths[name] / math.sqrt(max(1, array.numel())) for name, array in arrays.items()}


def limits(
    magnitudes: Sequence[Magnitudes], scales: Mapping[str, float], factor: float, lenient: Collection[str] = ()
) -> dict[str, float]:
    """Return the largest admissible magnitude of each array.

    Args:
        magnitudes: Of the round's updates, at least one, all with the same names.
        scales: Of the arrays at the start; 1 for those that aren't named.
        factor: How many times the reference.
        lenient: Names for which it is :data:`LENIENCE` times as large.
    """
    medians = {name: sorted(each[name] for each in magnitudes)[(len(magnitudes) - 1) // 2] for name in magnitudes[0]}
    alone = len(magnitudes) == 1
    return {
        name: factor
        * (LENIENCE if name in lenient else 1.0)
        * max(0.0 if alone or not math.isfinite(median) else median, scales.get(name, 1.0))
        for name, median in medians.items()
    }


def farthest(magnitudes: Magnitudes, most: Mapping[str, float]) -> str | None:
    """Name the array that goes farthest beyond its limit; ``None`` if none does."""
    beyond = {name: value / most[name] for name, value in magnitudes.items() if not value <= most[name]}
    return max(beyond, key=lambda name: beyond[name] if math.isfinite(beyond[name]) else math.inf) if beyond else None


def _difference(name: str, array: Tensor, sent: Tensor | None) -> Tensor:
    if name.endswith("running_var"):
        return array.sqrt() if sent is None else array.sqrt() - sent.sqrt()
    return array if sent is None else array - sent


def _length(name: str, array: Tensor, sent: Tensor | None) -> float:
    """Return the Euclidean norm of a large array's difference, of which never more than a block is made.

    The squares of a block are added up in float32, the blocks in Python's double precision.
    """
    parts = torch.split(array.flatten(), BLOCK)
    before: Sequence[Tensor | None] = [None] * len(parts)
    if sent is not None:
        before = torch.split(sent.flatten(), BLOCK)
    blocks = (_difference(name, part, then) for part, then in zip(parts, before, strict=True))
    return math.sqrt(sum(block.dot(block).item() for block in blocks))
