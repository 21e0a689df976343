"""The registry of data sources, and the one place that loads them, once per process."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from snnfl import rng
from snnfl.config import ConfigError, DataConfig
from snnfl.data.dataset import DataNotFoundError, Dataset
from snnfl.registry import Registry

Source: TypeAlias = Callable[[Path], Dataset]
"""Reads a data set from the folder that holds all data sets."""

SOURCES = Registry[Source]("data set", "data.source")


def register(name: str) -> Callable[[Source], Source]:
    """Make a function loadable as ``data.source=NAME``.

    Args:
        name: The name, not taken yet.

    Returns:
        A decorator that leaves the function as it is.

    Raises:
        ValueError: If the name is taken.
    """
    return SOURCES.decorator(name)


def names() -> tuple[str, ...]:
    """Return the names of all sources, sorted."""
    return SOURCES.names()


def check_source(name: str) -> None:
    """Check that a source of this name exists, without loading it.

    Raises:
        ConfigError: For an unknown name, with the nearest known one.
    """
    SOURCES.find(name)


def data_root(root: str | None) -> Path:
    """Return the folder of downloaded data sets: ``root``, else ``SNNFL_DATA``, else ``~/.cache/snnfl``."""
    return Path(root or os.environ.get("SNNFL_DATA") or "~/.cache/snnfl").expanduser().resolve()


def load(config: DataConfig) -> Dataset:
    """Load a data set into memory; the second call in a process returns the same object.

    Args:
        config: Its ``source``, ``root``, ``training_images`` and ``test_images`` decide. A part of a split is the first
            examples of a permutation that depends on the name of the data set alone: the classes are mixed, and every
            run and seed has the same examples.

    Returns:
        The data set. Its tensors are shared by all callers and must not be changed in place.

    Raises:
        ConfigError: For an unknown source, a damaged data set, or more images than it has.
        DataNotFoundError: If the data set isn't there; nothing ever stands in for it.
    """
    check_source(config.source)
    return _part(config.source, data_root(config.root), config.training_images, config.test_images)


@functools.cache
def _part(name: str, root: Path, training_images: int, test_images: int) -> Dataset:
    whole = _load(name, root)
    if not training_images and not test_images:
        return whole
    train = _chosen(len(whole.train_labels), training_images, name, "training")
    test = _chosen(len(whole.test_labels), test_images, name, "test")
    return replace(
        whole,
        train_images=whole.train_images[train],
        train_labels=whole.train_labels[train],
        test_images=whole.test_images[test],
        test_labels=whole.test_labels[test],
    )


def _chosen(available: int, count: int, name: str, split: str) -> Tensor:
    if count > available:
        raise ConfigError(f"data.{split}_images={count}: {name} has {available}; take fewer, or 0 for all")
    order = torch.randperm(available, generator=rng.generator(0, f"{split} part of {name}"))
    return order[:count] if count else torch.arange(available)


@functools.cache
def _load(name: str, root: Path) -> Dataset:
    try:
        source = SOURCES.find(name)
        return SOURCES.made(name, lambda: source(root), Dataset, through=(FileNotFoundError,))
    except FileNotFoundError as error:  # of a source that doesn't look for itself
        what = f"{error.filename} is missing" if error.filename else error
        raise DataNotFoundError(f"data.source={name}: {what} (data.root={root})") from None
