"""Folders and files for their owner alone, however open the process leaves what it makes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from snnfl.auditing.ground_truth import GroundTruth
from snnfl.auditing.recording import TRUTH, Recording, write_truth
from snnfl.checksummed import write_checksummed
from snnfl.files import make_private, write_bytes


@pytest.fixture(autouse=True)
def _generous() -> Iterator[None]:
    """The system takes nothing away from the modes that are asked for."""
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """Return the mode of all that lies below a folder."""
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}


def test_every_parent_is_private_and_what_is_there_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there").chmod(0o755)
    make_private(tmp_path / "there" / "a" / "b" / "c")
    make_private(tmp_path / "there" / "a" / "b" / "c")
    assert modes(tmp_path) == {"there": 0o755, "there/a": 0o700, "there/a/b": 0o700, "there/a/b/c": 0o700}
    write_bytes(tmp_path / "file", b"")
    with pytest.raises(OSError, match="File exists"):
        make_private(tmp_path / "file")
    with pytest.raises(OSError, match="Not a directory"):
        make_private(tmp_path / "file" / "a" / "b")


def test_no_folder_is_open_for_an_instant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gets its mode when it is made: nobody sets one afterwards."""
    monkeypatch.setattr(os, "chmod", None)
    monkeypatch.setattr(Path, "chmod", None)
    make_private(tmp_path / "a" / "b")
    write_bytes(tmp_path / "a" / "b" / "file", b"secret", private=True)
    write_bytes(tmp_path / "open", b"")
    assert modes(tmp_path) == {"a": 0o700, "a/b": 0o700, "a/b/file": 0o600, "open": 0o666}


def test_a_private_file_replaces_an_open_one_and_what_a_killed_process_left(tmp_path: Path) -> None:
    for name in ("file", ".file.tmp"):
        (tmp_path / name).write_text("old")
        (tmp_path / name).chmod(0o644)
    write_checksummed(tmp_path / "file", {"a": np.ones(1, np.float32)}, {}, private=True)
    assert modes(tmp_path) == {"file": 0o600}


def test_an_audit_keeps_what_it_records_to_its_owner(tmp_path: Path) -> None:
    import torch

    recording = Recording(tmp_path / "run" / "audit", 10**6)
    recording.write_sent(1, {"w": torch.ones(1)})
    recording.write_received(1, 0, {"w": torch.ones(1)}, {})
    truth = GroundTruth(images=torch.zeros(1, 1, 2, 2), labels=torch.zeros(1, dtype=torch.int64))
    write_truth(tmp_path / "run" / "audit" / TRUTH, 1, 0, truth)
    found = modes(tmp_path)
    assert {mode for name, mode in found.items() if name.endswith(".safetensors")} == {0o600}
    assert {mode for name, mode in found.items() if not name.endswith(".safetensors")} == {0o700}
    assert len(found) == 11
