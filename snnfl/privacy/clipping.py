"""Updates as vectors, whose length is bounded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where each array stands in a vector.

    Attributes:
        shapes: By name, in the order of the vector.
    """

    shapes: Mapping[str, tuple[int, ...]]

    @property
    def size(self) -> int:
        """Length of the vector."""
        return sum(map(math.prod, self.shapes.values()))

    def vector(self, arrays: Mapping[str, Tensor]) -> NDArray[np.float64]:
        """Lay arrays out as one vector.

        Raises:
            ValueError: If they aren't exactly those of the layout: what is left out is neither clipped nor noised.
        """
        found = {name: tuple(array.shape) for name, array in arrays.items()}
        if found != dict(self.shapes):
            wrong = sorted(
                name for name in found.keys() | self.shapes.keys() if found.get(name) != self.shapes.get(name)
            )
            raise ValueError(f"{wrong[0]}: expected shape {self.shapes.get(wrong[0])}, found {found.get(wrong[0])}")
        parts = [arrays[name].detach().to("cpu", torch.float64).reshape(-1).numpy() for name in self.shapes]
        return np.concatenate(parts) if parts else np.empty(0)

    def arrays(self, vector: NDArray[np.float64]) -> dict[str, Tensor]:
        """Return a vector's arrays, as float32."""
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        parts = np.split(vector.astype(np.float32), np.cumsum(sizes)[:-1]) if sizes else []
        return {n: torch.from_numpy(p.reshape(s)) for (n, s), p in zip(self.shapes.items(), parts, strict=True)}


def clipped(vector: NDArray[np.float64], norm: float) -> NDArray[np.float64]:
    """Shorten a vector to a Euclidean norm, ``v min(1, C/|v|)`` (McMahan et al. 2018, "flat clipping")."""
    length = float(np.linalg.norm(vector))
    return vector if length <= norm else vector * (norm / length)
