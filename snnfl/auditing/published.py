"""How much an attack got out of a published network: what its class images show, and what its copy is worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snnfl.auditing.judge import PIECE, Judge
from snnfl.metrics.generated import frechet_distance, kernel_distance
from snnfl.metrics.images import wilson
from snnfl.metrics.roc import Estimate, mean_of
from snnfl.model_attacks import Theft


@dataclass(frozen=True, kw_only=True, eq=False)
class Owner:
    """What scoring knows of the attacked network, and attacks don't.

    Attributes:
        answers: The class that it says for each of the real images, ``[M]``.
        real: Real images that nobody trained on, normalised, ``[M, *input_shape]``.
        labels: Theirs, ``[M]``.
    """

    answers: Tensor
    real: Tensor
    labels: Tensor

    @property
    def accuracy(self) -> float:
        """Of the attacked network."""
        return float((self.answers == self.labels).float().mean())


@dataclass(frozen=True, kw_only=True)
class Haul:
    """How much an attack got, of one network.

    Attributes:
        recognised: Part of each class's images in which the judge sees the class, by class. Chance is one over the
            number of classes; of real images it is the judge's accuracy.
        starts: Images of each class.
        frechet: Distance of the images from real ones, by the judge's features; the smaller, the more they show.
        kernel: Likewise, without the bias that few images have.
        accuracy: Of the stolen network on real images; ``None`` if the attack makes none.
        agreement: Part of the real images for which it says what the owner's network says, likewise.
    """

    recognised: tuple[float, ...]
    starts: int
    frechet: float
    kernel: float
    accuracy: float | None
    agreement: float | None


def score(theft: Theft, shown: Tensor, judge: Judge, owner: Owner) -> Haul:
    """Score what an attack got out of one network.

    Args:
        theft: What it returned.
        shown: Its class images as pictures can be shown, in the pixels' range, normalised; as ``theft.images``.
        judge: Sees them.
        owner: Of the network.
    """
    classes, starts = shown.shape[:2]
    images = shown.flatten(0, 1)
    seen = judge.classes(images).view(classes, starts)
    hits = seen == torch.arange(classes)[:, None]
    said = None if theft.network is None else classified(theft.network, owner.real)
    return Haul(
        recognised=tuple(hits.double().mean(1).tolist()),
        starts=starts,
        frechet=frechet_distance(images, owner.real, judge.extractor),
        kernel=kernel_distance(images, owner.real, judge.extractor),
        accuracy=None if said is None else float((said == owner.labels).float().mean()),
        agreement=None if said is None else float((said == owner.answers).float().mean()),
    )


@torch.no_grad()
def classified(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return the likeliest class of each image, ``[N]``."""
    return torch.cat([network(piece) for piece in torch.split(images, PIECE)]).argmax(1)


def recognition(hauls: Sequence[Haul]) -> Estimate:
    """Return the part of class images that is recognised, with its 95 % interval over classes, starts and seeds.

    Classes differ more than starts do, so the interval is that of a mean over classes (Student's t); but no narrower
    than Wilson's of as many images, since all classes may agree by chance.

    Args:
        hauls: Of one attack on networks of several seeds.
    """
    by_class = [sum(each) / len(hauls) for each in zip(*(haul.recognised for haul in hauls), strict=True)]
    spread = mean_of(by_class)
    number = len(by_class) * sum(haul.starts for haul in hauls)
    drawn = wilson(spread.value * number, number)
    low, high = (spread.low, spread.high) if len(by_class) > 1 else (drawn.low, drawn.high)
    return Estimate(value=spread.value, low=min(low, drawn.low), high=max(high, drawn.high))


def shares(values: Sequence[float | None], images: int) -> Estimate | None:
    """Return the mean over seeds of a part of real images, with its 95 % interval; ``None`` if there is none.

    Args:
        values: One for each seed.
        images: Real images that each is measured on, which seeds share.
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean = sum(known) / len(known)
    return mean_of(known, deviation=math.sqrt(mean * (1 - mean) / images))
