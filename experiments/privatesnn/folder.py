"""The folder of what is made of a network: one process at a time, and a record of how each file in it was made."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.ending import RunFailedError, keeping
from experiments.privatesnn.setting import Setting
from snnfl.config import to_yaml
from snnfl.files import write_bytes
from snnfl.training import TrainingDivergedError
from strategies.lock import locked

RECORD = "made.json"
"""Of each file, or folder of images: the options that decide it, and the seconds that it took."""


@contextmanager
def working_in(setting: Setting) -> Iterator[None]:
    """Hold the folder of a setting's network while something is made there.

    Raises:
        FolderInUseError: If another process works there.
        RunFailedError: If training or encryption diverges.
        BrokenOffError: If the system doesn't let it go on.
    """
    setting.path.mkdir(parents=True, exist_ok=True)
    with locked(setting.path), keeping(lambda: "what is complete is kept; the same command goes on"):
        write_bytes(setting.path / "config.yaml", to_yaml(setting.config).encode())
        try:
            yield
        except TrainingDivergedError as error:
            raise RunFailedError(f"{setting.name}: {error}") from None


@contextmanager
def making(file: Path, options: Mapping[str, Any]) -> Iterator[None]:
    """Record how a file is made, and for how long, over all the times that somebody has gone on with it.

    Args:
        file: A file, or the folder of synthetic images.
        options: That decide it, and the names of files that it is made of.
    """
    start, begun = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        found = _record(file.parent)
        before = found.get(file.name, {"seconds": 0.0, "processor": 0.0})
        found[file.name] = {
            **options,
            "seconds": before["seconds"] + time.perf_counter() - start,
            "processor": before["processor"] + time.process_time() - begun,
        }
        write_bytes(file.parent / RECORD, json.dumps(found, indent=1).encode())


def seconds_of(setting: Setting) -> dict[str, dict[str, float]]:
    """Return the seconds that each stage of a setting took, and those of its processors; of those that were timed."""
    found = _record(setting.path)
    stages = {
        "train": [setting.ann],
        "synthesize": [setting.synthetic],
        "convert": [setting.converted],
        "encrypt": list(dict.fromkeys([setting.published, *map(setting.encrypted, setting.variants)])),
    }
    times = {stage: [found[file.name] for file in files if file.name in found] for stage, files in stages.items()}
    return {
        stage: {key: sum(each[key] for each in some) for key in ("seconds", "processor")}
        for stage, some in times.items()
        if some
    }


def _record(folder: Path) -> dict[str, dict[str, Any]]:
    file = folder / RECORD
    found: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    return found
