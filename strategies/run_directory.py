"""The folder of a run: everything that it produced, readable while it goes on and whole if it is killed."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from snnfl.audit.recording import TRUTH
from snnfl.config import Config, ConfigError, to_yaml
from snnfl.protocol import STATE_DIRECTORY, TRUTH_DIRECTORY
from snnfl.spiking.storage import write_bytes

CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
METRICS_FILE = "metrics.jsonl"
ANN_FILE = "final_ann.safetensors"
SNN_FILE = "final_snn.safetensors"
NIR_FILE = "final_snn.nir"
FIGURE_FILES = ("accuracy.png", "accuracy.svg")
CHECKPOINTS = "checkpoints"
CLIENTS = "clients"
AUDIT = "audit"
TENSORBOARD = "tensorboard"
"""Folders: what the server needs to go on, what the clients of a simulation keep to themselves, what an audit found,
what TensorBoard reads."""

_PACKAGES = ("snnfl", "flwr", "torch", "torchvision", "spikingjelly", "numpy", "numba", "ray", "flwr-datasets")


@dataclass(frozen=True)
class RunDirectory:
    """A run's folder.

    Attributes:
        path: ``run.directory/run.name``, absolute.
    """

    path: Path

    @classmethod
    def create(cls, config: Config) -> RunDirectory:
        """Make the folder and write the resolved configuration and the environment.

        Raises:
            ConfigError: If an earlier run lies there and neither ``run.overwrite`` nor ``run.resume`` is on, or the
                folder cannot be written.
        """
        path = run_path(config)
        run = cls(path)
        try:
            if (path / CONFIG_FILE).exists() and not (config.run.overwrite or config.run.resume):
                way_out = "choose another name, or set run.overwrite=true, or run.resume=true to continue it"
                raise ConfigError(f"run.name={config.run.name}: {path} holds an earlier run; {way_out}")
            path.mkdir(parents=True, exist_ok=True)
            for name in (CONFIG_FILE, ENVIRONMENT_FILE, METRICS_FILE, ANN_FILE, SNN_FILE, NIR_FILE, *FIGURE_FILES):
                (path / name).unlink(missing_ok=True)
            for name in (CHECKPOINTS, CLIENTS, AUDIT, TENSORBOARD):
                if (path / name).exists():
                    shutil.rmtree(path / name)
            run.write_text(ENVIRONMENT_FILE, json.dumps(environment(), indent=2) + "\n")
            run.write_text(CONFIG_FILE, to_yaml(config))
        except OSError as error:
            raise _cannot_write(config, path, error) from None
        return run

    @classmethod
    def reopen(cls, config: Config, completed: int) -> RunDirectory:
        """Take up an earlier run: forget the rounds after the last complete one, note where it goes on.

        Raises:
            ConfigError: If ``metrics.jsonl`` lacks one of the ``completed`` rounds, or the folder cannot be written.
        """
        path = run_path(config)
        run = cls(path)
        try:
            rows = path / METRICS_FILE
            lines = rows.read_text(encoding="utf-8").splitlines(keepends=True) if rows.exists() else []
            if len(lines) < completed:
                raise ConfigError(
                    f"{path / METRICS_FILE} holds {len(lines)} rounds, but {completed} are complete; put the file "
                    "back, or set run.overwrite=true and run.resume=false to start anew"
                )
            run.write_text(METRICS_FILE, "".join(lines[:completed]))
            facts = json.loads((path / ENVIRONMENT_FILE).read_text(encoding="utf-8"))
            facts.setdefault("resumed", []).append({"after_round": completed, **environment()})
            run.write_text(ENVIRONMENT_FILE, json.dumps(facts, indent=2) + "\n")
            run.write_text(CONFIG_FILE, to_yaml(config))
        except OSError as error:
            raise _cannot_write(config, path, error) from None
        return run

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append a round to ``metrics.jsonl`` and see it to the disk."""
        with (self.path / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def write_text(self, name: str, text: str) -> None:
        """Write a file in one step: either the old content is there or the new one."""
        write_bytes(self.path / name, text.encode())


def run_path(config: Config) -> Path:
    """Return the folder of a run, absolute.

    Raises:
        ConfigError: If ``run.directory`` names none.
    """
    try:
        return Path(config.run.directory).expanduser().resolve() / config.run.name
    except (RuntimeError, ValueError) as error:  # no such user, or a character that no path has
        raise ConfigError(f"run.directory={config.run.directory!r}: not a folder's name ({error})") from None


def node_folders(path: Path) -> dict[str, str]:
    """Return what the nodes of a simulation are configured with, besides their partitions: where clients may write."""
    return {STATE_DIRECTORY: str(path / CLIENTS), TRUTH_DIRECTORY: str(path / AUDIT / TRUTH)}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a run's ``metrics.jsonl``: one dictionary per round."""
    return [json.loads(line) for line in (path / METRICS_FILE).read_text(encoding="utf-8").splitlines()]


def environment() -> dict[str, Any]:
    """Describe where a run takes place: what a reader needs to repeat it, and nothing that names a person or host."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": _commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _cannot_write(config: Config, path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"run.directory={config.run.directory}: cannot write {path} ({error.strerror})")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of the source tree, with a + where files differ from it; None outside a checkout."""
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
