"""What local training minimises."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor, nn
from torch.nn import functional

Batch: TypeAlias = tuple[Tensor, Tensor]
"""Inputs of shape ``[batch, *input_shape]`` and labels ``[batch]`` of dtype int64."""

Objective: TypeAlias = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""``(model, inputs, labels) -> loss``: a scalar, the mean over the batch, that gradients flow through."""


def cross_entropy(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy ``-mean log softmax(model(inputs))[label]``, in nats."""
    return functional.cross_entropy(model(inputs), labels)
