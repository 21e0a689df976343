"""What a run's clients upload, as its configuration says it."""

from __future__ import annotations

from typing import Literal, TypeAlias

from snnfl.config.algorithms import client_side
from snnfl.config.options import Config

UpdateKind: TypeAlias = Literal["plain", "native", "converted", "none"]
"""An ordinary network, one that was trained as a spiking network or converted to one, or nothing but metrics
(:mod:`snnfl.updates`)."""


def spikes_natively(config: Config) -> bool:
    """Tell whether clients train a spiking network, rather than an ordinary one."""
    return config.model.neuron != "relu"


def converts(config: Config) -> bool:
    """Tell whether clients convert what they have trained; those of a SOLO run do so to measure it, and keep it."""
    return config.strategy.spiking


def update_kind(config: Config) -> UpdateKind:
    """Return the kind of a client's update."""
    if not client_side(config).uploads:
        return "none"
    if spikes_natively(config):
        return "native"
    return "converted" if converts(config) else "plain"


def keeps_biases(config: Config) -> bool:
    """Tell whether the biases that a client trains with stay with it."""
    return converts(config) and not config.strategy.bias_back


def prefixed(config: Config, algorithm: str) -> str:
    """Name the variant of an algorithm that a run is of: ``S-FedAvg``, ``FedAvg``, or ``FedAvg (LIF)``.

    "S-" stands for conversion; a network that is trained as a spiking one says of which neurons it is.

    >>> prefixed(Config(), "FedAvg")
    'S-FedAvg'
    """
    if spikes_natively(config):
        return f"{algorithm} ({config.model.neuron.upper()})"
    return f"S-{algorithm}" if converts(config) else algorithm
