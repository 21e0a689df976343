"""What a node doesn't do for any server, as a Flower mod: its configuration stands above the run's.

It guards against a run that is configured otherwise than its participants were told. It is no wall against whoever may
submit runs, for a run brings the code of its clients with it (docs/deployment.md).
"""

from __future__ import annotations

from flwr.app import Context, Message, MessageType
from flwr.clientapp.typing import ClientAppCallable

from clients.arrays import to_tensors
from clients.participant import arrays_of, run_workspace
from snnfl.config import ConfigError, client_side, update_kind
from snnfl.conversion import exposed_biases
from snnfl.detection.crafted import crafted
from snnfl.protocol import REFUSE_CRAFTED, REQUIRE_SECURE, REQUIRE_SPIKING
from snnfl.workspace import Workspace


class NodePolicyError(RuntimeError):
    """A run asks of a node what its configuration forbids."""


def node_policy(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Refuse every message of a run that would upload what this node keeps to itself, the opening question included.

    Raises:
        NodePolicyError: If the node requires spiking updates or masked ones, and the run asks for others; or if it
            refuses crafted weights, and is to train such.
        ConfigError: If its configuration says neither yes nor no.
    """
    if (
        _wanted(context, REFUSE_CRAFTED)
        and message.metadata.message_type.partition(".")[0] == MessageType.TRAIN
        and (found := crafted(to_tensors(arrays_of(message)))) is not None
    ):
        raise NodePolicyError(f"the received weights look crafted: {found}, and this node has {REFUSE_CRAFTED}=true")
    if _wanted(context, REQUIRE_SPIKING) and (asked := unprotected(run_workspace(context))) is not None:
        raise NodePolicyError(f"the run's {asked}, but this node is configured with {REQUIRE_SPIKING}=true")
    if _wanted(context, REQUIRE_SECURE) and not run_workspace(context).config.strategy.secure_aggregation:
        asked = "strategy.secure_aggregation=false asks for updates without masks"
        raise NodePolicyError(f"the run's {asked}, but this node is configured with {REQUIRE_SECURE}=true")
    return call_next(message, context)


def _wanted(context: Context, option: str) -> bool:
    wanted = context.node_config.get(option, False)
    if not isinstance(wanted, bool):
        raise ConfigError(f"node config {option}={wanted!r}: expected true or false, without quotes")
    return wanted


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
    if client_side(config).control_variates:
        return "strategy.name=scaffold uploads control variates beside the spiking network"
    if config.strategy.bias_back:
        return "strategy.bias_back=true gives the server the biases that clients train with"
    if exposed := exposed_biases(
        work.graph, config.conversion.calibration, work.initial_state, work.dataset.input_shape
    ):
        layers = ", ".join(exposed)
        return f"conversion.calibration={config.conversion.calibration} shifts no bias of {layers} before upload"
    return None
