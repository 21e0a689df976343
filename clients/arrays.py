"""Tensors to Flower's records and back, without NumPy writing and compiling a header for each."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from flwr.app import Array, ArrayRecord
from flwr.common.constant import SType
from torch import Tensor

from snnfl import npy


def to_record(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Serialise float32 tensors, byte for byte as Flower does."""
    record = ArrayRecord()
    for name, tensor in state.items():
        record[name] = serialised(tensor)
    return record


def serialised(tensor: Tensor) -> Array:
    """Serialise a float32 tensor without the checks of arguments that take Flower's constructor longer than the copy.

    It is an ``Array``, not one of a subclass: a SuperNode refuses to send objects of a class that it doesn't know.
    """
    array = Array.__new__(Array)
    array.__dict__.update(
        dtype="float32", shape=tuple(tensor.shape), stype=SType.NUMPY, data=npy.dumps(tensor), _is_dirty=True
    )
    return array


def to_tensors(record: ArrayRecord) -> dict[str, Tensor]:
    """Read a record, whoever wrote it. The tensors may be views of its bytes: read them, never write to them."""
    found = {}
    for name, array in record.items():
        values = npy.loads(array.data, array.shape)
        found[name] = torch.from_numpy(array.numpy()) if values is None else npy.as_tensor(values)
    return found
