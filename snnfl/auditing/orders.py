"""What a recorded train message asked of its clients beside cross-entropy, be it of a run of ours or another app's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from snnfl.auditing.recording import Received
from snnfl.protocol import CONTRASTIVE_MU, LOGIT_CALIBRATION, OBJECTIVE, PROXIMAL_MU, TEMPERATURE
from snnfl.threat import Knowledge
from snnfl.training import is_statistic

CLIPPING_NORM = "clipping_norm"
"""What Flower's wrappers of differential privacy tell clients: the bound of their update's norm."""

KNOWN = {PROXIMAL_MU: "proximal_mu", CONTRASTIVE_MU: "contrastive_mu", TEMPERATURE: "temperature"}
"""Entries of a message by the flags of :class:`~snnfl.threat.Knowledge` that say the same."""


SHORT = 1 - 1e-3
"""Part of the bound below which an update was not shortened to it."""


def flags_of(received: Received, *, whole: bool) -> dict[str, Any]:
    """Return the flags of a threat model (:class:`~snnfl.threat.Knowledge`) that the message to a client says.

    Args:
        received: The client's update, with what the recording tells of its round.
        whole: Whether all that the client trained is in the update. Then one that is shorter than the bound tells that
            it was not clipped; if something stayed with the client, nobody knows.
    """
    orders = _orders(received)
    flags: dict[str, Any] = {flag: float(orders[name]) for name, flag in KNOWN.items() if _is_number(orders.get(name))}
    if _is_number(orders.get(CLIPPING_NORM)):
        flags["clipped"] = not whole or _length(received) > SHORT * float(orders[CLIPPING_NORM])
    return flags


def unrepeated_orders(received: Received) -> tuple[str, ...]:
    """Return what the message asked that no attack repeats, ``key=value`` each."""
    orders = _orders(received)
    return tuple(f"{name}={orders[name]}" for name in (OBJECTIVE, LOGIT_CALIBRATION) if name in orders)


def _orders(received: Received) -> Mapping[str, Any]:
    orders = received.about.get("config", {})
    return orders if isinstance(orders, Mapping) else {}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12


def _length(received: Received) -> float:
    """Return the norm of what the client changed, of everything that it sent back."""
    exchange = received.exchange
    changes = [array - exchange.sent[name] for name, array in exchange.received.items() if name in exchange.sent]
    return float(torch.cat([change.flatten().double() for change in changes]).norm())


def gradient_length(received: Received, known: Knowledge) -> float:
    """Return the norm of the gradient of a client's only step, as the client had it before weight decay.

    Args:
        received: Its update, with all that it trained.
        known: Learning rate and weight decay.
    """
    sent, rate, decay = received.exchange.sent, known.learning_rate or 1.0, known.weight_decay or 0.0
    trained = {name: array for name, array in received.exchange.received.items() if not is_statistic(name)}
    slopes = [(sent[name] - array).double() / rate - decay * sent[name] for name, array in trained.items()]
    return float(torch.cat([slope.flatten() for slope in slopes]).norm())
