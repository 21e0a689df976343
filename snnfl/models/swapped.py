"""Layers of a model that are of other classes for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn


@contextmanager
def swapped(model: nn.Module, kinds: Mapping[type[nn.Module], type[nn.Module]]) -> Iterator[None]:
    """Let a model's layers of these classes be of those that they stand for, meanwhile; their arrays stay.

    Args:
        model: Layers of any other class, subclasses too, stay as they are.
        kinds: The class to be by the class that is.
    """
    layers = [(module, type(module)) for module in model.modules() if type(module) in kinds]
    for layer, kind in layers:
        layer.__class__ = kinds[kind]
    try:
        yield
    finally:
        for layer, kind in layers:
            layer.__class__ = kind
