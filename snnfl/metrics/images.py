"""How much of a private image a reconstruction shows, and how sure one may be of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from snnfl.torchvision_guard import guard

Unavailable = Literal["not available"]
NOT_AVAILABLE: Unavailable = "not available"
"""What a metric says that cannot be computed here, in place of a number that somebody might average."""

LARGEST_PSNR = 200.0
"""In dB, of equal images: a finite number, beyond what single precision distinguishes."""


def mse(found: Tensor, true: Tensor) -> Tensor:
    """Return the mean squared error per image, shape ``[N]``.

    Args:
        found: Pixels in [0, 1], shape ``[N, ...]``.
        true: As ``found``.
    """
    return (found - true).square().flatten(1).mean(1)


def psnr(found: Tensor, true: Tensor) -> Tensor:
    """Return ``10 log10(1 / MSE)`` per image in dB, shape ``[N]``, at most :data:`LARGEST_PSNR`.

    >>> psnr(torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.5))
    tensor([6.0206])
    """
    return -10 * torch.log10(mse(found, true).clamp_min(10 ** (-LARGEST_PSNR / 10)))


def ssim(found: Tensor, true: Tensor) -> Tensor:
    """Return the structural similarity per image, shape ``[N]`` (Wang et al. 2004; torchmetrics, Gaussian window).

    Its window has 11 pixels; of images smaller than that the window is the largest odd number that fits.

    Args:
        found: Pixels in [0, 1], shape ``[N, C, H, W]``.
        true: As ``found``.
    """
    guard()  # torchmetrics imports torchvision
    from torchmetrics.functional.image import structural_similarity_index_measure

    side = min(found.shape[-2:])
    result = structural_similarity_index_measure(
        found,
        true,
        data_range=1.0,
        reduction="none",
        gaussian_kernel=side >= 11,  # the Gaussian window's size follows from its width, not from the image's
        kernel_size=min(11, side - (side + 1) % 2),
    )
    return torch.as_tensor(result).flatten()


def registered_psnr(found: Tensor, true: Tensor, *, shift: int = 2) -> Tensor:
    """Return the best PSNR over shifts of up to ``shift`` pixels down and across, per image in dB, shape ``[N]``.

    A picture that is only displaced is leaked all the same. What a shift moves out of the picture isn't compared.

    Args:
        found: Pixels in [0, 1], shape ``[N, C, H, W]``.
        true: As ``found``.
        shift: In pixels, smaller than the image.
    """
    offsets = [(down, across) for down in range(-shift, shift + 1) for across in range(-shift, shift + 1)]
    scores = [psnr(_moved(found, *offset), _moved(true, *(-step for step in offset))) for offset in offsets]
    return torch.stack(scores).amax(0)


def _moved(images: Tensor, down: int, across: int) -> Tensor:
    """Cut off ``down`` rows from the top (negative: the bottom) and ``across`` columns from the left (right)."""
    height, width = images.shape[-2:]
    rows = slice(max(down, 0), height + min(down, 0))
    return images[..., rows, max(across, 0) : width + min(across, 0)]


def matched(found: Tensor, true: Tensor) -> Tensor:
    """Return for each true image the index of the reconstruction that is counted as its own, ``[N]``.

    The assignment with the smallest total squared error (Hungarian method). A true image beyond the number of
    reconstructions gets ``-1``: nothing of it was reconstructed.

    Args:
        found: Shape ``[M, ...]``.
        true: Shape ``[N, ...]``.
    """
    return assigned(torch.cdist(true.flatten(1).double(), found.flatten(1).double()).square())


def assigned(costs: Tensor) -> Tensor:
    """Return the column of each row in the cheapest assignment, ``[N]``; ``-1`` for rows beyond the columns.

    Args:
        costs: Shape ``[N, M]``.
    """
    from scipy.optimize import linear_sum_assignment  # half a second to import

    rows, columns = linear_sum_assignment(costs.numpy())
    chosen = torch.full((len(costs),), -1)
    chosen[torch.as_tensor(rows)] = torch.as_tensor(columns)
    return chosen


def label_accuracy(found: Tensor, true: Tensor) -> float:
    """Return the part of the labels that are right, as multisets: order doesn't count, repetitions do.

    The part is of the guessed or of the true labels, whichever are more: whoever guesses more labels than there are
    would otherwise find them all.

    >>> label_accuracy(torch.tensor([3, 3, 1]), torch.tensor([1, 2, 3]))
    0.6666666666666666
    >>> label_accuracy(torch.arange(10), torch.tensor([3, 3]))
    0.1
    """
    # Not counted up to the largest, which is whatever an attack says.
    classes: Tensor = torch.cat([found, true]).unique()  # type: ignore[no-untyped-call]
    counts = [(labels[:, None] == classes).sum(0) for labels in (found, true)]
    return int(torch.minimum(*counts).sum()) / max(len(found), len(true))


def identified(
    found: Tensor, candidates: Tensor, own: Tensor, features: Callable[[Tensor], Tensor], *, batch_size: int = 256
) -> Tensor:
    """Tell of each reconstruction whether the nearest of all candidate images is its own: its mean is the IIP.

    Image Identifiability Precision (Yin et al. 2021, section 4.1), by cosine similarity of features.

    Args:
        found: Reconstructions, ``[N, ...]``, in the units that ``features`` takes.
        candidates: Training images, the victims' among them, ``[M, ...]``.
        own: Index among the candidates of each reconstruction's true image, ``[N]``.
        features: ``[batch, ...] -> [batch, F]``, such as the run's own network up to its last layer.
        batch_size: Images per call of ``features``.

    Returns:
        Shape ``[N]``, bool.
    """
    with torch.no_grad():
        vectors = [
            torch.nn.functional.normalize(
                torch.cat([features(part) for part in torch.split(images, batch_size)]), dim=1
            )
            for images in (found, candidates)
        ]
    return (vectors[0] @ vectors[1].T).argmax(1) == own


def lpips(found: Tensor, true: Tensor) -> Tensor | Unavailable:
    """Return the learned perceptual distance per image, ``[N]``, where the weights of AlexNet lie in torch's cache.

    Nothing is downloaded: without the weights, and for images without colour, it is :data:`NOT_AVAILABLE`.

    Args:
        found: Pixels in [0, 1], shape ``[N, 3, H, W]``.
        true: As ``found``.
    """
    weights = Path(torch.hub.get_dir()) / "checkpoints"
    if found.shape[1] != 3 or not list(weights.glob("alexnet-*.pth")):
        return NOT_AVAILABLE
    guard()
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity as distance

    pairs = zip(torch.split(found, 1), torch.split(true, 1), strict=True)
    with torch.no_grad():
        return torch.stack([distance(ours, theirs, net_type="alex", normalize=True) for ours, theirs in pairs])


def floors(true: Tensor, public: Tensor) -> Mapping[str, Tensor]:
    """Return what an attacker scores who has seen no update: guesses in the shape of ``true``, by name.

    ``grey`` is 0.5 everywhere, ``mean_image`` the mean of a public set, ``mean_colour`` each target's own mean per
    channel, which is already more than nothing.

    Args:
        true: Pixels in [0, 1], shape ``[N, C, H, W]``.
        public: Pixels in [0, 1] of images that aren't the clients', shape ``[M, C, H, W]``; of none there is no mean.
    """
    colour = true.mean(dim=(-2, -1), keepdim=True)
    mean = {"mean_image": public.mean(0, keepdim=True).expand_as(true)} if len(public) else {}
    return {"grey": torch.full_like(true, 0.5), **mean, "mean_colour": colour.expand_as(true)}


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A share of victims with its 95% Wilson interval.

    Attributes:
        value: ``successes / victims``.
        low: Lower end.
        high: Upper end.
        victims: Number of them.
    """

    value: float
    low: float
    high: float
    victims: int


