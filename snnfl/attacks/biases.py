"""What a curious server takes for a client's private biases, which an S-update doesn't hold (SNFL section 5.3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

from snnfl.attacks.networks import Arrays, normalised_layers
from snnfl.threat import Exchange, ServerView, ThreatModelError
from snnfl.training import private_biases

BiasSource: TypeAlias = Callable[[ServerView], Arrays]
"""Returns every private bias of the view's model, by name."""


def as_received(view: ServerView) -> Arrays:
    """Take the calibrated bias of the spiking network as it is: the paper's ANN2 (SNFL section 5.1)."""
    return {name: view.exchange.received[name] for name in private_biases(view.model)}


def zero(view: ServerView) -> Arrays:
    """Take zero."""
    return {name: torch.zeros(view.model.get_parameter(name).shape) for name in private_biases(view.model)}


def inferred(view: ServerView) -> Arrays:
    """Undo the folding: ``b_A = (b' - beta) sigma/gamma + mean``, as the paper's curious server does (section 5.3).

    What is left is the calibration's shift. Without batch normalisation behind a layer this is :func:`as_received`.
    """
    return _inferred(view, view.exchange)


def over_rounds(view: ServerView) -> Arrays:
    """Average what :func:`inferred` gives over this and all earlier rounds.

    A round's calibration error depends on its calibration images, which are drawn anew; the mean's doesn't so much.

    Raises:
        ThreatModelError: If the view has no earlier round.
    """
    if not view.earlier:
        raise ThreatModelError("the view has no earlier round of this client to average over")
    found = [_inferred(view, exchange) for exchange in (*view.earlier, view.exchange)]
    return {name: torch.stack([biases[name] for biases in found]).mean(0) for name in found[0]}


def initial(view: ServerView) -> Arrays:
    """Take the common initial weights': right in a client's first round, since all start from one seed.

    Raises:
        ThreatModelError: If the view has no initial weights.
    """
    if view.initial is None:
        raise ThreatModelError("the view has no initial weights")
    return {name: view.initial[name] for name in private_biases(view.model)}


def likeliest(view: ServerView) -> Arrays:
    """Take what is nearest in the table of biases: :func:`over_rounds`, else :func:`initial`, else :func:`inferred`."""
    return over_rounds(view) if view.earlier else inferred(view) if view.initial is None else initial(view)


def bias_distance(found: Arrays, true: Arrays) -> float:
    """Return the L2 distance over all biases together: the curve of SNFL, Figure 3A."""
    return float(torch.cat([(found[name] - true[name]).flatten() for name in true]).norm())


def _inferred(view: ServerView, exchange: Exchange) -> Arrays:
    if not view.format.hides_biases:
        raise ThreatModelError("biases are inferred from a spiking update, this is a plain one")
    if normalised_layers(view.model) and "update_statistics" not in view.knowledge.facts:
        raise ThreatModelError("biases are inferred with update_statistics, which the threat model denies")
    state = view.format.decode(exchange.received, exchange.sent, biases=True)
    return {name: state[name] for name in private_biases(view.model)}
