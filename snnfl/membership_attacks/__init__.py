"""Attacks that ask whether a sample was trained on; they see a ``MembershipView``, never the truth."""

from snnfl.membership_attacks import (  # noqa: F401  (each registers its attacks)
    likelihood,
    quantile,
    relative,
    shadow_classifier,
    thresholds,
)
from snnfl.membership_attacks.registry import (
    MEMBERSHIP_ATTACKS,
    MembershipAttack,
    MembershipError,
    get_membership_attack,
    register,
)

__all__ = ["MEMBERSHIP_ATTACKS", "MembershipAttack", "MembershipError", "get_membership_attack", "register"]
