"""Adam's first step for the CPU, which has no state: it is zero before, and follows from the gradient behind."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from snnfl.neurons.compiled import compiled

Reals: TypeAlias = NDArray[np.floating]


@compiled
def begin(
    parameter: Reals,
    gradient: Reals,
    of_mean: np.floating,
    of_square: np.floating,
    step: np.floating,
    root: np.floating,
    eps: np.floating,
) -> None:
    """Move a parameter to the bit as PyTorch's fused step does from zeros.

    Args:
        parameter: Shape ``[count]``; changed.
        gradient: By it, of that shape.
        of_mean: ``1 - beta1``.
        of_square: ``1 - beta2``.
        step: The learning rate over ``1 - beta1``, which corrects the mean's bias.
        root: ``sqrt(1 - beta2)``, which corrects the square's.
        eps: What keeps the quotient finite.
    """
    for j in range(len(parameter)):
        first, second = of_mean * gradient[j], of_square * gradient[j] * gradient[j]
        parameter[j] += -step * first / (np.sqrt(second) / root + eps)
