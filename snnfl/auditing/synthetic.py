"""Whether images that were made of a network show the images that it was trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from snnfl.metrics.images import Rate, wilson
from snnfl.metrics.roc import Estimate, score

PIECE = 256


@dataclass(frozen=True, kw_only=True)
class Nearness:
    """How near synthetic images are to training images, beside as many held-out ones: chance would be one half.

    Attributes:
        nearest: Part of the synthetic images whose nearest real image is a training image; with its 95 % interval.
        membership: AUC of real images' nearness to the synthetic ones as a sign of having been trained on.
        members: Training images, and as many held-out ones.
        synthetic: Synthetic images.
    """

    nearest: Rate
    membership: Estimate
    members: int
    synthetic: int


def nearness(synthetic: Tensor, members: Tensor, others: Tensor, features: nn.Module | None = None) -> Nearness:
    """Compare distances of synthetic images to training and to held-out images.

    Few real images are nearest to many synthetic ones, so these are no independent trials: the interval is that of
    ``n^2 / sum_g n_g^2`` images, ``n_g`` of the ``n`` synthetic ones having the real image ``g`` as their nearest.

    Args:
        synthetic: ``[S, *input_shape]``.
        members: Images that the network was trained on, ``[N, *input_shape]``.
        others: As many of the same kind that it wasn't.
        features: In which distances are taken; ``None``: over pixels.

    Raises:
        ValueError: If there are not as many held-out images as training images: then the null isn't one half.
    """
    if len(members) != len(others):
        raise ValueError(f"{len(members)} training and {len(others)} held-out images; give as many of each")
    made, known, unknown = (_flat(images, features) for images in (synthetic, members, others))
    distances = torch.cdist(made, torch.cat([known, unknown]))
    nearest = distances.argmin(1)
    share = float((nearest < len(known)).double().mean())
    independent = len(made) ** 2 / float(nearest.bincount().double().square().sum())
    truth = np.arange(2 * len(known)) < len(known)
    scored = score([(-distances.amin(0)).numpy()], [truth])
    return Nearness(
        nearest=wilson(share * max(1, round(independent)), max(1, round(independent))),
        membership=scored.auc,
        members=len(known),
        synthetic=len(made),
    )


@torch.no_grad()
def _flat(images: Tensor, features: nn.Module | None) -> Tensor:
    if features is None:
        return images.flatten(1)
    return torch.cat([features(piece) for piece in torch.split(images, PIECE)])
