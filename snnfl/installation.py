"""Where an installation keeps `clients/`, `strategies/` and `experiments/`: of paths alone, nothing is imported."""

from __future__ import annotations

from pathlib import Path

NAMES = ("clients", "strategies", "experiments")


def app_folder() -> Path:
    """Return the folder that holds ``clients/``, ``strategies/`` and ``experiments/``: of a wheel, or of a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "_app"
    return installed if installed.is_dir() else package.parent
