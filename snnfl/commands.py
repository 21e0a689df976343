"""The console commands: what ``[project.scripts]`` in ``pyproject.toml`` names."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence

from snnfl.installation import NAMES
from snnfl.launch import HiddenError, importing, use_app


def main() -> None:
    """Run the command ``snnfl``."""
    _use_app("snnfl")
    with importing():
        from experiments.cli import main as run

    _run(run)


def flower_simulation() -> None:
    """Run the command ``flower-simulation``; the app that it loads may have packages called as ours are."""
    _use_app("flower-simulation", ["experiments"])
    with importing():
        from experiments.flower_simulation import main as run

    _run(run)


def _run(command: Callable[[], None]) -> None:
    try:
        command()
    finally:
        gc.freeze()  # the interpreter would look through all that lives, for a second, before it ends


def _use_app(program: str, names: Sequence[str] = NAMES) -> None:
    try:
        use_app(names)
    except HiddenError as error:
        sys.exit(f"{program}: {error}")
