"""Arrays of Flower's records as tensors, without NumPy writing and compiling a header for each."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import SType
from torch import Tensor

from snnfl import npy
from snnfl.protocol import ARRAYS, EXAMPLES, METRICS
from strategies.flower_internals import KnownArray, filled


def tensor_of(array: Array) -> Tensor:
    """Read an array of the server's own. The tensor may be a view of its bytes: read it, never write to it."""
    if isinstance(array, KnownArray):
        return array.tensor
    values = npy.loads(array.data, tuple(array.shape)) if array.dtype == "float32" else None
    return torch.from_numpy(array.numpy()) if values is None else npy.as_tensor(values)


def tensors_of(record: ArrayRecord) -> dict[str, Tensor]:
    """Read a record of the server's own, as :func:`tensor_of`."""
    return {name: tensor_of(array) for name, array in record.items()}


def array_of(tensor: Tensor) -> Array:
    """Serialise a float32 tensor, byte for byte as Flower does."""
    return Array("float32", tuple(tensor.shape), SType.NUMPY, npy.dumps(tensor))


def known(tensor: Tensor) -> Array:
    """Return an array of a tensor that nobody changes any more."""
    return KnownArray(tensor) if tensor.dtype == torch.float32 else Array(tensor.numpy())


def with_tensors(message: Message, tensors: Mapping[str, Tensor], names: Iterable[str], weight: float) -> Message:
    """Return a reply with these arrays, in the order of the names; the given one stays as it is for who recorded it.

    Its weight in an average stands where Flower's strategies look for it: in the number of examples.
    """
    reply = copy.copy(message)
    arrays = filled((name, KnownArray(tensors[name])) for name in names)
    # Flower's ``metric_records`` would check all records again to find one.
    received: Any = message.content[METRICS]
    metrics = MetricRecord({**received, EXAMPLES: weight})
    reply.content = RecordDict({**message.content, ARRAYS: arrays, METRICS: metrics})
    return reply
