"""What attacks on spiking updates are compared with: the same client, had it sent its ANN, plainly or with noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from snnfl import rng
from snnfl.attacks.networks import normalised_layers
from snnfl.auditing.victims import Victim
from snnfl.updates import Plain

MULTIPLIERS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Deviations of the noise on each weight, in units of the clipping norm."""


def plain_twin(victim: Victim) -> Victim | None:
    """Return what the server would have received of a client of an S-run in a plain one: its trained ANN.

    The weights are those that the update is turned back into; the biases before and after training are the client's
    own, told with consent. So network, accuracy, images and training are the same, and what an attack finds more in
    the twin is what the conversion hides. Channels that cannot be recovered count as unchanged in both.

    Returns:
        A victim of a plain run, or ``None`` without consent, for a client of a plain run or a sum of several, and where
        the view lacks the statistics that the weights are recovered with, as every attack on such an S-update does.
    """
    view, truth = victim.view, victim.truth
    if not view.format.hides_biases or truth is None or {*truth.biases} != {*truth.trained_biases}:
        return None
    if len(victim.members) > 1:
        return None  # each client has started from biases of its own
    if normalised_layers(view.model) and "update_statistics" not in view.knowledge.facts:
        return None
    sent, received = view.exchange.sent, view.exchange.received
    trained = view.format.decode(received, sent, biases=False)
    exchange = replace(view.exchange, sent={**sent, **truth.biases}, received={**trained, **truth.trained_biases})
    known = replace(view.knowledge, biases=True, thresholds=False)
    plain = replace(view, exchange=exchange, knowledge=known, format=Plain(exchange.sent), initial=None, earlier=())
    return replace(victim, view=plain)


def noised(victims: Sequence[Victim], multiplier: float, seed: int) -> list[Victim]:
    """Return victims of a plain run whose updates are clipped to their median norm C and noised by ``N(0, (z C)^2)``.

    ``u <- u min(1, C/|u|) + z C N(0, I)`` on trained parameters (Abadi et al. 2016, algorithm 1, per client). It is a
    curve for comparison; no epsilon is claimed for it. Who clips says so, so the attacker knows which updates were
    shortened.

    Args:
        victims: Of one round or several.
        multiplier: z.
        seed: Of the run.
    """
    changes = [_change(victim) for victim in victims]
    norms = [float(torch.cat([array.flatten() for array in change.values()]).norm()) for change in changes]
    limit = sorted(norms)[len(norms) // 2]
    return [
        _disturbed(victim, change, min(1.0, limit / norm) if norm else 1.0, multiplier * limit, seed)
        for victim, change, norm in zip(victims, changes, norms, strict=True)
    ]


def _change(victim: Victim) -> dict[str, torch.Tensor]:
    exchange = victim.view.exchange
    trained = {name for name, _ in victim.view.model.named_parameters()}
    return {name: array - exchange.sent[name] for name, array in exchange.received.items() if name in trained}


def _disturbed(victim: Victim, change: dict[str, torch.Tensor], factor: float, deviation: float, seed: int) -> Victim:
    exchange = victim.view.exchange
    draw = rng.generator(seed, "audit noise", victim.server_round, victim.partition)
    sent = {
        name: exchange.sent[name] + factor * array + deviation * torch.randn(array.shape, generator=draw)
        for name, array in change.items()
    }
    received, known = {**exchange.received, **sent}, victim.view.knowledge
    known = replace(known, clipped=known.clipped or factor < 1)
    return replace(victim, view=replace(victim.view, exchange=replace(exchange, received=received), knowledge=known))
