"""What a node doesn't do for any server, as a Flower mod: its configuration stands above the run's.

It guards against a run that is configured otherwise than its participants were told. It is no wall against whoever may
submit runs, for a run brings the code of its clients with it (docs/deployment.md).
"""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from clients.participant import run_workspace
from snnfl.config import ConfigError, update_kind
from snnfl.conversion import exposed_biases
from snnfl.protocol import REQUIRE_SPIKING, sends_control
from snnfl.workspace import Workspace


class NodePolicyError(RuntimeError):
    """A run asks of a node what its configuration forbids."""


def node_policy(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Refuse every message of a run that would upload what this node keeps to itself, the opening question included.

    Raises:
        NodePolicyError: If the node requires spiking updates, and the run asks for others.
        ConfigError: If its configuration says neither yes nor no.
    """
    required = context.node_config.get(REQUIRE_SPIKING, False)
    if not isinstance(required, bool):
        raise ConfigError(f"node config {REQUIRE_SPIKING}={required!r}: expected true or false, without quotes")
    if required and (asked := unprotected(run_workspace(context))) is not None:
        raise NodePolicyError(f"the run's {asked}, but this node is configured with {REQUIRE_SPIKING}=true")
    return call_next(message, context)


def unprotected(work: Workspace) -> str | None:
    """Say which option would have private biases leave a client as they are; ``None`` for none.

    A SOLO client uploads metrics alone.
    """
    config, kind = work.config, update_kind(work.config)
    if kind == "none":
        return None
    if kind == "native":
        return f"model.neuron={config.model.neuron} uploads spiking networks as they were trained, biases included"
    if kind == "plain":
        return "strategy.spiking=false uploads ordinary networks"
    if sends_control(config):
        return "strategy.name=scaffold uploads control variates beside the spiking network"
    if config.strategy.bias_back:
        return "strategy.bias_back=true gives the server the biases that clients train with"
    if exposed := exposed_biases(
        work.graph, config.conversion.calibration, work.initial_state, work.dataset.input_shape
    ):
        layers = ", ".join(exposed)
        return f"conversion.calibration={config.conversion.calibration} shifts no bias of {layers} before upload"
    return None
