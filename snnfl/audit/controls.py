"""What an attack finds of an update that was clipped and noised first: a scale for what spiking updates hide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from snnfl import rng
from snnfl.audit.victims import Victim

MULTIPLIERS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Deviations of the noise on each weight, in units of the clipping norm."""


def noised(victims: Sequence[Victim], multiplier: float, seed: int) -> list[Victim]:
    """Return victims of a plain run whose updates are clipped to their median norm C and noised by ``N(0, (z C)^2)``.

    ``u <- u min(1, C/|u|) + z C N(0, I)`` on trained parameters (Abadi et al. 2016, algorithm 1, per client). It is a
    curve for comparison; no epsilon is claimed for it.

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
    received = {**exchange.received, **sent}
    return replace(victim, view=replace(victim.view, exchange=replace(exchange, received=received)))
