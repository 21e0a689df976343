"""What a node's own data become, who reads them (a registry), and how they are refused.

What stands in a node's files is outside input: nothing of it is run, and whatever doesn't fit is one line. It has two
texts: the whole for whoever owns the data, and what a server may be told, which names no path and counts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from snnfl.config import ConfigError, DataConfig
from snnfl.config.declaration import show
from snnfl.registry import Registry

Numbers: TypeAlias = np.ndarray[Any, Any]


class OwnDataError(ConfigError):
    """Data of a node's own that aren't there, cannot be read or don't fit.

    Args:
        text: For their owner.
        told: What a server may hear: no path, no file's name, no number of samples.
    """

    def __init__(self, text: str, told: str) -> None:
        super().__init__(text)
        self.told = told


@dataclass(frozen=True, kw_only=True)
class Samples:
    """All that a node holds.

    Attributes:
        values: Of the shape that the run states, ``[N, ...]``: ``uint8`` of pictures and events, else ``float32``.
        labels: ``int64`` of shape ``[N]``: positions in the run's classes.
    """

    values: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Reader:
    """One way of reading.

    Attributes:
        fits: Tells whether it reads what a node names.
        read: Reads it; raises :class:`OwnDataError`.
    """

    fits: Callable[[Path], bool]
    read: Callable[[Path, DataConfig], Samples]


READERS = Registry[Reader]("reader of own data")

Function = TypeVar("Function", bound=Callable[[Path, DataConfig], Samples])


def register_reader(name: str, fits: Callable[[Path], bool]) -> Callable[[Function], Function]:
    """Make a function read nodes' own data; of several that fit the one registered last reads.

    Args:
        name: Not taken yet.
        fits: Tells by its name or content whether the function reads what a node's ``data-path`` names.

    Returns:
        A decorator that leaves the function as it is.
    """

    def add(function: Function) -> Function:
        READERS.add(name, Reader(fits, function), home=function.__module__)
        return function

    return add


def reader_of(place: Path) -> str:
    """Return the name of the reader of what a node names.

    Raises:
        OwnDataError: If nothing is there, or nobody reads it.
    """
    for name in reversed(READERS.items):
        if READERS.items[name].fits(place):
            return name
    if not place.exists():
        raise OwnDataError(f"{place}: is not there; name the folder or file of your data", "its data are not there")
    raise OwnDataError(
        f"{place}: expected a folder with a sub-folder of pictures for each class, a folder of datasets' save_to_disk, "
        ".npz, .safetensors or .csv",
        "its data are of a kind that nobody reads",
    )


def checked(place: Path, samples: Samples, config: DataConfig) -> Samples:
    """Return samples that fit what the run states.

    Raises:
        OwnDataError: If there are none, or they are of another shape, type or range.
    """
    values, labels = samples.values, samples.labels
    if not len(labels):
        raise OwnDataError(f"{place}: holds no samples; add some", "it has no samples")
    expected = torch.uint8 if len(config.sample_shape) >= 3 else torch.float32
    if tuple(values.shape[1:]) != config.sample_shape or len(values) != len(labels) or values.dtype != expected:
        found = f"{values.dtype} {list(values.shape)} beside {len(labels)} labels"
        raise unfit(place, f"holds {found}, the run states {expected} of {stated_shape(config)}")
    if labels.dtype != torch.int64 or bool(((labels < 0) | (labels >= len(config.classes))).any()):
        raise _of_no_class(place, int(labels.max()), config)
    return samples


def labels_of(place: Path, labels: Sequence[Any], config: DataConfig) -> Tensor:
    """Return positions in the run's classes, ``int64``, of labels that are such, or names.

    Raises:
        OwnDataError: If one is neither.
    """
    positions = {name: position for position, name in enumerate(config.classes)}
    found = []
    for label in labels:
        whole = isinstance(label, int) and not isinstance(label, bool)
        position = positions.get(label) if isinstance(label, str) else label if whole else None
        if position is None or not 0 <= position < len(positions):
            raise _of_no_class(place, label, config)
        found.append(position)
    return torch.tensor(found, dtype=torch.int64)


def finite(place: Path, values: Numbers) -> Tensor:
    """Return numbers as ``float32``.

    Raises:
        OwnDataError: If one isn't finite there.
    """
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(values, np.float32)
    if not np.isfinite(values).all():
        raise OwnDataError(
            f"{place}: holds a NaN, an infinity or what float32 cannot hold; leave that sample out",
            "it holds a number that isn't finite",
        )
    return torch.from_numpy(values)


def from_arrays(place: Path, x: Numbers, y: Numbers, config: DataConfig) -> Samples:
    """Return arrays of samples and of labels as samples.

    Raises:
        OwnDataError: If they don't fit.
    """
    shape = config.sample_shape
    if config.features:
        raise unfit(place, "arrays have no names of columns, by which data.features are found; save a .csv")
    if x.ndim == 3 and len(shape) == 3 and shape[0] == 1:  # grey pictures without a channel
        x = x[:, None]
    if x.shape[1:] != shape or y.shape != x.shape[:1]:
        raise unfit(place, f"x is of shape {list(x.shape)} and y of {list(y.shape)}, the run states {list(shape)}")
    if len(shape) >= 3:
        if x.dtype != np.uint8:
            raise unfit(place, f"x is {x.dtype}; pictures and events are uint8, of pictures 0 to 255")
        values = torch.from_numpy(np.ascontiguousarray(x))
    elif x.dtype.kind in "iufb":
        values = finite(place, x)
    else:
        raise unfit(place, f"x is {x.dtype}; expected numbers")
    return Samples(values=values, labels=labels_of(place, y.tolist(), config))


def stated_shape(config: DataConfig) -> str:
    """Write what the run states of a sample."""
    return f"data.features={show(list(config.features))}" if config.features else f"data.shape={list(config.shape)}"


def unfit(place: Path, reason: str) -> OwnDataError:
    """Return the error of samples of another shape or kind."""
    return OwnDataError(f"{place}: {reason}", "its samples are not of the shape or kind that the run states")


def unreadable(place: Path, error: Exception) -> OwnDataError:
    """Return the error of a file that whatever reads it stumbles over."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    text = f"{place}: cannot be read ({reason}); mend it, or leave it out"
    return OwnDataError(text, "a file of its data cannot be read")


def _of_no_class(place: Path, label: Any, config: DataConfig) -> OwnDataError:
    classes = f"data.classes={show(list(config.classes))}"
    return OwnDataError(
        f"{place}: label {show(label)} is none of {classes}, nor a whole number from 0 to {len(config.classes) - 1}",
        f"it has a label that is none of {classes}",
    )
