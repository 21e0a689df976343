from __future__ import annotations

import io

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra import numpy as arrays

from snnfl import npy

SHAPES = arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=12)


def saved(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@given(arrays.arrays(np.float32, SHAPES))
def test_bytes_are_those_of_numpy(array):
    data = npy.dumps(torch.from_numpy(array))
    assert data == saved(array)
    found = npy.loads(data, array.shape)
    assert found.tobytes() == array.tobytes()
    assert found.shape == array.shape


@given(arrays.arrays(st.sampled_from([np.uint8, np.uint32, np.uint64]), SHAPES))
def test_whole_numbers_are_written_and_read_likewise(array):
    data = npy.dumped(array)
    assert data == saved(array)
    found = npy.loaded(data, array.shape, array.dtype)
    assert found.dtype == array.dtype
    assert found.tobytes() == array.tobytes()
    assert npy.loaded(data, array.shape, np.dtype("<f8")) is None


def test_a_memory_format_does_not_show():
    tensor = torch.arange(120, dtype=torch.float32).reshape(2, 3, 4, 5)
    assert npy.dumps(tensor.contiguous(memory_format=torch.channels_last)) == npy.dumps(tensor)
    assert npy.dumps(tensor.requires_grad_()) == saved(tensor.detach().numpy())


@given(st.data())
def test_anything_else_is_refused(data):
    written = bytearray(npy.dumps(torch.ones(2, 3)))
    position = data.draw(st.integers(0, len(npy.header((2, 3))) - 1))
    changed = bytes(written[:position]) + bytes([written[position] ^ data.draw(st.integers(1, 255))])
    assert npy.loads(changed + bytes(written[position + 1 :]), (2, 3)) is None


@pytest.mark.parametrize(
    "other",
    [
        np.ones((2, 3)),
        np.ones((3, 2), np.float32),
        np.ones(6, np.float32),
        np.asfortranarray(np.ones((2, 3), np.float32)),
        np.ones((2, 3), ">f4"),
    ],
)
def test_other_arrays_are_refused(other):
    assert npy.loads(saved(other), (2, 3)) is None


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\0", lambda data: b""])
def test_other_lengths_are_refused(change):
    assert npy.loads(change(npy.dumps(torch.ones(2, 3))), (2, 3)) is None


def test_what_is_read_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        npy.loads(npy.dumps(torch.ones(3)), (3,))[0] = 2


def test_a_tensor_is_a_view_and_nobody_is_warned(recwarn):
    data = npy.dumps(torch.arange(3.0))
    found = npy.as_tensor(npy.loads(data, (3,)))
    assert found.tolist() == [0, 1, 2]
    assert found.data_ptr() == npy.loads(data, (3,)).ctypes.data
    assert not [each for each in recwarn.list if "writable" in str(each.message)]


def test_only_float32_is_written():
    with pytest.raises(TypeError, match=r"torch\.float64"):
        npy.dumps(torch.ones(3, dtype=torch.float64))


NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", ">f4", ">i8")


@given(st.sampled_from(NUMBERS).flatmap(lambda kind: arrays.arrays(kind, SHAPES)), st.booleans())
def test_numbers_of_any_type_are_parsed(array, fortran):
    found = npy.parse(saved(np.array(array, order="F" if fortran else "C")))
    assert found.dtype == array.dtype.newbyteorder("=")
    assert found.flags.c_contiguous
    assert found.flags.writeable
    assert found.shape == array.shape
    np.testing.assert_array_equal(found, array)
    assert torch.from_numpy(found).shape == array.shape


@given(st.data())
def test_what_fills_no_file_to_the_byte_is_not_parsed(data):
    written = saved(np.ones((2, 3), np.float32))
    cut = data.draw(st.integers(0, len(written) - 1))
    for bad in (written[:cut], written + b"x"):
        with pytest.raises(ValueError):  # noqa: PT011 (whatever NumPy says of a part of a header)
            npy.parse(bad)


@pytest.mark.parametrize("array", [np.array([None]), np.array(["text"]), np.ones(2, np.complex64), np.ones(2, "i4,f4")])
def test_what_is_no_number_is_not_parsed(array):
    with pytest.raises(ValueError, match="expected numbers"):
        npy.parse(saved(array))
