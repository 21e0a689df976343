"""Attacks of an honest-but-curious server on what a client sends it."""

from snnfl.attacks import adaptive, closed_form, inversion, native_matching  # noqa: F401  (each registers its attacks)
from snnfl.attacks.reconstruction import AttackError, Reconstruction
from snnfl.attacks.registry import Attack, AttackResult, Budget, get_attack, names, register

__all__ = ["Attack", "AttackError", "AttackResult", "Budget", "Reconstruction", "get_attack", "names", "register"]
