"""What a rehearsal before a simulation tells each neuron: where to start, or to be silent."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from snnfl.neurons import broadcast

Correction: TypeAlias = Literal["none", "residual", "offset"]


def corrected_start(correction: Correction, rest: Tensor, after: Tensor, threshold: Tensor) -> Tensor:
    """Return the membrane potentials that a simulation starts from, behind a rehearsal.

    Neurons fire as charge comes, and charge comes unevenly: early charge that later one takes back has fired spikes
    that shouldn't be, late charge is left on the membrane. A rehearsal sees either in the potential ``v`` that it ends
    with.

    - ``residual``: a neuron with ``v < 0`` has fired more than its charge is worth, and its activation is presumed
      zero; it is held far below its threshold, so that it is silent (SRP: Hao et al., "Reducing ANN-SNN conversion
      error through residual membrane potential", AAAI 2023, algorithm 1).
    - ``offset``: ``v(0) + V_th floor(v / V_th)``: a neuron starts with the charge of as many spikes as it lacked, or
      lacks that of as many as it had too many (COS: Hao et al., "Bridging the gap between ANNs and SNNs by calibrating
      offset spikes", ICLR 2023, with the offsets of one rehearsal).

    Args:
        correction: Which.
        rest: Potentials before the rehearsal, ``[N, C, *space]``.
        after: Those after it, likewise.
        threshold: ``V_th``, ``[1]`` or ``[C]``.
    """
    if correction == "residual":
        return torch.where(after < 0, torch.full_like(rest, torch.finfo(rest.dtype).min / 4), rest)
    level = broadcast(threshold, rest.shape)
    return rest + level * torch.floor(after / level)
