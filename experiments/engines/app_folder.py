"""The folder of our Flower app, which ``flwr run`` bundles: that of a checkout, or one put together from a wheel."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from snnfl.launch import NAMES, app_folder

METADATA = ("pyproject.toml", "README.md", "LICENSE")
"""What the app holds beside its modules."""


@contextmanager
def flower_app() -> Iterator[Path]:
    """Yield the folder of our Flower app; one that is put together lasts as long as the block."""
    root = app_folder()
    if root.name != "_app":
        yield root
        return
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder)
        for name in METADATA:
            shutil.copyfile(root / name, whole / name)
        for name, source in (("snnfl", root.parent), *((name, root / name) for name in NAMES)):
            shutil.copytree(source, whole / name, ignore=shutil.ignore_patterns("__pycache__", "_app"))
        yield whole
