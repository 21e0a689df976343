"""The console commands: what ``[project.scripts]`` in ``pyproject.toml`` names."""

from __future__ import annotations

from snnfl.launch import use_app


def main() -> None:
    """Run the command ``snnfl``."""
    use_app()
    from experiments.cli import main as run

    run()


def flower_simulation() -> None:
    """Run the command ``flower-simulation``; the app that it loads may have packages called as ours are."""
    use_app(["experiments"])
    from experiments.flower_simulation import main as run

    run()
