"""The registry of data sources, and the one place that loads them, once per process."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from snnfl import rng
from snnfl.config import READING, ConfigError, DataConfig
from snnfl.data.dataset import DataNotFoundError, Dataset
from snnfl.registry import Registry

Source: TypeAlias = Callable[..., Dataset]
"""Reads a data set from the folder that holds all data sets; given the options, too, if it says which it uses."""

Function = TypeVar("Function", bound=Source)

SOURCES = Registry[Source]("data set", "data.source")
_uses: dict[str, tuple[str, ...]] = {}


def register(name: str, *, uses: Sequence[str] = ()) -> Callable[[Function], Function]:
    """Make a function loadable as ``data.source=NAME``: ``read(root)``, or ``read(root, config)`` with ``uses``.

    Args:
        name: The name, not taken yet.
        uses: Names of :data:`~snnfl.config.READING` that the function uses. It gets a ``DataConfig`` that holds these,
            and of all else the defaults; setting another one is an error.

    Returns:
        A decorator that leaves the function as it is.

    Raises:
        ValueError: If the name is taken, or an option isn't of these.
    """
    if unknown := [option for option in uses if option not in READING]:
        raise ValueError(f"data set {name!r} uses {unknown[0]!r}, which is none of {', '.join(READING)}")

    def add(source: Function) -> Function:
        SOURCES.add(name, source, home=source.__module__)
        _uses[name] = tuple(uses)
        return source

    return add


def names() -> tuple[str, ...]:
    """Return the names of all sources, sorted."""
    return SOURCES.names()


def check_source(name: str, *, said: str | None = None) -> None:
    """Check that a source of this name exists, without loading it.

    Args:
        name: Of the source.
        said: How the user has named it, where that isn't by ``data.source``.

    Raises:
        ConfigError: For an unknown name, with the nearest known one.
    """
    SOURCES.find(name, said=said)


def data_root(root: str | None) -> Path:
    """Return the folder of downloaded data sets: ``root``, else ``SNNFL_DATA``, else ``~/.cache/snnfl``."""
    return Path(root or os.environ.get("SNNFL_DATA") or "~/.cache/snnfl").expanduser().resolve()


def load(config: DataConfig) -> Dataset:
    """Load a data set into memory; the second call in a process returns the same object.

    Args:
        config: Its ``source``, ``root``, ``training_images``, ``test_images`` and what the source uses decide. A part
            of a split is the first examples of a permutation that depends on the name of the data set alone: the
            classes are mixed, and every run and seed has the same examples.

    Returns:
        The data set. Its tensors are shared by all callers and must not be changed in place.

    Raises:
        ConfigError: For an unknown source, an option that it doesn't use, a damaged data set, or more images than it
            has.
        DataNotFoundError: If the data set isn't there; nothing ever stands in for it.
    """
    source = SOURCES.find(config.source)
    _check_uses(config)
    used = {name: getattr(config, name) for name in _uses.get(config.source, ())}
    reading = DataConfig(source=config.source, **used)
    return _part(source, reading, data_root(config.root), config.training_images, config.test_images)


def _check_uses(config: DataConfig) -> None:
    for name in READING:
        value = getattr(config, name)
        if value != getattr(DataConfig(), name) and name not in _uses.get(config.source, ()):
            users = [source for source in names() if name in _uses.get(source, ())]
            raise ConfigError(
                f"data.{name}={value}: only {', '.join(users)} {'uses' if len(users) == 1 else 'use'} it, and "
                f"data.source={config.source}; leave it out"
            )


# Both caches know a data set by its function, too: in one process, two plug-ins may give the same name in turn.
@functools.cache
def _part(source: Source, config: DataConfig, root: Path, training_images: int, test_images: int) -> Dataset:
    whole, name = _load(source, config, root), config.source
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
        users=None if whole.users is None else whole.users[train],
    )


def _chosen(available: int, count: int, name: str, split: str) -> Tensor:
    if count > available:
        raise ConfigError(f"data.{split}_images={count}: {name} has {available}; take fewer, or 0 for all")
    order = torch.randperm(available, generator=rng.generator(0, f"{split} part of {name}"))
    return order[:count] if count else torch.arange(available)


@functools.cache
def _load(source: Source, config: DataConfig, root: Path) -> Dataset:
    name = config.source
    arguments = (root, config) if _uses.get(name) else (root,)
    try:
        return SOURCES.made(name, lambda: source(*arguments), Dataset, through=(FileNotFoundError,))
    except FileNotFoundError as error:  # of a source that doesn't look for itself
        what = f"{error.filename} is missing" if error.filename else error
        raise DataNotFoundError(f"data.source={name}: {what} (data.root={root})") from None
