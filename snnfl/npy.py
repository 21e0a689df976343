"""Arrays as messages carry them: in NumPy's file format, those of known types written and read without parsing.

Flower serialises with ``numpy.save``, which writes its header as Python source, and ``numpy.load`` compiles that source
for each array: longer than a small layer's training step. Where the shape is known, the header is known too, so a
comparison of bytes both reads and checks it.
"""

from __future__ import annotations

import io
import math
import warnings
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FLOAT32 = np.dtype("<f4")
HEADER_BYTES = 512
"""More than any NumPy header of an array of a few dimensions. A longer one is not parsed."""


@lru_cache(maxsize=1024)
def header(shape: tuple[int, ...], kind: str = "<f4") -> bytes:
    """Return what ``numpy.save`` writes in front of an array in C order; ``kind`` as ``numpy.dtype.str``."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": kind, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def dumps(tensor: Tensor) -> bytes:
    """Serialise a float32 tensor as ``numpy.save`` would, in C order whatever its memory format.

    Raises:
        TypeError: If it isn't float32.
    """
    if tensor.dtype != torch.float32:
        raise TypeError(f"expected a float32 tensor, found {tensor.dtype}; convert it first")
    return dumped(np.asarray(tensor.numpy(force=True), order="C"))


def dumped(values: NDArray[Any]) -> bytes:
    """Serialise an array in C order as ``numpy.save`` would."""
    return b"".join((header(values.shape, values.dtype.str), values.data))


def loads(data: bytes, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
    """Read a float32 array of a known shape.

    Returns:
        As :func:`loaded`.
    """
    return loaded(data, shape, FLOAT32)


def loaded(data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any] | None:
    """Read an array of a known shape and type.

    Returns:
        A read-only view of ``data``. ``None`` if that is anything but the array that :func:`dumped` writes, to the
        byte.
    """
    start, size = _expected(shape, dtype)
    if len(data) != size or not data.startswith(start):
        return None
    return np.frombuffer(data, dtype, offset=len(start)).reshape(shape)


@lru_cache(maxsize=1024)
def _expected(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[bytes, int]:
    """Return how a serialised array begins, and its length in bytes."""
    start = header(shape, dtype.str)
    return start, len(start) + dtype.itemsize * math.prod(shape)


def parse(data: bytes) -> NDArray[Any]:
    """Read an array of numbers of any type and shape, without pickle: what nobody has said of it before.

    Returns:
        A copy in C order and the machine's byte order, no larger than ``data``.

    Raises:
        ValueError: For anything but an array of numbers or truth values that fills ``data`` to the byte. What a crafted
            header makes Python's parser raise beside that is of other types.
    """
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("not in the format that numpy.save writes")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=HEADER_BYTES)
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise ValueError(f"expected numbers of at most 8 bytes, found {dtype}")
    size = len(data) - stream.tell()
    if any(length < 0 for length in shape) or size != dtype.itemsize * math.prod(shape):
        raise ValueError(f"{size} bytes instead of {dtype}{list(shape)}")
    values = np.frombuffer(data[stream.tell() :], dtype).reshape(shape, order="F" if fortran else "C")
    return np.array(values, dtype.newbyteorder("="), order="C")


def as_tensor(values: NDArray[np.float32]) -> Tensor:
    """View an array as a tensor that nobody may write to, without PyTorch's one warning per process that one could."""
    _use_up_the_warning()
    return torch.from_numpy(values)


@cache
def _use_up_the_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.from_numpy(np.frombuffer(bytes(4), np.float32))
