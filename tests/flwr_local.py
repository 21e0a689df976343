"""Run ``flwr run`` on a local SuperLink of the test's own, offline, and leave no process behind."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from unittest.mock import patch

import pytest

from experiments.engines.local_superlink import local_superlink as started_superlink

BINARIES = Path(sys.executable).parent
TIMEOUT = 400  # seconds that one command may take

needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in Linux's /proc")

CONNECTION = """\
[superlink]
default = "local"

[superlink.local]
address = ":local:"
"""


def flower_env(home: Path) -> dict[str, str]:
    """Return an environment for Flower's commands that nobody else's meet in.

    Args:
        home: Is made, and becomes ``FLWR_HOME``, with a connection ``local`` as Flower's default configuration has it.
    """
    home.mkdir()
    (home / "config.toml").write_text(CONNECTION)
    return {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),  # its only one; the default may be a user's
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # else it calls `uv sync`, which asks a package index
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_ADDRESS": "local",  # else simulations join whatever cluster was last started on this machine
        "OMP_NUM_THREADS": "1",
        "PATH": f"{BINARIES}{os.pathsep}{os.environ['PATH']}",  # `flwr` looks for `flower-superlink` there
    }


@contextmanager
def local_superlink(folder: Path, forked: Path) -> Iterator[dict[str, str]]:
    """Start a local SuperLink, and at the end kill whatever came out of it.

    The SuperLink starts a SuperExec, which starts simulations, and each starts Ray; all of them inherit the
    environment, so those whose ``FLWR_HOME`` is this one are found and killed. ``flwr`` itself would give the start 15
    seconds.

    Args:
        folder: Becomes the working directory of the app, and holds the SuperLink's database and log.
        forked: The folder of commands that all of them are forked by.

    Yields:
        The environment for :func:`flwr_run`.
    """
    env = flower_env(folder / "flwr-home")
    env["PATH"] = f"{forked}{os.pathsep}{env['PATH']}"
    try:
        with ExitStack() as stack:
            with patch.object(sys, "executable", str(forked / "python")):
                stack.enter_context(started_superlink(":local:", env))
            yield env
    finally:
        kill_processes("FLWR_HOME", env["FLWR_HOME"])


def flwr_run(app_dir: Path, env: dict[str, str], run_config: str, num_supernodes: int | None = None) -> str:
    """Run an app to its end.

    Args:
        app_dir: Folder of the app.
        env: From :func:`local_superlink`.
        run_config: For example ``'rounds=2 output="/tmp/result.json"'``; every key is declared in the app's pyproject.
        num_supernodes: Clients of the simulation, at 1 CPU each; ``None`` for what Flower does unasked.

    Returns:
        What ``flwr run --stream`` printed.

    Raises:
        RuntimeError: If the run did not complete; ``flwr run`` itself exits with status 0 then.
        subprocess.TimeoutExpired: If a command takes longer than ``TIMEOUT``.
    """
    nodes = f"num-supernodes={num_supernodes} client-resources-num-cpus=1"
    simulation = [] if num_supernodes is None else ["--federation-config", nodes]
    output = _flwr(env, "run", str(app_dir.resolve()), "local", "--stream", *simulation, "--run-config", run_config)
    started = re.search(r"Successfully started run (\d+)", output)
    if started is None:
        raise RuntimeError(f"no run was started:\n{output}")
    listing = _flwr(env, "list", "local", "--run-id", started[1], "--format", "json")
    run = json.loads(listing[listing.index("{") :])["runs"][0]
    if run["status"] != "finished:completed":
        raise RuntimeError(f"{run['status']}: {run['status-details']}\n{output}")
    return output


def processes_with(variable: str, value: str) -> set[int]:
    """Return the ids of the living processes that were started with ``variable=value`` (Linux: reads ``/proc``)."""
    found = set()
    for folder in Path("/proc").iterdir():
        with suppress(OSError):  # another user's, or one that has just ended
            if folder.name.isdecimal() and f"{variable}={value}".encode() in (folder / "environ").read_bytes().split(
                b"\0"
            ):
                found.add(int(folder.name))
    return found - {os.getpid()}


def lingering_processes(variable: str, value: str) -> set[int]:
    """Return those of :func:`processes_with` that live on for a minute: Ray's helpers end after their master."""
    deadline = time.monotonic() + 60
    while (remaining := processes_with(variable, value)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return remaining


def kill_processes(variable: str, value: str) -> None:
    """Kill the processes that were started with ``variable=value``, and those they start meanwhile."""
    deadline = time.monotonic() + 20
    while remaining := processes_with(variable, value):
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {sorted(remaining)} survive SIGKILL")
        for process in remaining:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.1)


def _flwr(env: dict[str, str], *arguments: str) -> str:
    completed = subprocess.run(
        ["flwr", *arguments],
        env=env,
        cwd=Path(env["FLWR_HOME"]).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
    )
    if completed.returncode != 0:
        raise RuntimeError(f"flwr {' '.join(arguments)} exits with {completed.returncode}:\n{completed.stdout}")
    return completed.stdout


def free_port() -> int:
    """Return a port that nobody listens on, from below those that Linux gives to outgoing connections.

    One of those may be in use again before the process that is told of it has started. Where tests run side by side,
    random draws keep them apart.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
