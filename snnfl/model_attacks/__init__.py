"""Attacks on a network that somebody publishes: what it shows of its classes, and a copy of it."""

from snnfl.model_attacks import learning, reconversion, through_spikes  # noqa: F401  (each registers its attacks)
from snnfl.model_attacks.registry import (
    MODEL_ATTACKS,
    ModelAttack,
    ModelAttackError,
    ModelBudget,
    Theft,
    get_model_attack,
    register,
)

__all__ = [
    "MODEL_ATTACKS",
    "ModelAttack",
    "ModelAttackError",
    "ModelBudget",
    "Theft",
    "get_model_attack",
    "register",
]
