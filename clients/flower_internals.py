"""What a client touches of Flower that Flower keeps to itself, checked when it is imported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, MetricRecord
from flwr.common.constant import SType
from numpy.typing import NDArray
from torch import Tensor

from snnfl import compatibility, npy

require = partial(compatibility.require, "flwr", "clients/flower_internals.py")
require(ArrayRecord(), "_data")
require(MetricRecord(), "_data")
require(Array(np.zeros(1, np.float32)), "dtype", "shape", "stype", "data", "_is_dirty")


def filled(arrays: Iterable[tuple[str, Array]]) -> ArrayRecord:
    """Return a record of arrays; item by item Flower's checks of each would take longer than to copy it."""
    record = ArrayRecord()
    record.__dict__["_data"].update(arrays)
    return record


def measured(metrics: Mapping[str, Any]) -> MetricRecord:
    """Return a record of numbers likewise."""
    record = MetricRecord()
    record.__dict__["_data"].update(metrics)
    return record


def serialised(tensor: Tensor) -> Array:
    """Serialise a float32 tensor without the checks of arguments that take Flower's constructor longer than the copy.

    Bytes are serialised as Flower does. It is an ``Array``, not one of a subclass: a SuperNode refuses to send objects
    of a class that it doesn't know.
    """
    if tensor.dtype == torch.uint8:
        return Array(tensor.numpy(force=True))
    return _made("float32", tuple(tensor.shape), npy.dumps(tensor))


def whole_numbers(values: NDArray[np.unsignedinteger[Any]]) -> Array:
    """Serialise a vector for or from the masks likewise."""
    return _made(values.dtype.name, values.shape, npy.dumped(values))


def _made(dtype: str, shape: tuple[int, ...], data: bytes) -> Array:
    array = Array.__new__(Array)
    array.__dict__.update(dtype=dtype, shape=shape, stype=SType.NUMPY, data=data, _is_dirty=True)
    return array
