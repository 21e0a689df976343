"""What a federation's server tells of who was in a client's data; attacks see a ``FederationView``, never the truth."""

from snnfl.membership_attacks.federated import (  # noqa: F401  (each registers its attacks)
    conversion,
    gradients,
    losses,
    other_clients,
    shadow_client,
)
from snnfl.membership_attacks.federated.registry import (
    FEDERATED_ATTACKS,
    FederatedAttack,
    get_federated_attack,
    register,
)

__all__ = ["FEDERATED_ATTACKS", "FederatedAttack", "get_federated_attack", "register"]
