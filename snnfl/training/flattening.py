"""Flattened channels-last images, whose gradient comes back as they lay."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from snnfl.models.swapped import swapped

LARGE = 2**15
"""Numbers of a batch from which the layer before gains more than a hook costs."""


def laid_out_gradients(modules: Iterable[nn.Module]) -> AbstractContextManager[None]:
    """Let ``Flatten`` among modules give the layer before it a gradient that lies as what it flattened, meanwhile.

    PyTorch's gradient of a flattened batch is contiguous whatever the batch was, and beside a channels-last input its
    pooling then takes five times as long, which is a tenth of a step of the CNN (Xeon, family 6, model 207). The
    numbers are the same to the bit. Layers of any other class stay as they are.
    """
    return swapped(modules, {nn.Flatten: _Flatten})


class _Flatten(nn.Flatten):
    """``torch.nn.Flatten``, whose large channels-last batches on a CPU have channels-last gradients."""

    def forward(self, input: Tensor) -> Tensor:
        if input.requires_grad and input.is_cpu and input.numel() >= LARGE and _lies_channels_last(input):
            input.register_hook(_channels_last)  # type: ignore[no-untyped-call]  # PyTorch leaves it unannotated
        return super().forward(input)


def _lies_channels_last(batch: Tensor) -> bool:
    """Tell whether a batch lies channels last and in no other way."""
    if batch.dim() != 4 or batch.is_contiguous():
        return False
    return batch.is_contiguous(memory_format=torch.channels_last)


def _channels_last(gradient: Tensor) -> Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)
