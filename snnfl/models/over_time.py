"""Layers of an ordinary network that take a time axis in front, ``[T, N, ...]``, by folding it into the batch."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from snnfl.models.products import is_large, product

TALL = 16
"""Rows for each output from which a product takes half of the time the other way round: of output layers, over time."""


class OverTime:
    """A layer that treats each time step as further samples: one call for all steps.

    A value that is constant in time has one step, so that what is computed from it is computed once.
    """

    kind: type[nn.Module]

    def forward(self, values: Tensor) -> Tensor:
        """Map ``[T, N, ...]`` to ``[T, N, ...]``."""
        folded: Tensor = super().forward(values.flatten(0, 1))  # type: ignore[misc]  # the layer's own
        return folded.view(*values.shape[:2], *folded.shape[1:])

    def __reduce__(self) -> tuple[Any, ...]:
        """Let copies and files name the layer's own class: that with a time axis is made while a program runs."""
        return _empty, (self.kind,), self.__dict__


class _Linear(nn.Linear):
    """``nn.Linear``, whose large products on a CPU are :func:`~snnfl.models.products.product`."""

    short = False

    def forward(self, input: Tensor) -> Tensor:
        if self.short:
            bias = None if self.bias is None else self.bias.bfloat16()
            return functional.linear(input.bfloat16(), self.weight.bfloat16(), bias).float()
        if input.dim() == 2 and is_large(input, self.weight):
            return product(input, self.weight, self.bias)
        if input.dim() == 2 and self.bias is not None and len(input) > TALL * self.out_features:
            return torch.addmm(self.bias[:, None], self.weight, input.T).T
        return super().forward(input)


class _Conv2d(nn.Conv2d):
    """``nn.Conv2d``, in bfloat16 where that is asked for."""

    short = False

    def forward(self, input: Tensor) -> Tensor:
        if not self.short:
            return super().forward(input)
        bias = None if self.bias is None else self.bias.bfloat16()
        outputs: Tensor = self._conv_forward(input.bfloat16(), self.weight.bfloat16(), bias).float()
        return outputs


def multiply_in_bfloat16(model: nn.Module, short: bool) -> None:
    """Let convolutions and linear layers that have been folded round what they multiply to bfloat16, or not, in place.

    Sums stay in float32, and so do weights, potentials and all else. Spikes, and their means over pools of 2x2, lose
    nothing; weights and gradients keep 8 bits of their 24.
    """
    for module in model.modules():
        if isinstance(module, (_Conv2d, _Linear)):
            module.short = short


@functools.cache
def over_time(kind: Any) -> type[Any]:
    """Return a layer's class whose samples have a time axis; its parameters and options are the layer's."""
    base = {nn.Linear: _Linear, nn.Conv2d: _Conv2d}.get(kind, kind)
    return type(kind.__name__, (OverTime, base), {"__module__": __name__, "kind": kind})


def _empty(kind: type[nn.Module]) -> Any:
    """Return a layer of a class with a time axis, without its state."""
    return object.__new__(over_time(kind))  # type: ignore[arg-type]  # a class has a hash


def fold_time(model: nn.Module) -> None:
    """Let all layers of a model take a time axis, in place: those that hold no others.

    What a model does between its layers must treat the first two axes as it treated the batch.
    """
    for module in model.modules():
        if not any(True for _ in module.children()) and not isinstance(module, OverTime):
            module.__class__ = over_time(type(module))  # type: ignore[arg-type]  # a class has a hash
