"""Tensors to Flower's records and back, without NumPy writing and compiling a header for each."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from clients.flower_internals import filled, serialised
from snnfl import npy


def to_record(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Serialise float32 tensors and bytes, byte for byte as Flower does."""
    return filled((name, serialised(tensor)) for name, tensor in state.items())


def to_tensors(record: ArrayRecord) -> dict[str, Tensor]:
    """Read a record, whoever wrote it. The tensors may be views of its bytes: read them, never write to them."""
    found = {}
    for name, array in record.items():
        values = npy.loads(array.data, array.shape)
        found[name] = torch.from_numpy(array.numpy()) if values is None else npy.as_tensor(values)
    return found
