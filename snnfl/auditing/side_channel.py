"""What the thresholds of an S-update add to what its weights tell: whose images calibrated, and what they are like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snnfl import rng
from snnfl.attacks.problem import problem_of
from snnfl.attacks.side_channel import described, fingerprint_distances, gradient_cosines, infer_properties
from snnfl.auditing.controls import plain_twin
from snnfl.auditing.victims import Victim
from snnfl.threat import ThreatModelError

OTHERS = 1000
"""Public images among which members are looked for."""

MOST = 512
"""Images of a client that are looked for at most."""


@dataclass(frozen=True, kw_only=True)
class SideChannel:
    """What thresholds tell of one client's images, beside what the weights of the same client's plain twin tell.

    A member counts as found if it scores above all public images: no false alarm among :data:`OTHERS`.

    Attributes:
        server_round: Counted from 1.
        partition: Of the client.
        images: That it trained on.
        auc: That a member is nearer to a threshold than a public image is.
        found: Part of the members that thresholds find.
        twin_auc: As ``auc``, by the cosine of an image's gradient with the plain twin's update.
        twin_found: As ``found``, by that cosine.
        brightness: As inferred from thresholds, in [0, 1]; ``None`` without labelled public images.
        true_brightness: Of the client's images.
        contrast: Standard deviation of the pixels, likewise.
        true_contrast: Of the client's images.
        classes: Correlation of the inferred classes' shares with the true ones.
    """

    server_round: int
    partition: int
    images: int
    auc: float
    found: float
    twin_auc: float | None
    twin_found: float | None
    brightness: float | None
    true_brightness: float
    contrast: float | None
    true_contrast: float
    classes: float | None


def side_channels(victims: Sequence[Victim], seed: int) -> list[SideChannel]:
    """Ask the thresholds of those clients of an S-run that consented to tell the truth.

    Args:
        victims: Of any run; plain ones have no thresholds.
        seed: Of the run.
    """
    rows = list[SideChannel]()
    for victim in victims:
        if victim.truth is None or victim.view.public is None:
            continue
        try:
            rows.append(_row(victim, seed))
        except ThreatModelError:
            continue
    return rows


def _row(victim: Victim, seed: int) -> SideChannel:
    view, truth, public = victim.view, victim.truth, victim.view.public
    if truth is None or public is None:
        raise ThreatModelError("nobody told the truth")
    members, labels = view.inputs(truth.images[:MOST]), truth.labels[:MOST]
    others = public.inputs[:OTHERS]
    near = [-fingerprint_distances(view, images) for images in (members, others)]
    cosines = _of_twin(victim, members, labels)
    draw = rng.generator(seed, "audit side channel", victim.server_round, victim.partition)
    conversion = view.format.conversion
    count = min(len(truth.images), conversion.calibration_images if conversion is not None else len(truth.images))
    properties, correlation = None, None
    if public.labels is not None:
        properties = infer_properties(view, count, draw)
        true = described(truth.images, truth.labels, len(properties.shares))
        correlation = float(torch.corrcoef(torch.stack([properties.shares, true[2:]]))[0, 1])
    return SideChannel(
        server_round=victim.server_round,
        partition=victim.partition,
        images=len(truth.images),
        auc=auc(*near),
        found=above_all(*near),
        twin_auc=None if cosines is None else auc(*cosines),
        twin_found=None if cosines is None else above_all(*cosines),
        brightness=None if properties is None else properties.brightness,
        true_brightness=float(truth.images.mean()),
        contrast=None if properties is None else properties.contrast,
        true_contrast=float(truth.images.std()),
        classes=None if correlation is None or correlation != correlation else correlation,
    )


def _of_twin(victim: Victim, members: Tensor, labels: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the cosines of members and of public images with the update of the plain twin, or ``None``."""
    twin, public = plain_twin(victim), victim.view.public
    if twin is None or public is None or public.labels is None:
        return None
    count = victim.view.knowledge.images or len(members)
    problem = problem_of(twin.view, norm_mode="eval", count=count)
    of_members = gradient_cosines(problem, members, labels)
    return of_members, gradient_cosines(problem, public.inputs[:OTHERS], public.labels[:OTHERS])


def auc(members: Tensor, others: Tensor) -> float:
    """Return the probability that a member scores above another, ties counting half."""
    pairs = members[:, None] - others[None]
    return float(((pairs > 0).double() + 0.5 * (pairs == 0).double()).mean())


def above_all(members: Tensor, others: Tensor) -> float:
    """Return the part of the members that score above all others."""
    return float((members > others.max()).double().mean())
