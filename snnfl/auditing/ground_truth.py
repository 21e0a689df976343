"""What only scoring may know. Attack code must not import this module; a test walks its imports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

MAXIMUM_IMAGES = 1024
"""No attack reconstructs more at once; of a client that has more only labels and biases are told."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GroundTruth:
    """A client's secrets of one round, written with consent.

    Attributes:
        images: In pixels of [0, 1], shape ``[N, C, H, W]``, before any random augmentation.
        labels: Shape ``[N]``, int64.
        biases: The client's own biases at the start of the round, by name.
        trained_biases: Those at the end of its local training, which an update is made from.
    """

    images: Tensor
    labels: Tensor
    biases: Mapping[str, Tensor] = field(default_factory=dict)
    trained_biases: Mapping[str, Tensor] = field(default_factory=dict)
