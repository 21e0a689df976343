import os

import pytest
import torch

from snnfl.data.cache import FOLDER, cached, fingerprint


def counting():
    calls = []

    def make():
        calls.append(1)
        return {"a": torch.arange(5)}

    return make, calls


def test_the_same_key_is_computed_once_and_another_anew(tmp_path):
    make, calls = counting()
    for key in (("x", 1), ("x", 2), ("x", 1)):
        assert cached(tmp_path, key, make)["a"].tolist() == [0, 1, 2, 3, 4]
    assert len(calls) == 2
    assert [path.suffix for path in (tmp_path / FOLDER).iterdir()] == [".safetensors"] * 2


@pytest.mark.parametrize("damage", [lambda content: content[:-3], lambda content: b"", lambda content: b"x" * 40])
def test_a_damaged_file_is_made_anew(tmp_path, damage):
    make, calls = counting()
    cached(tmp_path, "x", make)
    (file,) = (tmp_path / FOLDER).iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert cached(tmp_path, "x", make)["a"].tolist() == [0, 1, 2, 3, 4]
    assert len(calls) == 2
    assert file.read_bytes() == whole


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path):
    make, calls = counting()
    (tmp_path / FOLDER).write_text("in the way")
    for _ in range(2):
        assert cached(tmp_path, "x", make)["a"].tolist() == [0, 1, 2, 3, 4]
    assert len(calls) == 2


def test_what_fails_halfway_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("snnfl.data.cache.sync_file", lambda path: (_ for _ in ()).throw(OSError("full")))
    make, _ = counting()
    cached(tmp_path, "x", make)
    assert not list((tmp_path / FOLDER).iterdir())


def test_a_fingerprint_tells_names_sizes_and_times_apart(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"1")
    os.utime(file, (1, 1))
    seen = {fingerprint([file], tmp_path)}
    assert fingerprint([file], tmp_path) in seen
    os.utime(file, (1, 2))
    seen.add(fingerprint([file], tmp_path))
    file.write_bytes(b"12")
    os.utime(file, (1, 2))
    seen.add(fingerprint([file], tmp_path))
    seen.add(fingerprint([file.rename(tmp_path / "b")], tmp_path))
    assert len(seen) == 4
