"""Batch normalisation of channels-last images, as precise as PyTorch's of contiguous ones and as fast as its own."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from snnfl.models.over_time import over_time
from snnfl.models.swapped import swapped


def precise_batch_norm(model: nn.Module) -> AbstractContextManager[None]:
    """Let a model's ``BatchNorm2d`` add up channels-last batches on a CPU without losing digits, meanwhile.

    PyTorch's kernel for that layout adds up a channel's ``N H W`` values one after the other in float32: the first
    gradient of ResNet-20 is then five times as far from that in float64 as in the contiguous layout, which would cost a
    fifth of the speed (tests/snnfl/training/test_normalisation.py). Those of spiking networks, which fold time into the
    batch, add up even more. Layers of any other class stay as they are.
    """
    precise: dict[type[nn.Module], type[nn.Module]] = {
        nn.BatchNorm2d: _BatchNorm2d,
        over_time(nn.BatchNorm2d): over_time(_BatchNorm2d),
    }
    return swapped(model, precise)


class _BatchNorm2d(nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d``, whose channels-last batches on a CPU are normalised by :class:`_OverRows`."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not _applies(self, input):
            return super().forward(input)
        normalised, mean, variance = _OverRows.apply(input, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        rows = input.numel() // input.shape[1]
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)  # type: ignore[union-attr, arg-type]  # _applies has looked
            self.running_var.lerp_(variance * (rows / (rows - 1)), self.momentum)  # type: ignore[union-attr, arg-type]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        return normalised  # type: ignore[no-any-return]


def _applies(norm: nn.BatchNorm2d, images: Tensor) -> bool:
    """Tell whether a batch lies channels last on a CPU, has something to normalise, and the layer the usual options."""
    return (
        images.dim() == 4
        and images.device.type == "cpu"
        and not images.is_contiguous()
        and images.is_contiguous(memory_format=torch.channels_last)
        and images.shape[1] == norm.num_features
        and images.numel() > norm.num_features
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
    )


class _OverRows(torch.autograd.Function):
    """``y = gamma (x - mean) / sqrt(var + eps) + beta`` over the rows of ``[M, C]`` (Ioffe and Szegedy 2015, alg. 1).

    PyTorch adds up rows pairwise. Returns ``y`` in the layout of the images, and the mean and the biased variance, each
    of ``[C]``.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        rows = _rows(images)
        mean = rows.mean(0)
        centred = rows - mean
        variance = centred.square().mean(0)
        inverse = (variance + eps).rsqrt()
        ctx.save_for_backward(centred, inverse, gamma)
        ctx.mark_non_differentiable(mean, variance)
        return _images(torch.addcmul(beta, centred, inverse * gamma), images.shape), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        centred, inverse, gamma = ctx.saved_tensors
        rows = _rows(gradient)
        beta, product = rows.sum(0), (rows * centred).sum(0)
        wanted = torch.addcmul(rows - beta / len(rows), centred, -inverse.square() * product / len(rows))
        return _images(wanted.mul_(gamma * inverse), gradient.shape), product * inverse, beta, None


def _rows(images: Tensor) -> Tensor:
    return images.movedim(1, -1).reshape(-1, images.shape[1])


def _images(rows: Tensor, shape: torch.Size) -> Tensor:
    count, channels, height, width = shape
    return rows.view(count, height, width, channels).movedim(-1, 1)
