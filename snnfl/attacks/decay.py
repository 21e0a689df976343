"""How much weight decay is in an update whose length, or what drew weights back, nobody knows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from snnfl.attacks.compressed import LOOKED_AT

PASSES = 4
"""Of refinement: what a pass leaves of the error is of the order of its square."""


def decay_in(
    seen: Mapping[str, Tensor], sent: Mapping[str, Tensor], ranks: Mapping[str, int], logits: str | None
) -> float:
    """Return the factor ``s`` of what was sent in ``c G + s W``, where ``G`` are gradients and neither factor is known.

    Errors of an image sum to zero over classes, and so do gradients of the layer that makes logits: ``1^T seen = s 1^T
    W`` there. And a linear layer's gradient is of the rank of the number of images at most, so that what of ``seen`` is
    outside of its largest singular vectors is that of ``s W``, which these hardly depend on. Least squares of all of
    that together, over and over with the vectors of what is left, tell ``s`` to about float32's digits.

    Args:
        seen: The update as a gradient.
        sent: What was sent.
        ranks: Largest rank of each linear layer's gradient, by the layer's name.
        logits: Name of the layer that makes logits; ``None`` if their errors don't enter it as they are.

    Returns:
        At least 0; 0 where no layer tells.
    """
    sums, layers = list[tuple[Tensor, Tensor]](), list[tuple[Tensor, Tensor, int]]()
    for name in dict.fromkeys([*ranks, *([] if logits is None else [logits])]):  # in order, which a set hasn't: sums
        # What didn't change at all isn't trained, so that it doesn't decay.
        parts = [part for part in (f"{name}.weight", f"{name}.bias") if part in seen and bool(seen[part].any())]
        if not parts:
            continue
        one, other = (
            torch.cat([of[part].view(len(of[part]), -1) for part in parts], 1).double() for of in (seen, sent)
        )
        if name == logits:
            sums.append((one.sum(0), other.sum(0)))
        one, other = (each[:: -(-len(each) // LOOKED_AT), :: -(-each.shape[1] // LOOKED_AT)] for each in (one, other))
        if name in ranks and ranks[name] < min(one.shape) and bool(one.isfinite().all()):
            layers.append((one, other, ranks[name]))
    found = _fitted(sums)
    for _ in range(PASSES if layers else 0):
        found = _fitted([*sums, *(_outside(one, other, rank, found) for one, other, rank in layers)])
    return max(0.0, found)


def _fitted(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """Return the factor by which the second ones are nearest to the first ones."""
    squares = sum(float(other.square().sum()) for _, other in pairs)
    return sum(float((one * other).sum()) for one, other in pairs) / squares if squares > 0 else 0.0


def _outside(seen: Tensor, sent: Tensor, rank: int, share: float) -> tuple[Tensor, Tensor]:
    """Return what of a layer's update, and of what was sent, is outside of the largest singular vectors of the rest."""
    left, _, right = torch.linalg.svd(seen - share * sent, full_matrices=False)
    left, right = left[:, :rank], right[:rank]

    def outside(array: Tensor) -> Tensor:
        array = array - left @ (left.T @ array)
        beyond: Tensor = array - (array @ right.T) @ right
        return beyond

    return outside(seen), outside(sent)
