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
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

BINARIES = Path(sys.executable).parent
TIMEOUT = 400  # seconds that one command may take

needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in Linux's /proc")

CONNECTION = """\
[superlink]
default = "local"

[superlink.local]
address = ":local:"
"""


@contextmanager
def local_superlink(tmp_path: Path, num_supernodes: int) -> Iterator[dict[str, str]]:
    """Start a local SuperLink as ``flwr`` itself starts it, and at the end kill whatever came out of it.

    ``flwr`` detaches the SuperLink and keeps no process id. The SuperLink starts a SuperExec, that the simulation, and
    that Ray. Told to end, the first two do, but a simulation under way goes on. All of them inherit the environment, so
    those whose ``FLWR_HOME`` is this test's are found and killed.

    Args:
        tmp_path: Becomes the working directory of the app, and holds the SuperLink's database and log.
        num_supernodes: Clients of the simulation, at 1 CPU each.

    Yields:
        The environment for :func:`flwr_run`.
    """
    home = tmp_path / "flwr-home"
    home.mkdir()
    (home / "config.toml").write_text(CONNECTION)
    env = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # else it calls `uv sync`, which asks a package index
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{BINARIES}{os.pathsep}{os.environ['PATH']}",  # `flwr` looks for `flower-superlink` there
    }
    try:
        _start_superlink(env, num_supernodes)
        yield env
    finally:
        kill_processes("FLWR_HOME", str(home))


def _start_superlink(env: dict[str, str], num_supernodes: int) -> None:
    """Start it; up to three times, since ``flwr`` waits for 15 s and no longer, however busy the machine is."""
    configure = ["federation", "simulation-config", "@none/default", "local"]
    for attempt in range(3):
        env["FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"] = str(free_port())  # its only port; the default may be a user's
        try:
            _flwr(env, *configure, "--num-supernodes", str(num_supernodes), "--client-resources-num-cpus", "1")
        except RuntimeError as error:
            if "Failed to start local SuperLink within" not in str(error) or attempt == 2:
                raise
            kill_processes("FLWR_HOME", env["FLWR_HOME"])
        else:
            return


def flwr_run(app_dir: Path, env: dict[str, str], run_config: str) -> str:
    """Run an app to its end.

    Args:
        app_dir: Folder of the app.
        env: From :func:`local_superlink`.
        run_config: For example ``'rounds=2 output="/tmp/result.json"'``; every key is declared in the app's pyproject.

    Returns:
        What ``flwr run --stream`` printed.

    Raises:
        RuntimeError: If the run did not complete; ``flwr run`` itself exits with status 0 then.
        subprocess.TimeoutExpired: If a command takes longer than ``TIMEOUT``.
    """
    output = _flwr(env, "run", str(app_dir.resolve()), "local", "--stream", "--run-config", run_config)
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
        with suppress(OSError):  # not a process, another user's, or one that has just ended
            if f"{variable}={value}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.add(int(folder.name))
    return found - {os.getpid()}


def lingering_processes(variable: str, value: str) -> set[int]:
    """Return those of :func:`processes_with` that live on for 30 s: Ray's helpers end a little after their master."""
    deadline = time.monotonic() + 30
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
        [BINARIES / "flwr", *arguments],
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
