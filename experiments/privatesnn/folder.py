"""The folder of what is made of a network: one process at a time, and never of two networks or in two ways."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from experiments.ending import RunFailedError, keeping
from experiments.privatesnn.network import run_file
from experiments.privatesnn.study import SECTIONS, Setting
from snnfl.config import ConfigError, to_yaml
from snnfl.files import write_bytes
from snnfl.training import TrainingDivergedError
from strategies.lock import locked

OPTIONS = "privatesnn.json"
DECIDES = {"synthesize": ("synthesis",), "convert": ("synthesis", "publishing")}
"""Sections that decide what a stage makes; all of them, of the others."""


@contextmanager
def working_in(setting: Setting, stage: str) -> Iterator[None]:
    """Hold a setting's folder while a stage goes on there.

    Raises:
        ConfigError: If the folder holds what was made of another network, or in another way.
        FolderInUseError: If another process works there.
        RunFailedError: If training or encryption diverges.
        BrokenOffError: If the system doesn't let it go on.
    """
    setting.path.mkdir(parents=True, exist_ok=True)
    with locked(setting.path), keeping(lambda: "what is complete is kept; the same command goes on"):
        write_bytes(setting.path / "config.yaml", to_yaml(setting.config).encode())
        _check_options(setting, stage)
        try:
            yield
        except TrainingDivergedError as error:
            raise RunFailedError(f"{setting.name}: {error}") from None


def _check_options(setting: Setting, stage: str) -> None:
    """Write down which network is published and how; refuse to mix it with what was made of the same run otherwise.

    A stage looks at the options that decide what it makes, so those of later ones may still change.

    Raises:
        ConfigError: Naming the first option that differs, or that the run was played again.
    """
    file, every = setting.path / OPTIONS, json.loads(json.dumps(asdict(setting.private)))
    network = None if setting.run is None else hashlib.sha256(run_file(setting.run).read_bytes()).hexdigest()
    made: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"network": network}
    if made["network"] != network:
        raise ConfigError(f"{setting.path}: it was made of another network, for the run was played again; delete it")
    asked = {section: every[section] for section in DECIDES.get(stage, tuple(SECTIONS))}
    for section, options in asked.items():
        for key, value in options.items():
            if (before := made.get(section, options)[key]) != value:
                raise ConfigError(
                    f"{section}.{key}={value}: {setting.path} was made with {before}; give that, or delete the folder"
                )
    write_bytes(file, json.dumps({**made, **asked}, indent=1).encode())
