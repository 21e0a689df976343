"""Sealed files: what comes back is what was written, and no damage goes unnoticed."""

from __future__ import annotations

import math
import os
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file, save_file

from snnfl.checksummed import DamagedFileError, read_checksummed, round_file, round_files, write_checksummed

ARRAYS = {"a": np.arange(6.0).reshape(2, 3), "b/c": np.array([True]), "none": np.zeros((0, 3), np.float32)}
ABOUT = {"round": 7, "loss": 0.1, "names": ["é", None]}

dtypes = st.one_of(
    hnp.boolean_dtypes(), hnp.integer_dtypes(endianness="="), hnp.unsigned_integer_dtypes(endianness="="),
    hnp.floating_dtypes(endianness="=", sizes=(16, 32, 64)),
)  # fmt: skip
arrays = st.dictionaries(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=8).filter(lambda name: name != "__metadata__"),
    hnp.arrays(dtypes, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)),
    max_size=4,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrays=arrays, transpose=st.booleans())
def test_arrays_come_back_bit_for_bit(tmp_path: Path, arrays, transpose) -> None:
    written = {name: array.T for name, array in arrays.items()} if transpose else arrays
    write_checksummed(tmp_path / "file", written, ABOUT)
    found, about = read_checksummed(tmp_path / "file")
    assert about == ABOUT
    assert found.keys() == written.keys()
    for name, array in written.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()
    assert os.listdir(tmp_path) == ["file"]


def test_numbers_come_back_exactly(tmp_path: Path) -> None:
    about = [0.1, -0.0, math.inf, math.nan, 2**70, 5e-324]
    write_checksummed(tmp_path / "file", {}, about)
    assert repr(read_checksummed(tmp_path / "file")[1]) == repr(about)


def test_other_tools_read_the_arrays(tmp_path: Path) -> None:
    write_checksummed(tmp_path / "file", ARRAYS, ABOUT)
    assert np.array_equal(load_file(tmp_path / "file")["a"], ARRAYS["a"])


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path: Path) -> None:
    write_checksummed(tmp_path / "file", ARRAYS, ABOUT)
    whole = (tmp_path / "file").read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        for content in (bytes(damaged), *([whole[:place]] if place % 5 == 0 else [])):
            (tmp_path / "damaged").write_bytes(content)
            try:
                found, about = read_checksummed(tmp_path / "damaged")
            except DamagedFileError:
                continue
            # The header may be padded otherwise and mean the same; the meaning never differs.
            assert about == ABOUT
            assert all(np.array_equal(found[name], array) for name, array in ARRAYS.items())


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100, (2**62).to_bytes(8, "little") + b"{}"])
def test_what_is_no_checksummed_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DamagedFileError, match="file: "):
        read_checksummed(tmp_path / "file")


def test_a_missing_file_and_one_of_other_origin_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match=r"none: .*"):
        read_checksummed(tmp_path / "none")
    save_file(ARRAYS, tmp_path / "other")
    with pytest.raises(DamagedFileError, match="other: its checksum does not fit"):
        read_checksummed(tmp_path / "other")


def test_the_files_of_a_folder_are_found_by_round(tmp_path: Path) -> None:
    assert round_files(tmp_path / "none") == {}
    for n in (10, 9, 1234567):
        round_file(tmp_path, n).touch()
    for name in (".round-000011.safetensors.tmp", "round-12.safetensors", "round-000013.safetensors.bak"):
        (tmp_path / name).touch()
    assert list(round_files(tmp_path).items()) == [(n, round_file(tmp_path, n)) for n in (9, 10, 1234567)]
