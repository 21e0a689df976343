"""The registry of data sources, and the one place that loads them, once per process."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from snnfl.config import ConfigError, DataConfig, nearest
from snnfl.data.dataset import DataNotFoundError, Dataset

Source: TypeAlias = Callable[[Path], Dataset]
"""Reads a data set from the folder that holds all data sets."""

_SOURCES: dict[str, Source] = {}


def register(name: str) -> Callable[[Source], Source]:
    """Make a function loadable as ``data.source=NAME``.

    Args:
        name: The name, not taken yet.

    Returns:
        A decorator that leaves the function as it is.

    Raises:
        ValueError: If the name is taken.
    """

    def add(source: Source) -> Source:
        if name in _SOURCES:
            raise ValueError(f"data source {name!r} is registered already; choose another name")
        _SOURCES[name] = source
        return source

    return add


def names() -> tuple[str, ...]:
    """Return the names of all sources, in order of registration."""
    return tuple(_SOURCES)


def check_source(name: str) -> None:
    """Check that a source of this name exists, without loading it.

    Raises:
        ConfigError: For an unknown name, with the nearest known one.
    """
    if name not in _SOURCES:
        raise ConfigError(f"data.source={name}: unknown data set{nearest(name, names())}")


def data_root(root: str | None) -> Path:
    """Return the folder of downloaded data sets: ``root``, else ``SNNFL_DATA``, else ``~/.cache/snnfl``."""
    return Path(root or os.environ.get("SNNFL_DATA") or "~/.cache/snnfl").expanduser().resolve()


def load(config: DataConfig) -> Dataset:
    """Load a data set into memory; the second call in a process returns the same object.

    Args:
        config: Its ``source`` and ``root`` decide.

    Returns:
        The data set. Its tensors are shared by all callers and must not be changed in place.

    Raises:
        ConfigError: For an unknown source or a damaged data set.
        DataNotFoundError: If the data set isn't there; nothing ever stands in for it.
    """
    check_source(config.source)
    return _load(config.source, data_root(config.root))


@functools.cache
def _load(name: str, root: Path) -> Dataset:
    try:
        return _SOURCES[name](root)
    except FileNotFoundError as error:  # of a source that doesn't look for itself
        raise DataNotFoundError(f"data.source={name}: {error.filename} is missing (data.root={root})") from None
