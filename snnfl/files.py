"""Files that are written whole or not at all, and folders that only their owner may look into."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

METADATA_KEY = "snnfl"
"""The one key of the metadata of a safetensors file, which writes several in an order of its own: equal contents shall
give equal files."""

PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600
"""Modes for the owner alone. What is made with one is never open to others, not even for an instant, as it would be if
the mode were set afterwards."""


def make_private(folder: Path) -> None:
    """Make a folder, and each parent that is missing, for its owner alone.

    ``Path.mkdir(mode, parents=True)`` gives the mode to the last one only. A folder that is there already keeps its
    mode, for somebody may have opened it on purpose; what snnfl keeps private has :data:`PRIVATE_FILE` besides.

    Raises:
        OSError: If one cannot be made, or is there and isn't a folder.
    """
    try:
        folder.mkdir(PRIVATE_FOLDER)
    except FileNotFoundError:
        make_private(folder.parent)
        folder.mkdir(PRIVATE_FOLDER, exist_ok=True)
    except FileExistsError:
        if not folder.is_dir():
            raise


def write_bytes(path: str | Path, content: bytes, *, sync: bool = True, private: bool = False) -> None:
    """Write a file in one step: either the old content is there or the new one.

    Args:
        path: File to write; its folder is there.
        content: All of it.
        sync: Whether it is on the disk when this returns. Without, a power cut may leave a damaged file.
        private: Whether its owner alone may read it, from the first byte on.

    Raises:
        OSError: Naming ``path``, if the system doesn't let it be written; the old content is still there.
    """
    path = Path(path)
    temporary, mode = path.with_name(f".{path.name}.tmp"), PRIVATE_FILE if private else 0o666
    try:
        temporary.unlink(missing_ok=True)  # a killed process may have left one, with another mode
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
        if sync:
            _sync_folder(path.parent)
    except OSError as error:  # one of writing names no file, one of replacing the temporary one
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        with suppress(OSError):  # or it would hide the reason
            temporary.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """See to the disk what was written to a file.

    Raises:
        OSError: Naming it, if the system cannot.
    """
    try:
        with path.open("r+b") as file:  # Windows syncs what is open for writing alone
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _sync_folder(folder: Path) -> None:
    """See a new name to the disk, where the system can open a folder."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
