"""Where a run takes place."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from snnfl.config import Config
from snnfl.plugins import used

_PACKAGES = ("snnfl", "flwr", "torch", "torchvision", "spikingjelly", "numpy", "numba", "ray", "flwr-datasets")


def environment(config: Config) -> dict[str, Any]:
    """Describe where a run takes place: what a reader needs to repeat it, and nothing that names a person or host.

    Args:
        config: Of the run, whose plug-ins are told.
    """
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": _commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "plugins": [plugin.as_json() for plugin in used(config)],
        "packages": {name: _version(name) for name in _PACKAGES},
    }


@cache
def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@cache
def _commit() -> str | None:
    """Return the commit of the source tree, with a + where files differ from it; None outside a checkout.

    As it is when a process first asks: what is imported stays as it was.
    """
    if Path(__file__).parents[1].name == "_app":  # of a wheel, whose environment may lie in somebody's repository
        return None
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--abbrev=12",
        "--dirty=+",
        "--exclude=*",
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
