"""Attacks of an honest-but-curious server on what a client sends it."""

from snnfl.attacks import (  # noqa: F401  (each registers its attacks)
    adaptive,
    closed_form,
    feature_inversion,
    generative,
    imprint,
    inversion,
    loki,
    native_exact,
    native_matching,
    native_trains,
)
from snnfl.attacks.reconstruction import AttackError, Reconstruction
from snnfl.attacks.registry import Attack, AttackResult, Budget, get_attack, names, register

__all__ = ["Attack", "AttackError", "AttackResult", "Budget", "Reconstruction", "get_attack", "names", "register"]
