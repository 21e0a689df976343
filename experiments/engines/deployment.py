"""Run the repository's Flower app on a SuperLink, by the real ``flwr run``.

The SuperLink gets the app's source and the run config; where its ServerApp and the SuperNodes run, there the run
directory and the data lie. ``flwr run --stream`` shows the ServerApp's log and ends with status 0 however the run
ended, so its status is asked for afterwards.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.engines import EngineError, RefusedRunError
from snnfl.config import Config, FlatValue, flatten
from snnfl.protocol import REFUSED

APP = Path(__file__).parents[2]
"""The Flower app: the folder of our ``pyproject.toml``."""

POLL_SECONDS = 5.0


class DeploymentError(EngineError):
    """The run was not accepted, or did not complete; the text is one line."""


def run_deployed(config: Config, show: Callable[[str], None], home: Path | None = None) -> None:
    """Submit a run and follow it to its end. An interrupted caller leaves the run going.

    Args:
        config: Of the run; ``engine.connection`` names the SuperLink, which has ``data.clients`` SuperNodes. A relative
            ``run.directory`` or ``data.root`` is one of the SuperLink's or a SuperNode's working directory.
        show: Told each line that ``flwr run`` prints, the ServerApp's log among them.
        home: Folder of Flower's ``config.toml``, which describes the connection; ``None`` for the user's own.

    Raises:
        RefusedRunError: If the ServerApp refuses the run for a mistake in what was asked.
        DeploymentError: If there is no app here, ``flwr`` refuses the run, or it ends otherwise than completed.
    """
    if not (APP / "pyproject.toml").is_file():
        raise DeploymentError(f"engine.name=deployment: {APP} holds no Flower app; run it from a source tree of snnfl")
    connection = [] if config.engine.connection is None else [config.engine.connection]
    with tempfile.TemporaryDirectory() as folder:
        overrides = Path(folder) / "run-config.toml"
        overrides.write_text(to_toml(flatten(config)), encoding="utf-8")
        lines = flwr_command(["run", str(APP), *connection, "--stream", "--run-config", str(overrides)], show, home)
    started = re.search(r"Successfully started run (\d+)", "\n".join(lines))
    if started is None:
        raise DeploymentError(f"flwr run started no run: {_last(lines)}")
    while not (status := _status([*connection, "--run-id", started[1]], home))[0].startswith("finished"):
        time.sleep(POLL_SECONDS)  # a busy SuperLink may break off the log before the run ends
    if status[0] != "finished:completed":
        if refused := [line.partition(f"{REFUSED}: ")[2] for line in lines if f"{REFUSED}: " in line]:
            raise RefusedRunError(refused[0])
        raise DeploymentError(f"run {started[1]}: {': '.join(filter(None, status))}")


def _status(arguments: Sequence[str], home: Path | None) -> tuple[str, str]:
    """Ask for the status of a run, and its details."""
    try:
        run = list_runs(arguments, home)[0]
        return str(run["status"]), " ".join(str(run["status-details"]).split())
    except (LookupError, TypeError):
        raise DeploymentError(f"run {arguments[-1]}: flwr list doesn't tell how it ended") from None


def list_runs(arguments: Sequence[str], home: Path | None = None) -> list[dict[str, Any]]:
    """Ask a SuperLink for its runs.

    Args:
        arguments: Of ``flwr list``.
        home: As in :func:`run_deployed`.

    Raises:
        DeploymentError: If it doesn't answer with a list.
    """
    said = "\n".join(flwr_command(["list", *arguments, "--format", "json"], home=home))
    try:
        return list(json.loads(said[said.index("{") :])["runs"])
    except (ValueError, LookupError, TypeError):
        raise DeploymentError(f"flwr list lists no runs: {_last([said])}") from None


def with_absolute_paths(config: Config) -> Config:
    """Resolve relative paths here, for a SuperLink on this machine: the apps run in a working directory of its own."""
    folder = str(Path(config.run.directory).expanduser().absolute())
    root = config.data.root and str(Path(config.data.root).expanduser().absolute())
    return replace(config, run=replace(config.run, directory=folder), data=replace(config.data, root=root))


def to_toml(run_config: Mapping[str, FlatValue]) -> str:
    """Write a run config as TOML, whose text, numbers and truth values are JSON's."""
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in run_config.items())


def flwr_command(
    arguments: Sequence[str], show: Callable[[str], None] = lambda line: None, home: Path | None = None
) -> list[str]:
    """Run Flower's command of this Python; return the lines that it prints.

    Args:
        arguments: Of ``flwr``.
        show: Told each line.
        home: As in :func:`run_deployed`.

    Raises:
        DeploymentError: If it fails, with the last line.
    """
    binaries = str(Path(sys.executable).parent)  # a local SuperLink is started from the PATH
    environment = {**os.environ, "PATH": os.pathsep.join([binaries, os.environ.get("PATH", "")])}
    if home is not None:
        environment["FLWR_HOME"] = str(home.absolute())
    command = [sys.executable, "-m", "flwr.cli.app", *arguments]
    lines: list[str] = []
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        umask=0o077,  # the database of a local SuperLink, which it may start, holds updates under way
    ) as process:
        for line in process.stdout or ():
            lines.append(line.rstrip())
            show(lines[-1])
    if process.returncode != 0:
        raise DeploymentError(f"flwr {arguments[0]} exits with status {process.returncode}: {_last(lines)}")
    return lines


def _last(lines: Sequence[str]) -> str:
    """Return the last thing that a command said in one line: what stands in its error's box, if it drew one."""
    text = "\n".join(lines)
    boxes = re.findall(r"╭─ Error ─+╮\n(.*?)\n╰─+╯", text, re.S)
    said = [" ".join(line.replace("│", " ").split()) for line in (boxes[-1:] or text.splitlines()) if line.strip()]
    return said[-1][:300] if said else "it printed nothing"
