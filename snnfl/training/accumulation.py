"""How much the gradients of a local training weigh in what it changed."""

from __future__ import annotations


def gradient_weight(steps: int, momentum: float) -> float:
    """Return ``||a||_1`` of a local training by SGD: ``x - y = rate * sum_j a_j g_j``, where ``g_j`` are its gradients.

    The velocity starts at zero, so a gradient that ``m`` steps follow enters ``m + 1`` times, the last time multiplied
    by ``momentum ** m`` (Wang et al., "Tackling the objective inconsistency problem", NeurIPS 2020). Without momentum
    that is the number of steps. Weight decay is part of the gradients.

    Args:
        steps: Optimiser steps.
        momentum: ``rho``, from 0 to 1.

    >>> gradient_weight(5, 0.0), gradient_weight(3, 0.5), gradient_weight(3, 1.0)
    (5.0, 4.25, 6.0)
    """
    entered, total = 0.0, 0.0
    for _ in range(steps):
        entered = momentum * entered + 1
        total += entered
    return total
