"""Layers of a model that are of other classes for a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.module import _has_any_global_hook as has_hooks_on_all


@contextmanager
def swapped(modules: Iterable[nn.Module], kinds: Mapping[type[nn.Module], type[nn.Module]]) -> Iterator[None]:
    """Let modules of these classes be of those that they stand for, meanwhile; their arrays stay.

    Args:
        modules: Those of any other class, subclasses too, stay as they are.
        kinds: The class to be by the class that is.
    """
    layers = [(module, type(module)) for module in modules if type(module) in kinds]
    for layer, kind in layers:
        object.__setattr__(layer, "__class__", kinds[kind])  # a module's own looks for parameters first
    try:
        yield
    finally:
        for layer, kind in layers:
            object.__setattr__(layer, "__class__", kind)


def is_observed(layer: nn.Module) -> bool:
    """Tell whether a layer, or all of them, has hooks: that of the forward or of the backward pass."""
    own = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return any(own) or bool(has_hooks_on_all())  # type: ignore[no-untyped-call]  # PyTorch leaves it unannotated
