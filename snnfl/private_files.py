"""Folders that only their owner may look into, from the moment they exist."""

from __future__ import annotations

from pathlib import Path

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
