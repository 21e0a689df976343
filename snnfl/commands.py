"""The console commands: what ``[project.scripts]`` in ``pyproject.toml`` names."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from snnfl.installation import NAMES
from snnfl.launch import HiddenError, use_app


def main() -> None:
    """Run the command ``snnfl``."""
    _use_app("snnfl")
    from experiments.cli import main as run

    run()


def flower_simulation() -> None:
    """Run the command ``flower-simulation``; the app that it loads may have packages called as ours are."""
    _use_app("flower-simulation", ["experiments"])
    from experiments.flower_simulation import main as run

    run()


def _use_app(program: str, names: Sequence[str] = NAMES) -> None:
    try:
        use_app(names)
    except HiddenError as error:
        sys.exit(f"{program}: {error}")
