"""What takes long to compute from the files of a data set, kept beside them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from snnfl.files import sync_file

FOLDER = ".snnfl"
"""Below the data set's own. It may be deleted at any time."""

VERSION = 1
"""Counts up when the same files and options are to give other tensors."""


def cached(
    folder: Path, key: Any, make: Callable[[], dict[str, Tensor]], *, private: bool = False
) -> dict[str, Tensor]:
    """Return what was computed for the same key before, else compute it and keep it.

    A folder that cannot be written to keeps nothing. A file appears whole or not at all. What is read from it is mapped
    into memory: processes share it, and pages that nobody uses take none.

    Args:
        folder: Of the data set.
        key: All that decides the result; its ``repr`` tells keys apart.
        make: Computes it.
        private: Whether what is kept is for this user alone, from its creation.
    """
    digest = hashlib.sha256(repr((VERSION, key)).encode()).hexdigest()[:32]
    path = folder / FOLDER / f"{digest}.safetensors"
    with suppress(OSError, SafetensorError):  # not there, or damaged: it is made anew
        return load_file(path)
    made = make()
    with suppress(OSError, SafetensorError):  # a folder that is for reading alone, or a full disk
        path.parent.mkdir(0o700 if private else 0o777, exist_ok=True)
        own = path.with_suffix(f".{os.getpid()}")  # several processes may come here at once
        try:
            own.touch(0o600 if private else 0o666)
            save_file(made, own)
            sync_file(own)
            own.replace(path)
        finally:
            own.unlink(missing_ok=True)
    return made


def fingerprint(paths: Sequence[Path], folder: Path) -> str:
    """Return a hash of the names, sizes and times of change of files below a folder."""
    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        digest.update(f"{path.relative_to(folder)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
