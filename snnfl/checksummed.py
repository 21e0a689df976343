"""Files that notice their own damage: arrays and JSON under one checksum, a file for each round of a run."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from snnfl.files import METADATA_KEY, write_bytes

_ROUND_FILE = re.compile(r"round-(\d{6,})\.safetensors")


class DamagedFileError(ValueError):
    """A checksummed file that isn't as it was written: names the file and what is wrong with it."""


def write_checksummed(
    path: Path, arrays: Mapping[str, NDArray[Any]], about: Any, *, sync: bool = True, private: bool = False
) -> None:
    """Write arrays and what JSON can hold of them in one step, as safetensors with a checksum.

    Args:
        path: File to write; its folder is there.
        arrays: By name, of types that safetensors has and in the machine's byte order.
        about: What :func:`json.dumps` writes; NaN and infinity are allowed.
        sync: Whether the file is on the disk when this returns, so that it outlives a power cut too. A process that is
            killed loses nothing either way.
        private: Whether its owner alone may read it.

    Raises:
        OSError: As :func:`~snnfl.files.write_bytes`.
    """
    text = json.dumps(about)
    plain = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    write_bytes(path, save(plain, {METADATA_KEY: f"{_checksum(plain, text)} {text}"}), sync=sync, private=private)


def read_checksummed(path: Path) -> tuple[dict[str, NDArray[Any]], Any]:
    """Read a checksummed file, without pickle.

    Returns:
        The arrays by name, and what the file says about them.

    Raises:
        DamagedFileError: If the file cannot be read, or differs from what was written.
    """
    try:
        with safe_open(path, framework="np") as file:
            checksum, _, text = (file.metadata() or {}).get(METADATA_KEY, "").partition(" ")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        intact = checksum == _checksum(arrays, text)
    except Exception as error:  # whatever a damaged header makes safetensors raise
        raise DamagedFileError(f"{path}: {' '.join(str(error).split()) or type(error).__name__}") from None
    if not intact:
        raise DamagedFileError(f"{path}: its checksum does not fit what it holds")
    return arrays, json.loads(text)


def round_file(folder: Path, server_round: int) -> Path:
    """Return the path of a round's file in a folder."""
    return folder / f"round-{server_round:06d}.safetensors"


def round_files(folder: Path) -> dict[int, Path]:
    """Return the files of :func:`round_file` that lie in a folder by round, ascending; none if there is no folder."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    found = {int(match[1]): folder / match[0] for name in names if (match := _ROUND_FILE.fullmatch(name))}
    return dict(sorted(found.items()))


def _checksum(arrays: Mapping[str, NDArray[Any]], text: str) -> str:
    """Hash what a file means, not its bytes: another version of safetensors may order and pad them otherwise."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        digest.update(f"\n{json.dumps(name)} {arrays[name].dtype} {list(arrays[name].shape)}\n".encode())
        digest.update(arrays[name].reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
