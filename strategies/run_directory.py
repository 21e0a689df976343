"""The folder of a run: everything that it produced, readable while it goes on and whole if it is killed."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snnfl.auditing.recording import TRUTH
from snnfl.checksummed import round_files
from snnfl.config import OWN, Config, ConfigError, compose, counted, options, to_yaml
from snnfl.config.merging import read_mapping
from snnfl.data import data_root
from snnfl.data.own import client_places
from snnfl.files import write_bytes
from snnfl.protocol import SIMULATED, STATE_DIRECTORY, TRUTH_DIRECTORY
from strategies.environment import environment
from strategies.lock import LOCK_FILE, locked

logger = logging.getLogger(__name__)

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

_FILES = (CONFIG_FILE, ENVIRONMENT_FILE, METRICS_FILE, ANN_FILE, SNN_FILE, NIR_FILE, *FIGURE_FILES)
_FOLDERS = (CHECKPOINTS, CLIENTS, AUDIT, TENSORBOARD)
_RESULTS = tuple(name for name in (*_FILES, *_FOLDERS) if name != ENVIRONMENT_FILE)


class RunFileError(ValueError):
    """A file of a run that isn't as it was written: names it, what is wrong, and the way out."""


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
            RunFileError: If a folder lies where a file belongs, or the reverse; nothing is deleted then.
            FolderInUseError: If what is to be deleted is being audited.
        """
        path = run_path(config)
        run = cls(path)
        refuse_earlier(config)
        try:
            path.mkdir(parents=True, exist_ok=True)
            check_places(path)
            if (path / AUDIT).exists():
                with locked(path / AUDIT):
                    shutil.rmtree(path / AUDIT)
            for name in _FILES:
                (path / name).unlink(missing_ok=True)
            for name in _FOLDERS:
                if (path / name).exists():
                    shutil.rmtree(path / name)
            run.write_config(config)
            run.write_text(ENVIRONMENT_FILE, json.dumps(environment(config), indent=2) + "\n")
        except OSError as error:
            raise cannot_write(config, error) from None
        return run

    @classmethod
    def reopen(cls, config: Config, completed: int) -> RunDirectory:
        """Take up an earlier run: forget the rounds after the last complete one, note where it goes on.

        Raises:
            ConfigError: If the folder cannot be written.
            RunFileError: If ``metrics.jsonl`` lacks one of the ``completed`` rounds, or another file is damaged.
        """
        path = run_path(config)
        run = cls(path)
        check_places(path)
        read_metrics(path, completed)
        facts = read_environment(path)
        if not facts:
            logger.warning("%s is missing; it now says where the run goes on, not where it began", ENVIRONMENT_FILE)
            facts = environment(config)
        resumed = facts.get("resumed")
        facts["resumed"] = [
            *(resumed if isinstance(resumed, list) else []),
            {"after_round": completed, **environment(config)},
        ]
        try:
            rows = (path / METRICS_FILE).read_bytes().split(b"\n") if completed else []
            write_bytes(path / METRICS_FILE, b"".join(row + b"\n" for row in rows[:completed]))
            run.write_text(ENVIRONMENT_FILE, json.dumps(facts, indent=2) + "\n")
            run.write_config(config)
        except OSError as error:
            raise cannot_write(config, error) from None
        return run

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append a round to ``metrics.jsonl``.

        Raises:
            OSError: Naming the file, if the system doesn't let it be written.
        """
        path = self.path / METRICS_FILE
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None

    def write_config(self, config: Config) -> None:
        """Write the resolved configuration, which :func:`read_config` reads back, and notices if it is cut."""
        self.write_text(CONFIG_FILE, f"# All {len(list(options()))} options of the run.\n{to_yaml(config)}")

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


@contextmanager
def held(config: Config) -> Iterator[None]:
    """Make a run's folder, and keep every other process of snnfl out of it for a while; an empty one goes again.

    Raises:
        ConfigError: If it cannot be made.
        FolderInUseError: If another process has it.
    """
    path = run_path(config)
    with ExitStack() as stack:
        try:
            path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(path))
        except OSError as error:
            raise cannot_write(config, error) from None
        try:
            yield
        finally:
            with suppress(OSError):
                if os.listdir(path) == [LOCK_FILE]:  # nothing came of it
                    (path / LOCK_FILE).unlink()
                    path.rmdir()


def node_folders(path: Path) -> dict[str, str]:
    """Return what the nodes of a simulation are configured with, besides their partitions: where clients may write."""
    return {STATE_DIRECTORY: str(path / CLIENTS), TRUTH_DIRECTORY: str(path / AUDIT / TRUTH)}


def simulated_node(config: Config) -> dict[str, str | bool]:
    """Return what a simulation of our own app configures its nodes with.

    Raises:
        ConfigError: If each node is to have data of its own, and there aren't as many as ``data.clients``.
    """
    if config.data.source != OWN:
        return dict(node_folders(run_path(config)))
    client_places(data_root(config.data.root), config.data.clients)
    return {**node_folders(run_path(config)), SIMULATED: True}


