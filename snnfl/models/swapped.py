"""Layers of a model that are of other classes for a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import nn


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
