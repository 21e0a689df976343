"""How far generated images are from real ones in the features of a network, which has to be named beside the number."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snnfl.torchvision_guard import guard


def frechet_distance(found: Tensor, real: Tensor, extractor: nn.Module) -> float:
    """Return the Fréchet distance of two sets of images by an extractor of one's own (Heusel et al. 2017).

    ``|m - m'|^2 + tr(S + S' - 2 (S S')^(1/2))`` of features' means and covariances. With Inception's features it is the
    FID; numbers of different extractors can't be compared, and fewer images than features make it larger.

    Args:
        found: Images as the extractor takes them, ``[N, ...]``, at least 2.
        real: Likewise, ``[M, ...]``.
        extractor: ``[N, ...] -> [N, num_features]``, ``num_features`` being an attribute of it.
    """
    guard()  # torchmetrics imports torchvision
    from torchmetrics.image.fid import FrechetInceptionDistance

    distance = FrechetInceptionDistance(feature=extractor)
    with torch.no_grad():
        for images, are_real in ((real, True), (found, False)):
            for piece in torch.split(images, 256):
                distance.update(piece, real=are_real)
    return float(distance.compute())


def kernel_distance(found: Tensor, real: Tensor, extractor: nn.Module) -> float:
    """Return the squared maximum mean discrepancy with the kernel ``(x y / d + 1)^3`` (KID; Binkowski et al. 2018).

    Unlike the Fréchet distance it is unbiased, so it may be negative, and few images don't make it larger. It is the
    mean over disjoint sets of as many real images as are found.

    Args:
        found: As for :func:`frechet_distance`.
        real: Likewise, at least as many.
        extractor: Likewise.

    Raises:
        ValueError: If there are fewer real images than found ones.
    """
    guard()
    from torchmetrics.image.kid import poly_mmd

    if len(real) < len(found):
        raise ValueError(f"{len(real)} real images for {len(found)} found ones; give as many")
    with torch.no_grad():
        ours = torch.cat([extractor(piece) for piece in torch.split(found, 256)]).double()
        theirs = torch.cat([extractor(piece) for piece in torch.split(real, 256)]).double()
    sets = [part for part in torch.split(theirs, len(ours)) if len(part) == len(ours)]
    return float(torch.stack([poly_mmd(part, ours) for part in sets]).mean())