def refuse_earlier(config: Config) -> None:
    """Refuse to begin a run in the folder of an earlier one, unless its owner has allowed it.

    Raises:
        ConfigError: If anything would be lost, and neither ``run.overwrite`` nor ``run.resume`` is on.
    """
    path = run_path(config)
    if config.run.overwrite or config.run.resume or not holds_results(path):
        return
    way_out = "choose another name, or set run.overwrite=true, or run.resume=true to continue it"
    raise ConfigError(f"run.name={config.run.name}: {path} holds an earlier run; {way_out}")


def holds_results(path: Path) -> bool:
    """Tell whether something would be lost if a run began anew in a folder."""
    return any(os.path.lexists(path / name) for name in _RESULTS)


def check_places(path: Path) -> None:
    """Look whether all that a run will write to is a file where it should be one, and a folder where a folder.

    Otherwise the system would refuse it when the time comes: the final weights, after all training.

    Raises:
        RunFileError: Naming the first that isn't.
    """
    for folder in (path / name for name in _FOLDERS):
        if folder.exists() and not folder.is_dir():
            raise RunFileError(f"{folder} is no folder, where one of the run belongs; move it away")
    for file in (*(path / name for name in _FILES), *round_files(path / CHECKPOINTS).values()):
        if file.exists() and not file.is_file():
            raise RunFileError(f"{file} is a folder, where a file of the run belongs; move it away")


def read_metrics(path: Path, rounds: int | None = None, *, growing: bool = False) -> list[dict[str, Any]]:
    """Read a run's ``metrics.jsonl``: one dictionary per round, the first of round 1.

    Args:
        path: Of the run.
        rounds: How many must be there; what follows, such as the row of a round that was killed, isn't looked at.
            ``None`` for all of the file.
        growing: Whether somebody may be writing: an unfinished last line isn't looked at.

    Raises:
        RunFileError: Naming the file and the line that is wrong.
    """
    file = path / METRICS_FILE
    *lines, rest = _content(file).split(b"\n") if rounds != 0 else [b""]
    if rest and not growing:
        lines.append(rest)
    rows = [_row(file, number, line) for number, line in enumerate(lines[:rounds], start=1)]
    if rounds is not None and len(rows) < rounds:
        raise RunFileError(f"{file}: it holds {counted(len(rows), 'round')}, but {rounds} are complete; {_WAY_OUT}")
    return rows


def read_environment(path: Path) -> dict[str, Any]:
    """Read where a run took place; empty if nobody wrote that down.

    Raises:
        RunFileError: Naming the file.
    """
    file = path / ENVIRONMENT_FILE
    return read_object(file, {}, "put it back, or delete it") if file.exists() else {}


def read_object(file: Path, keys: Mapping[str, type], way_out: str) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Args:
        file: To read.
        keys: What it must hold at least, by name.
        way_out: If it doesn't.

    Raises:
        RunFileError: Naming the file.
    """
    try:
        found = json.loads(_content(file))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(found.get(key), kind) for key, kind in keys.items()):
        raise RunFileError(f"{file}: damaged (expected an object in JSON); {way_out}")
    return found


def read_config(path: Path) -> Config:
    """Read the configuration of a run from its folder.

    Raises:
        RunFileError: If it is missing or not whole: options that are cut off would silently be the defaults.
    """
    file = path / CONFIG_FILE
    if not file.exists():
        if path.is_file():
            inside = (
                f"; did you mean {path.parent}?" if (path.parent / CONFIG_FILE).is_file() else ", such as runs/demo"
            )
            raise RunFileError(f"{path}: it is a file; give the folder of a run{inside}")
        raise RunFileError(f"{path}: no {CONFIG_FILE} of a run here; give the folder of a run, such as runs/demo")
    text = _content(file).decode("utf-8", "replace")
    head = re.match(r"# All (\d+) options", text)  # earlier versions wrote none
    try:
        if head is not None and not text.endswith("\n"):
            raise ConfigError("its end is missing")
        config = compose(file)
        found = sum(len(section) for section in read_mapping(file).values())
        if not found or (head is not None and found != int(head[1])):
            raise ConfigError(f"it holds {found} options, not all")
    except ConfigError as error:
        reason = str(error).removeprefix(f"{file}: ")
        raise RunFileError(f"{file}: damaged ({reason}); {_WAY_OUT}") from None
    return config


def cannot_write(config: Config, error: OSError) -> ConfigError:
    """Say that a run's folder isn't fit to write to."""
    what = error.filename or run_path(config)
    return ConfigError(f"run.directory={config.run.directory}: cannot write {what} ({error.strerror})")


_WAY_OUT = "put it back, or move the folder away and run it anew"


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise RunFileError(f"{file}: cannot be read ({error.strerror}); {_WAY_OUT}") from None


_ROW: dict[str, type] = {"round": int, "replies": int, "aggregated": bool}
"""What a run reads again when it is resumed or ends, as far as a row has it."""


def _row(file: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if (
        not isinstance(row, dict)
        or "round" not in row
        or not all(type(row[key]) is kind for key, kind in _ROW.items() if key in row)
    ):
        raise RunFileError(f"{file}: line {number} is damaged (it isn't the row of a round); {_WAY_OUT}")
    if row["round"] != number:
        raise RunFileError(f"{file}: line {number} is the row of round {row['round']}; {_WAY_OUT}")
    return row
