"""What an array of an update must look like."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from snnfl.training.local import MAXIMUM_VALUE
from snnfl.training.resident import is_statistic


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """An expected array: its shape and the range of its values; a share lies in 0..1. Of any but bytes it is float32.

    >>> ArraySpec(shape=(2,), values="positive").mistake(torch.tensor([1.0, 0.0]))
    'expected positive values, the smallest is 0'
    """

    shape: tuple[int, ...]
    values: Literal["finite", "non-negative", "positive", "share", "bytes"] = "finite"

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers."""
        return torch.uint8 if self.values == "bytes" else torch.float32

    def mistake(self, array: Tensor) -> str | None:
        """Say what is wrong with an array, in words without its name, or return ``None``."""
        if tuple(array.shape) != self.shape or array.dtype != self.dtype:
            found, expected = (str(dtype).removeprefix("torch.") for dtype in (array.dtype, self.dtype))
            return f"expected {expected}{list(self.shape)}, found {found}{list(array.shape)}"
        if self.values == "finite" and array.is_floating_point() and _is_small(array):
            return None
        smallest, largest = (bound.item() for bound in array.aminmax()) if array.numel() else (1.0, 1.0)
        if not (smallest >= -MAXIMUM_VALUE and largest <= MAXIMUM_VALUE):  # either is NaN if any value is
            return f"holds NaN, infinity or a value beyond {MAXIMUM_VALUE:g}"
        if self.values == "positive" and not smallest > 0:
            return f"expected positive values, the smallest is {smallest:g}"
        if self.values == "non-negative" and not smallest >= 0:
            return f"expected no negative value, the smallest is {smallest:g}"
        if self.values == "share" and not (smallest >= 0 and largest <= 1):
            return f"expected values from 0 to 1, found {smallest:g} to {largest:g}"
        return None


def _is_small(array: Tensor) -> bool:
    """Tell whether no value can be beyond the bound, by the sum of squares, in half of the time of looking at each.

    It is NaN or infinite if a value is; and it is at least the largest square, but for rounding.
    """
    numbers = array.flatten()
    return bool(numbers.dot(numbers).item() <= (MAXIMUM_VALUE / 100) ** 2)


def ann_specs(state: Mapping[str, Tensor]) -> dict[str, ArraySpec]:
    """Describe arrays of an ANN."""
    return {
        name: ArraySpec(shape=tuple(array.shape), values="non-negative" if name.endswith("running_var") else "finite")
        for name, array in state.items()
    }


def control_specs(sent: Mapping[str, ArraySpec]) -> dict[str, ArraySpec]:
    """Describe a control variate (SCAFFOLD): an array per parameter that the server sends, and none for the others.

    What stays on a client isn't averaged, so it drifts from nothing; and how its control variate changes would tell it.
    """
    return {name: ArraySpec(shape=spec.shape) for name, spec in sent.items() if not is_statistic(name)}


def scale_of(array: Tensor) -> float:
    """Return the scale of an initial array: its root mean square; of a vector, and of zeros, 1.

    >>> scale_of(torch.full((2, 2), -0.5)), scale_of(torch.full((3,), 0.5)), scale_of(torch.zeros(2, 3))
    (0.5, 1.0, 1.0)
    """
    if array.dim() < 2:
        return 1.0
    return float(torch.linalg.vector_norm(array)) / math.sqrt(array.numel()) or 1.0
