"""Nodes' own data in files: arrays of NumPy or safetensors, and tables."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from snnfl.config import DataConfig
from snnfl.config.declaration import show
from snnfl.config.own_data import LABEL
from snnfl.data.own_samples import (
    Numbers,
    OwnDataError,
    Samples,
    finite,
    from_arrays,
    labels_of,
    register_reader,
    stated_shape,
    unfit,
    unreadable,
)

NO_COLUMN = "its table lacks a column of data.features, or label"


@register_reader("npz", lambda place: place.suffix == ".npz")
def read_npz(place: Path, config: DataConfig) -> Samples:
    """Read ``x [N, …]`` and ``y [N]``: labels as positions in the run's classes, or as their names; never pickles."""
    try:
        with place.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            x, y = file["x"], file["y"]
    except KeyError:
        raise OwnDataError(f"{place}: expected arrays x and y", "its arrays aren't x and y") from None
    except Exception as error:  # a damaged or crafted file makes NumPy raise a dozen kinds
        if "allow_pickle" in str(error):  # its advice to load it all the same is none that a node could follow
            raise OwnDataError(
                f"{place}: holds Python objects (a pickle), which are never loaded, or is no .npz; save x as an "
                "array of numbers, y as one of numbers or of text",
                "a file of its data cannot be read",
            ) from None
        raise unreadable(place, error) from None
    return from_arrays(place, x, y, config)


@register_reader("safetensors", lambda place: place.suffix == ".safetensors")
def read_safetensors(place: Path, config: DataConfig) -> Samples:
    """Read tensors ``x [N, …]`` and ``y [N]``, whose labels are positions in the run's classes."""
    try:
        found = load_file(place)
        x, y = found["x"].numpy(), found["y"].numpy()
    except KeyError:
        raise OwnDataError(f"{place}: expected tensors x and y", "its arrays aren't x and y") from None
    except Exception as error:  # likewise, and NumPy has no bfloat16
        raise unreadable(place, error) from None
    return from_arrays(place, x, y, config)


@register_reader("csv", lambda place: place.suffix == ".csv")
def read_csv(place: Path, config: DataConfig) -> Samples:
    """Read a table: a line of names, then numbers in the columns of ``data.features`` and a class's name in ``label``.

    Other columns are left out.
    """
    if not config.features:
        raise unfit(place, f"is a table, whose columns data.features must name in place of {stated_shape(config)}")
    try:
        with place.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file, strict=True) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise unreadable(place, error) from None
    header = [name.strip() for name in rows[0]] if rows else []
    check_columns(place, header, config)
    columns = [header.index(name) for name in config.features]
    values = [_numbers(place, number, row, len(header), columns) for number, row in enumerate(rows[1:], 1)]
    labels = [row[header.index(LABEL)].strip() for row in rows[1:]]
    table = np.array(values, np.float64).reshape(-1, len(columns))
    return Samples(values=finite(place, table), labels=labels_of(place, labels, config))


def _numbers(place: Path, number: int, row: Sequence[str], width: int, columns: Sequence[int]) -> list[float]:
    try:
        if len(row) != width:
            raise ValueError(f"{len(row)} columns in place of {width}")
        return [float(row[column]) for column in columns]
    except ValueError as error:
        told = "a row of its table holds no numbers"
        raise OwnDataError(f"{place}: row {number} below the names: {error}", told) from None


def check_columns(place: Path, names: Sequence[str], config: DataConfig) -> None:
    """Check that a table has each column that is read once.

    Raises:
        OwnDataError: If it doesn't.
    """
    for name in (*config.features, LABEL):
        if not (count := names.count(name)):
            raise OwnDataError(f"{place}: has no column {name!r}, only {show(list(names))}; name it so", NO_COLUMN)
        if count > 1:
            raise OwnDataError(f"{place}: has {count} columns {name!r}; name each differently", NO_COLUMN)


def as_bytes(values: Any, config: DataConfig) -> Numbers:
    """Return numbers as an array, whole ones from 0 to 255 of pictures and events as ``uint8``."""
    array = np.asarray(values)
    whole = array.dtype.kind in "iu" and array.size > 0 and array.min() >= 0 and array.max() <= 255
    return array.astype(np.uint8) if len(config.sample_shape) >= 3 and whole else array
