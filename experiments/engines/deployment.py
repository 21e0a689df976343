"""Run our Flower app on a SuperLink, by the real ``flwr run``.

The SuperLink gets the app's source and the run config; where its ServerApp and the SuperNodes run, there the run
directory and the data lie. ``flwr run --stream`` shows the ServerApp's log and ends with status 0 however the run
ended, so its status is asked for afterwards.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.engines import EngineError, RefusedRunError
from experiments.engines.app_folder import flower_app
from experiments.engines.local_superlink import address_of, flower_environment, local_superlink, reachable_address
from experiments.signals import Terminated
from snnfl.config import Config, FlatValue, flatten
from snnfl.plugins import used
from snnfl.protocol import REFUSED

POLL_SECONDS = 5.0
WATCH_SECONDS = 1.0
REFUSALS = 3
"""Refused connections in a row that tell of a SuperLink's end."""


class DeploymentError(EngineError):
    """The run was not accepted, or did not complete; the text is one line."""


def run_deployed(config: Config, show: Callable[[str], None], home: Path | None = None, *, stops: bool = True) -> None:
    """Submit a run and follow it to its end.

    Ctrl-C ends the following alone: the run goes on, and so does a SuperLink that was started for it. A request to
    terminate (SIGTERM) ends both, unless other runs go on there.

    Args:
        config: Of the run; ``engine.connection`` names the SuperLink, which has ``data.clients`` SuperNodes; one that
            simulates them is told how many. A relative ``run.directory`` or ``data.root`` is one of the SuperLink's or
            a SuperNode's working directory.
        show: Told each line that ``flwr run`` prints, the ServerApp's log among them.
        home: Folder of Flower's ``config.toml``, which describes the connection; ``None`` for the user's own.
        stops: Whether a request to terminate ends the run, too.

    Raises:
        RefusedRunError: If the ServerApp refuses the run for a mistake in what was asked.
        DeploymentError: If ``flwr`` refuses the run, or it ends otherwise than completed.
    """
    connection = [] if config.engine.connection is None else [config.engine.connection]
    environment = flower_environment(home)
    address = address_of(config.engine.connection, environment)
    lines: list[str] = []

    def hear(line: str) -> None:
        lines.append(line)
        show(line)

    with local_superlink(address, environment) as superlink:
        try:
            _submit(config, connection, hear, home, reachable_address(address, environment))
            _wait(lines, connection, home)
        except KeyboardInterrupt as interrupt:
            if stops and isinstance(interrupt, Terminated):
                _stop(_started(lines), connection, home, show)
            elif superlink is not None:
                superlink.stays = True
            raise
        finally:
            if superlink is not None and not superlink.stays and superlink.answers and _others_run(connection, home):
                superlink.stays = True
                show(f"the SuperLink on {superlink.server} stays, since other runs go on there")


def _submit(
    config: Config, connection: Sequence[str], show: Callable[[str], None], home: Path | None, server: str | None
) -> None:
    with flower_app(used(config)) as app, tempfile.TemporaryDirectory() as folder:
        overrides = Path(folder) / "run-config.toml"
        overrides.write_text(to_toml(flatten(config)), encoding="utf-8")
        nodes = ["--federation-config", f"num-supernodes={config.data.clients}"]  # heeded by those that simulate
        command = ["run", str(app), *connection, "--stream", *nodes, "--run-config", str(overrides)]
        flwr_command(command, show, home, server)


def _wait(lines: Sequence[str], connection: Sequence[str], home: Path | None) -> None:
    run = _started(lines)
    if run is None:
        raise DeploymentError(f"flwr run started no run: {_last(lines)}")
    while not (status := _status([*connection, "--run-id", run], home))[0].startswith("finished"):
        time.sleep(POLL_SECONDS)  # a busy SuperLink may break off the log before the run ends
    if status[0] != "finished:completed":
        if refused := [line.partition(f"{REFUSED}: ")[2] for line in lines if f"{REFUSED}: " in line]:
            raise RefusedRunError(refused[0])
        raise DeploymentError(f"run {run}: {': '.join(filter(None, status))}")


def _stop(run: str | None, connection: Sequence[str], home: Path | None, show: Callable[[str], None]) -> None:
    if run is not None:
        try:
            flwr_command(["stop", run, *connection], home=home)
        except DeploymentError as error:
            show(f"run {run} may go on: {error}")


def _started(lines: Sequence[str]) -> str | None:
    found = re.search(r"Successfully started run (\d+)", "\n".join(lines))
    return None if found is None else found[1]


def _others_run(connection: Sequence[str], home: Path | None) -> bool:
    """Tell whether a SuperLink has runs that haven't ended; one that doesn't say has none."""
    try:
        return not all(str(run["status"]).startswith("finished") for run in list_runs(connection, home))
    except (DeploymentError, LookupError, TypeError):
        return False


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
    arguments: Sequence[str],
    show: Callable[[str], None] = lambda line: None,
    home: Path | None = None,
    server: str | None = None,
) -> list[str]:
    """Run Flower's command of this Python; return the lines that it prints.

    Args:
        arguments: Of ``flwr``.
        show: Told each line.
        home: As in :func:`run_deployed`.
        server: ``HOST:PORT`` of the SuperLink. One that is told to end takes no new connections, but waits for whoever
            reads a log; so once its port is closed, the command is ended.

    Raises:
        DeploymentError: If it fails, with the last line, or its SuperLink ends.
    """
    command = [sys.executable, "-u", "-m", "flwr.cli.app", *arguments]  # or a run's log waits until it is long enough
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    pipes["umask"] = 0o077  # the database of a local SuperLink, which it may start, holds updates under way
    lines: list[str] = []
    with subprocess.Popen(command, env=flower_environment(home), **pipes) as process, _watched(process, server) as gone:
        try:
            for line in process.stdout or ():
                lines.append(line.rstrip())
                show(lines[-1])
        except BaseException:
            process.terminate()
            raise
    if gone.is_set():
        raise DeploymentError(f"the SuperLink on {server} has ended, and its runs with it")
    if process.returncode != 0:
        raise DeploymentError(f"flwr {arguments[0]} exits with status {process.returncode}: {_last(lines)}")
    return lines


@contextmanager
def _watched(process: subprocess.Popen[str], server: str | None) -> Iterator[threading.Event]:
    """End a process when a server that was there refuses connections; yields whether that has happened."""
    ended, gone = threading.Event(), threading.Event()
    host, _, port = (server or "").rpartition(":")

    def watch() -> None:
        refused: int | None = None  # in a row, since the first connection
        while refused is None or refused < REFUSALS:
            if ended.wait(WATCH_SECONDS):
                return
            if _accepts(host, int(port)):
                refused = 0
            elif refused is not None:
                refused += 1
        gone.set()
        process.terminate()

    if host and port.isdecimal():
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield gone
    finally:
        ended.set()


def _accepts(host: str, port: int) -> bool:
    """Tell whether connections are accepted, or could be: a network that fails is not the end of a SuperLink."""
    try:
        socket.create_connection((host, port), WATCH_SECONDS).close()
    except OSError as error:
        return not isinstance(error, ConnectionRefusedError)
    return True


def _last(lines: Sequence[str]) -> str:
    """Return the last thing that a command said in one line: what stands in its error's box, if it drew one."""
    text = "\n".join(lines)
    boxes = re.findall(r"╭─ Error ─+╮\n(.*?)\n╰─+╯", text, re.S)
    said = [" ".join(line.replace("│", " ").split()) for line in (boxes[-1:] or text.splitlines()) if line.strip()]
    return said[-1][:300] if said else "it printed nothing"
