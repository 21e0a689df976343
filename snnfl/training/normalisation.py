"""Batch normalisation of channels-last images, as precise as PyTorch's of contiguous ones and as fast as its own."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from snnfl.models.over_time import over_time
from snnfl.models.spiking_layers import FEEDS_NEURONS
from snnfl.models.swapped import swapped
from snnfl.neurons.normalised import Normalised, lies_channels_last, moments


def precise_batch_norm(modules: Iterable[nn.Module]) -> AbstractContextManager[None]:
    """Let ``BatchNorm2d`` among modules add up channels-last batches on a CPU without losing digits, meanwhile.

    PyTorch's kernel for that layout adds up a channel's ``N H W`` values one after the other in float32: the first
    gradient of ResNet-20 is then five times as far from that in float64 as in the contiguous layout, which would cost a
    fifth of the speed (tests/snnfl/training/test_normalisation.py). Those of spiking networks, which fold time into the
    batch, add up even more. Layers of any other class stay as they are.
    """
    return swapped(modules, _PRECISE)


class _BatchNorm2d(nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d``, whose channels-last batches on a CPU are normalised by compiled passes over rows."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not _applies(self, input):
            return super().forward(input)
        return self.later(input).tensor()

    def later(self, images: Tensor, values: Tensor | None = None) -> Normalised:
        """Return what a batch of ``[N, C, H, W]`` becomes, not computed yet; its statistics are those of the layer.

        Args:
            images: What the layer normalises.
            values: The same in the shape that the result should have.
        """
        found = moments(images)
        rows = images.numel() // images.shape[1]
        with torch.no_grad():
            self.running_mean.lerp_(found.mean, self.momentum)  # type: ignore[union-attr, arg-type]  # _applies has looked
            self.running_var.lerp_(found.variance * (rows / (rows - 1)), self.momentum)  # type: ignore[union-attr, arg-type]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        return Normalised(images if values is None else values, self.weight, self.bias, found, self.eps)


_OverTime: Any = over_time(_BatchNorm2d)


class _OverTimeBatchNorm2d(_OverTime):  # type: ignore[misc]  # a class that is made while the program runs
    """Such a layer with a time axis: where nothing but neurons follow it, they normalise what it has received."""

    def forward(self, values: Tensor) -> Tensor | Normalised:
        images = values.flatten(0, 1)
        if self.training and getattr(self, FEEDS_NEURONS, False) and _applies(self, images):
            later: Normalised = self.later(images, values)
            return later
        normalised: Tensor = super().forward(values)
        return normalised


_PRECISE: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: _BatchNorm2d,
    over_time(nn.BatchNorm2d): _OverTimeBatchNorm2d,
}


def _applies(norm: nn.BatchNorm2d, images: Tensor) -> bool:
    """Tell whether a batch lies channels last on a CPU, has something to normalise, and the layer the usual options."""
    return (
        lies_channels_last(images)
        and images.shape[1] == norm.num_features
        and images.numel() > norm.num_features
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
    )
