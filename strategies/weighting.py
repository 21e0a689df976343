"""How much a client's update counts in an average."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from snnfl.protocol import RECEIVED_LOSS
from strategies.update import Update

Weighing: TypeAlias = Callable[[Update], float]
"""``update -> weight``: positive, in any unit, for an average divides by the sum."""


def by_examples(update: Update) -> float:
    """Weigh by training examples, ``n_k`` (McMahan et al. 2017, algorithm 1)."""
    return update.examples


def uniform(update: Update) -> float:
    """Weigh all alike, ``1/K`` (SNFL, equations 1 and 2)."""
    return 1


def by_loss(q: float) -> Weighing:
    """Weigh by ``F_k^q``, the received model's loss on the client's training images (q-FedAvg; Li et al. 2020)."""

    def weigh(update: Update) -> float:
        with np.errstate(over="ignore"):  # infinity makes the average NaN, and the round keeps the old weights
            return float(np.float_power(update.metrics[RECEIVED_LOSS] + 1e-10, q))  # as in Flower's q-FedAvg

    return weigh


WEIGHINGS: dict[str, Weighing] = {"examples": by_examples, "uniform": uniform}
"""By the names that ``strategy.weighting`` has."""
