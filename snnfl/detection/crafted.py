"""Whether weights that a client receives are a model's, or made to be told by its update."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import torch
from torch import Tensor

LOOKED_AT = 128
"""Rows and columns of a weight that are compared with each other, at most."""

ALIKE = 0.99
"""Absolute cosine from which on two rows say the same."""

MOST = 0.5
"""Share of a weight's rows with a double from which on nobody trained it."""


def doubled(weight: Tensor) -> float:
    """Return the share of a weight's rows, or columns, whichever is more, that point where another one of them points.

    Zero rows say nothing, and count as none. Of wide weights :data:`LOOKED_AT` rows are drawn, anew each time: who knew
    which would leave these as they are.

    Args:
        weight: Shape ``[outputs, inputs, ...]`` with more than one input to an output.
    """
    matrix = weight.detach().flatten(1).float()
    return max(_doubled_rows(matrix), _doubled_rows(matrix.T))


def crafted(arrays: Mapping[str, Tensor]) -> str | None:
    """Return which weight looks crafted, and why, or ``None``.

    Robbing the Fed (Fowl et al. 2022) and LOKI need a layer whose units all measure the same, at different thresholds.
    In freshly drawn networks no two units do, and in trained ones few, unless weight decay is so strong that units
    become each other's doubles: such a network is refused, honest as it is. An attacker who knows this check can craft
    fewer than half of the units, at the price of bins, or disturb the rows, at the price of exactness. And who sets
    biases alone, so that a unit is active for few images, pays nothing and isn't noticed (docs/audit.md has the
    measure): it is a guard against these two attacks, not a proof.

    Args:
        arrays: A model's, as received.
    """
    for name, array in arrays.items():
        if array.dim() >= 2 and min(len(array), array.shape[1:].numel()) >= 8 and (share := doubled(array)) > MOST:
            return f"{share:.0%} of the rows or columns of {name!r} point the same way as another"
    return None


def _doubled_rows(matrix: Tensor) -> float:
    if len(matrix) > LOOKED_AT:
        draw = torch.Generator().manual_seed(secrets.randbits(63))
        matrix = matrix[torch.randperm(len(matrix), generator=draw)[:LOOKED_AT]]
    lengths = matrix.norm(dim=1)
    rows = matrix[lengths > 0] / lengths[lengths > 0, None]
    if len(rows) < 2 or rows.shape[1] < 2:
        return 0.0
    cosines = (rows @ rows.T).abs().fill_diagonal_(0)
    return float((cosines.amax(1) > ALIKE).float().mean())
