"""Attacks of other people: a Python file that registers some."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from snnfl.attacks import names
from snnfl.config import ConfigError


def load_plugin(path: Path) -> tuple[str, ...]:
    """Run a Python file that registers attacks; return their names.

    It is code of the auditor's own: it may do whatever the auditor may.

    Raises:
        ConfigError: If the file isn't there, fails or registers nothing.
    """
    if not path.is_file():
        raise ConfigError(f"--plugin {path}: no such file; give a Python file that registers attacks")
    before = set(names())
    spec = importlib.util.spec_from_file_location(f"snnfl_plugin_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--plugin {path}: not a Python file; its name must end in .py")
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    except Exception as error:  # of somebody else's code
        raise ConfigError(f"--plugin {path}: {type(error).__name__}: {error}") from error
    added = tuple(sorted(set(names()) - before))
    if not added:
        raise ConfigError(f"--plugin {path}: registers no attack; use @snnfl.attacks.register (docs/audit.md)")
    return added
