"""Layers of which the cheaper goes first."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager

from torch import Tensor, nn

from snnfl.models.swapped import is_observed, swapped


def pooled_first(modules: Iterable[nn.Module]) -> AbstractContextManager[None]:
    """Let each ``Sequential`` among modules pool maxima before the ReLU that its pooling follows, meanwhile.

    ``max(relu(x)) = relu(max(x))``, so outputs and gradients are the same to the bit, for a quarter of the numbers
    where windows are two wide: a twentieth of a step of the CNN. Layers that somebody looks at, and those of any other
    class, stay in their order.
    """
    some = [module for module in modules if type(module) is nn.Sequential and any(map(_may_swap, *_pairs(module)))]
    return swapped(some, {nn.Sequential: _PooledFirst})


class _PooledFirst(nn.Sequential):
    """``torch.nn.Sequential``, whose max pooling comes before the ReLU before it."""

    def forward(self, input: Tensor) -> Tensor:
        layers = list(self)
        for index, pair in enumerate(zip(*_pairs(self), strict=False)):
            if _may_swap(*pair):
                layers[index : index + 2] = reversed(pair)
        for layer in layers:
            input = layer(input)
        return input


def _pairs(layers: nn.Sequential) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return the layers that have one behind them, and those behind."""
    every = list(layers)
    return every[:-1], every[1:]


def _may_swap(before: nn.Module, pool: nn.Module) -> bool:
    """Tell whether these are a ReLU and a pooling of its maxima, which nobody looks at."""
    if type(before) is not nn.ReLU or type(pool) is not nn.MaxPool2d or pool.return_indices:
        return False
    return not is_observed(before) and not is_observed(pool)
