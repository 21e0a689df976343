"""A folder has one writer at a time, until its process ends, however it does."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from strategies.lock import LOCK_FILE, FolderInUseError, locked


def test_a_second_writer_gets_one_line_until_the_first_has_left(tmp_path: Path) -> None:
    with locked(tmp_path):
        with pytest.raises(FolderInUseError, match=rf"^{tmp_path}: another process of snnfl writes there; [^\n]+$"):
            locked(tmp_path).__enter__()
        refused: list[BaseException] = []

        def enter() -> None:
            try:
                locked(tmp_path).__enter__()
            except FolderInUseError as error:
                refused.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        assert len(refused) == 1
        with locked(tmp_path, "other"):
            pass
    with locked(tmp_path), pytest.raises(KeyError), locked(tmp_path, "other"):
        raise KeyError
    with locked(tmp_path, "other"):
        assert (tmp_path / LOCK_FILE).exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a process")
def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    ready, tell = os.pipe()
    if not (child := os.fork()):
        with locked(tmp_path):
            os.write(tell, b".")
            signal.pause()
        os._exit(0)
    assert os.read(ready, 1) == b"."
    with pytest.raises(FolderInUseError):
        locked(tmp_path).__enter__()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with locked(tmp_path):
        pass
