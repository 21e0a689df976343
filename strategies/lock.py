"""A folder that one process at a time may write to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_FILE = ".lock"


class FolderInUseError(RuntimeError):
    """Another process writes to a folder; names it and the way out."""


@contextmanager
def locked(folder: Path, name: str = LOCK_FILE) -> Iterator[None]:
    """Keep every other process, and every other thread, that asks for the same lock out of a folder.

    The system takes the lock back when the process ends, however it does; the empty file stays and means nothing.

    Args:
        folder: Made if it isn't there.
        name: Of the lock's file in it.

    Raises:
        FolderInUseError: At once, if somebody has it.
        OSError: If the folder cannot be written.
    """
    lock = FileLock(folder / name, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise FolderInUseError(
            f"{folder}: another process of snnfl writes there; wait until it has ended, or name another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()
