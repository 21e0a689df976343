"""What the conversion of a client's network adds: it is calibrated on the client's images, and tells on which."""

from __future__ import annotations

import torch
from torch import Tensor

from snnfl.attacks.side_channel import fingerprint_distances
from snnfl.membership_attacks.confidence import log_confidence
from snnfl.membership_attacks.federated.networks import AT_ONCE
from snnfl.membership_attacks.federated.registry import register
from snnfl.spiking import SpikingNetwork
from snnfl.threat import FederationView, ServerView, ThreatModelError

NEEDS = ("architecture", "thresholds", "update_statistics", "individual")
OURS = "SNFL section 4.2, read by its server"


@register("fingerprint", source=OURS, needs=NEEDS, against="converted")
def fingerprint(view: FederationView, generator: torch.Generator) -> Tensor:
    """How near a sample's largest activation is to what a threshold is a multiple of, in the nearest of the rounds."""
    distances = torch.stack([fingerprint_distances(each.own, view.inputs) for each in view.rounds])
    return -distances.clamp(max=1.0).amin(0)


@register("spiking_loss", source=OURS, needs=(*NEEDS, "loss"), against="converted")
def spiking_loss(view: FederationView, generator: torch.Generator) -> Tensor:
    """How small a sample's loss is in the client's spiking network, added up over rounds."""
    return torch.stack(
        [log_confidence(_logits(network_of_update(each.own), view.inputs), view.labels) for each in view.rounds]
    ).sum(0)


@register("calibrated_biases", source=OURS, needs=NEEDS, against="converted")
def calibrated_biases(view: FederationView, generator: torch.Generator) -> Tensor:
    """How little the client's spiking network errs on a sample beside its analog twin: biases correct that error.

    ``-|f_S(x) - f_A(x)| / |f_A(x)|`` of the logits, averaged over rounds. Calibration takes the mean error over the
    calibration images out of each bias.
    """
    found = []
    for each in view.rounds:
        network = network_of_update(each.own)
        spiking, analog = _logits(network, view.inputs), _analog(network, view.inputs)
        found.append(-(spiking - analog).norm(dim=1) / analog.norm(dim=1).clamp_min(1e-30))
    return torch.stack(found).mean(0)


def network_of_update(view: ServerView) -> SpikingNetwork:
    """Return the spiking network in a client's update.

    Raises:
        ThreatModelError: If there is none.
    """
    network = view.format.server_network(view.format.deployed(view.exchange.received))
    if network is None:
        raise ThreatModelError("the update is no converted network")
    return network


@torch.no_grad()
def _logits(network: SpikingNetwork, inputs: Tensor) -> Tensor:
    return torch.cat([network(part) for part in torch.split(inputs, AT_ONCE)])


@torch.no_grad()
def _analog(network: SpikingNetwork, inputs: Tensor) -> Tensor:
    return torch.cat([network.analog(part) for part in torch.split(inputs, AT_ONCE)])
