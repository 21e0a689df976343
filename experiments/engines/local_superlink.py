"""Flower's local SuperLink, started as ``flwr run`` would, but with patience, from this environment, and to an end.

For a connection whose address is ``:local:``, ``flwr run`` starts a SuperLink that simulates SuperNodes, gives it 15
seconds, finds it on the PATH alone, lets it install the app's dependencies from a package index, and leaves it behind.
One that is there already is used as it is, and left.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from experiments.engines import EngineError

LOCAL = ":local:"
LOCAL_IN_MEMORY = ":local-in-memory:"
START_SECONDS = 180.0
"""That a SuperLink may take to answer, on a machine that is busy with other things."""

END_SECONDS = 15.0
PROBE_SECONDS = 1.0
POLL_SECONDS = 0.2


class SuperLinkError(EngineError):
    """Flower's local SuperLink does not start; the text is one line."""


@dataclass
class Started:
    """A SuperLink that was started here.

    Attributes:
        server: ``HOST:PORT``.
        process: Its process.
        stays: Whether it outlives the block that started it.
    """

    server: str
    process: subprocess.Popen[bytes]
    stays: bool = False

    @property
    def answers(self) -> bool:
        """Whether it takes requests; one that is told to end doesn't, even before it does."""
        return _answers(self.server)


def flower_environment(home: Path | None = None) -> dict[str, str]:
    """Return the environment of Flower's commands: they find this Python's programs, in whichever way it was started.

    Args:
        home: Folder of Flower's ``config.toml``; ``None`` for the user's own.
    """
    programs = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": os.pathsep.join([programs, os.environ.get("PATH", "")])}
    return environment if home is None else {**environment, "FLWR_HOME": str(home.absolute())}


def address_of(connection: str | None, environment: Mapping[str, str]) -> str | None:
    """Return the address of a connection, where Flower's configuration tells one.

    Args:
        connection: Its name; ``None`` for the default one.
        environment: Of Flower's commands.
    """
    try:
        text = (_home(environment) / "config.toml").read_text(encoding="utf-8")
        superlinks = tomllib.loads(text)["superlink"]
        return str(superlinks[connection or superlinks["default"]]["address"])
    except FileNotFoundError:  # Flower writes one, with the local SuperLink as the default
        return LOCAL if connection in (None, "local") else None
    except (OSError, ValueError, LookupError, TypeError):
        return None  # Flower will say what is wrong with it


def reachable_address(address: str | None, environment: Mapping[str, str]) -> str | None:
    """Return ``HOST:PORT`` of the SuperLink that an address means."""
    if address in (LOCAL, LOCAL_IN_MEMORY):
        return f"127.0.0.1:{environment.get('FLWR_LOCAL_SUPERLINK_HTTP_API_PORT', '39091')}"
    return address


@contextmanager
def local_superlink(address: str | None, environment: Mapping[str, str]) -> Iterator[Started | None]:
    """Start the local SuperLink, if an address means it and it isn't there.

    Args:
        address: Of the connection.
        environment: Of Flower's commands.

    Yields:
        The SuperLink, which ends with the block unless told otherwise; ``None`` if there was nothing to start.

    Raises:
        SuperLinkError: If it ends at once, or doesn't answer in time.
    """
    server = reachable_address(address, environment)
    if address not in (LOCAL, LOCAL_IN_MEMORY) or server is None or _answers(server):
        yield None
        return
    folder = _home(environment) / "local-superlink"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = folder / "superlink.log"
    host, _, port = server.rpartition(":")
    command = [str(Path(sys.executable).parent / "flower-superlink"), "--insecure", "--simulation"]
    command += ["--host", host, "--port", port, "--log-file", str(log)]
    command += [] if address == LOCAL_IN_MEMORY else ["--database", str(folder / "state.db")]
    # Everything that the app needs is installed where this runs, so nothing need be fetched for it; and its simulations
    # are not to join a cluster that was started on this machine, or wait for one that has ended since.
    defaults = {"FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    defaults |= {"RAY_ADDRESS": "local", "RAY_prestart_worker_first_driver": "0"}  # workers that nobody would use
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen(
        command,
        env={**defaults, **_absolute(environment)},
        cwd=folder,  # Ray's workers import from it first, and a user's may have modules that are called as ours are
        stdin=nowhere,
        stdout=nowhere,
        stderr=nowhere,
        umask=0o077,  # its database holds updates under way
        start_new_session=True,  # Ctrl-C is for whoever runs the command; the SuperLink is told when its run is stopped
    )
    started = Started(server, process)
    try:
        _wait(process, server, log)
        yield started
    finally:
        if not started.stays:
            _end(process)


def _absolute(environment: Mapping[str, str]) -> dict[str, str]:
    """Let the folders that variables name be those that they are here, for a process that starts in another one."""
    named = {
        name: environment[name].split(os.pathsep) for name in ("PYTHONPATH", "SNNFL_DATA") if environment.get(name)
    }
    absolute = {
        name: os.pathsep.join(str(Path(entry).expanduser().absolute()) for entry in entries if entry)
        for name, entries in named.items()
    }
    return {**environment, **absolute}


def _wait(process: subprocess.Popen[bytes], server: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(server):
        if process.poll() is not None:
            raise SuperLinkError(f"flower-superlink ends with status {process.returncode} at its start; see {log}")
        if time.monotonic() > deadline:
            raise SuperLinkError(f"flower-superlink doesn't answer on {server} within {START_SECONDS:g} s; see {log}")
        time.sleep(POLL_SECONDS)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the SuperLink; what it started ends when it does."""
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:  # it waits for whoever still reads a log
        process.kill()
        process.wait()


def _answers(server: str) -> bool:
    try:
        return httpx.get(f"http://{server}/health", timeout=PROBE_SECONDS).is_success
    except httpx.HTTPError:
        return False


def _home(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("FLWR_HOME") or Path.home() / ".flwr")
