"""What federated algorithms ask of their clients, beyond training what they receive and uploading it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from snnfl.config.options import Config


@dataclass(frozen=True, kw_only=True)
class ClientSide:
    """The clients' side of an algorithm.

    Attributes:
        uploads: Whether anything leaves clients but metrics.
        own_model: Whether they keep the model that they trained last, to compare with it or to go on from it.
        own_normalisation: Whether batch normalisation stays with them.
        control_variates: Whether control variates travel beside the arrays, in either direction.
        received_loss: Whether they measure the loss of the received model.
        local_steps: Whether they tell how many steps they have taken.
        extra_passes: Forward passes of each training sample beside those of its gradient.
    """

    uploads: bool = True
    own_model: bool = False
    own_normalisation: bool = False
    control_variates: bool = False
    received_loss: bool = False
    local_steps: bool = False
    extra_passes: int = 0


_SIDES: Mapping[str, ClientSide] = {
    "moon": ClientSide(own_model=True, extra_passes=2),
    "fedlec": ClientSide(extra_passes=1),
    "fedbn": ClientSide(own_normalisation=True),
    "solo": ClientSide(uploads=False, own_model=True),
    "qfedavg": ClientSide(received_loss=True),
    "scaffold": ClientSide(control_variates=True),
    "fednova": ClientSide(local_steps=True),
}
_PLAIN = ClientSide()


def client_side(config: Config) -> ClientSide:
    """Return what a run's algorithm asks of its clients; one of a plug-in asks for nothing more.

    >>> client_side(Config()) == ClientSide()
    True
    """
    return _SIDES.get(config.strategy.name, _PLAIN)