def success_rate(scores: Tensor, threshold: float) -> Rate:
    """Return the share of victims whose score reaches a threshold.

    Args:
        scores: One per victim, larger being worse for the victim; NaN is no success.
        threshold: For example 20 dB.
    """
    return wilson(int((scores >= threshold).sum()), len(scores))


def wilson(successes: float, victims: int, *, z: float = 1.959963984540054) -> Rate:
    """Return the Wilson score interval (Wilson 1927).

    ``(p + z²/2n ± z sqrt(p (1 - p)/n + z²/4n²)) / (1 + z²/n)``, which holds for few victims and rates of 0 and 1, too.

    Args:
        successes: From 0 to ``victims``; a victim of several samples counts with the part of them.
        victims: At least 1.
        z: Quantile of the normal distribution; the default is that of 95%.

    Raises:
        ValueError: If the counts don't fit.

    >>> rate = wilson(8, 10)
    >>> round(rate.low, 3), round(rate.high, 3)
    (0.49, 0.943)
    """
    if not 0 <= successes <= victims or victims < 1:
        raise ValueError(f"{successes} successes of {victims} victims: expected at least one victim, and no more")
    share, square = successes / victims, z * z
    centre = share + square / (2 * victims)
    half = z * math.sqrt(share * (1 - share) / victims + square / (4 * victims**2))
    scale = 1 + square / victims
    return Rate(
        value=share, low=max(0.0, (centre - half) / scale), high=min(1.0, (centre + half) / scale), victims=victims
    )
