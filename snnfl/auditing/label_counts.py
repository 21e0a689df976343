"""How well a curious server counts its clients' labels, be there as many images and epochs as may."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from snnfl import rng
from snnfl.attacks import biases
from snnfl.attacks.labels import infer_label_counts
from snnfl.attacks.problem import problem_of
from snnfl.auditing.victims import Victim
from snnfl.threat import ThreatModelError

NEEDS = frozenset({"architecture", "loss"})

MAXIMUM_STEPS = 100_000
"""Local steps that are summed up at most, whatever number of images a client claims."""


@dataclass(frozen=True, kw_only=True)
class LabelCounts:
    """How many of a client's images the server counts to the wrong class.

    Attributes:
        server_round: Counted from 1.
        partition: Of the client.
        images: That it trained on.
        misplaced: Part of them that would have to be of another class for the counts to be right.
        even: The same of counts that are equal for all classes, which need no update.
        correlation: Of the counts with the true ones over classes; ``None`` where one of them is constant.
    """

    server_round: int
    partition: int
    images: int
    misplaced: float
    even: float
    correlation: float | None


def label_counts(victims: Sequence[Victim], seed: int) -> list[LabelCounts]:
    """Compare the counts with the truth of those clients that consented to tell, and whose training is known.

    Args:
        victims: Of a plain or an S-run.
        seed: Of the run.
    """
    rows = list[LabelCounts]()
    for victim in victims:
        view, truth = victim.view, victim.truth
        if truth is None or view.beyond or not view.knowledge.facts >= NEEDS:
            continue
        if (view.knowledge.steps or 0) > MAXIMUM_STEPS:
            continue
        draw = rng.generator(seed, "audit label counts", victim.server_round, victim.partition)
        try:
            guesses = biases.inferred(view) if view.format.hides_biases else None
            counts = infer_label_counts(view, problem_of(view, guesses=guesses), draw)
        except ThreatModelError:
            continue
        true = torch.bincount(truth.labels, minlength=len(counts)).float()
        rows.append(_row(victim, counts * len(truth.labels) / counts.sum(), true))
    return rows


def _row(victim: Victim, counts: torch.Tensor, true: torch.Tensor) -> LabelCounts:
    images = float(true.sum())
    even = torch.full_like(true, images / len(true))
    correlation = float(torch.corrcoef(torch.stack([counts, true]))[0, 1])
    return LabelCounts(
        server_round=victim.server_round,
        partition=victim.partition,
        images=int(images),
        misplaced=float((counts - true).abs().sum()) / (2 * images),
        even=float((even - true).abs().sum()) / (2 * images),
        correlation=None if correlation != correlation else correlation,
    )
