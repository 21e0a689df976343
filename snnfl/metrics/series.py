"""How near found sounds, time series and rows of a table are to the true ones; one number per sample, ``[N]``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

DECIBELS = 10 / math.log(10)
"""Of one unit of a natural logarithm of energy."""


def correlation(found: Tensor, true: Tensor) -> Tensor:
    """Return Pearson's correlation over time, the mean over features; a feature that is constant in either counts 0.

    Args:
        found: Shape ``[N, T, features]``.
        true: As ``found``.

    >>> correlation(torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[[6.0], [4.0], [2.0]]]))
    tensor([-1.])
    """
    centred = [values.double() - values.double().mean(1, keepdim=True) for values in (found, true)]
    norms = [values.square().sum(1).sqrt() for values in centred]
    product, both = (centred[0] * centred[1]).sum(1), norms[0] * norms[1]
    constant = torch.minimum(*norms) <= 1e-6 * torch.maximum(found.abs().amax(1), true.abs().amax(1)).double()
    return torch.where(constant, 0.0, product / both.clamp_min(1e-300)).clamp(-1, 1).mean(1).float()


def warping_distance(found: Tensor, true: Tensor) -> Tensor:
    """Return the dynamic time warping distance, ``sqrt(D[T, T] / T)`` over all features together.

    ``D[i, j] = |x_i - y_j|^2 + min(D[i-1, j], D[i, j-1], D[i-1, j-1])`` with the steps ``x_i``, ``y_j`` (Sakoe & Chiba
    1978, without a window). A series that is only early or late by some steps is near. Of equal tempo it is the root
    of the squared distance per step.

    Args:
        found: Shape ``[N, T, features]``.
        true: As ``found``.

    >>> warping_distance(torch.tensor([[[0.0], [0.0], [1.0]]]), torch.tensor([[[0.0], [1.0], [1.0]]]))
    tensor([0.])
    """
    steps = true.shape[1]
    costs = (found.double()[:, :, None] - true.double()[:, None]).square().sum(3)
    total = costs.new_full((len(true), steps + 1, steps + 1), torch.inf)
    total[:, 0, 0] = 0
    for diagonal in range(2, 2 * steps + 1):
        i = torch.arange(max(1, diagonal - steps), min(steps, diagonal - 1) + 1)
        j = diagonal - i
        before = torch.stack([total[:, i - 1, j], total[:, i, j - 1], total[:, i - 1, j - 1]]).amin(0)
        total[:, i, j] = costs[:, i - 1, j - 1] + before
    return (total[:, steps, steps] / steps).sqrt().float()


def log_spectral_distance(found: Tensor, true: Tensor) -> Tensor:
    """Return the log-spectral distance in dB: root mean square over bands, averaged over time (Gray & Markel 1976).

    Args:
        found: Natural logarithms of energies, ``[N, T, bands]``.
        true: As ``found``.

    >>> log_spectral_distance(torch.zeros(1, 2, 4), torch.full((1, 2, 4), 1.0))
    tensor([4.3429])
    """
    return DECIBELS * (found - true).square().mean(2).sqrt().mean(1)


def relative_error(found: Tensor, true: Tensor) -> Tensor:
    """Return ``|found - true| / |true|`` by Euclidean norms; of a row of zeros the norm is taken as 1.

    Args:
        found: Standardised features ``[N, ...]``, so that the mean row has an error of 1.
        true: As ``found``.
    """
    norms = true.flatten(1).norm(dim=1)
    error: Tensor = (found - true).flatten(1).norm(dim=1) / torch.where(norms > 0, norms, torch.ones_like(norms))
    return error
