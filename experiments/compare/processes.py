"""The processes that cells run in: forked from a warm one, or fresh ones where the system cannot fork safely."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from experiments.compare.study import Cell
from snnfl.config import to_yaml
from snnfl.files import write_bytes
from snnfl.plugins import pack

LOG, CONFIGURATION, EXTRAS = "cell.log", "cell.yaml", "cell_extras.json"
PATIENCE_SECONDS = 15.0
"""How long processes may take to end when they are told to; longer than a warm one waits for its cells."""


class Processes(ABC):
    """Processes of cells. Each is told of by the cell's name."""

    @abstractmethod
    def start(self, cell: Cell, place: Mapping[str, str]) -> None:
        """Start a cell.

        Args:
            cell: To run, or to go on with.
            place: What its environment has beside this process's.
        """

    @abstractmethod
    def ended(self, seconds: float) -> dict[str, int]:
        """Wait a moment; return the exit status of each cell that has ended since the last call, negative for a signal.

        Args:
            seconds: To wait at most.
        """

    @abstractmethod
    def close(self) -> None:
        """End what runs."""


def processes() -> Processes:
    """Return processes as this system can best have them: macOS breaks some of its libraries in a fork."""
    return Warm() if sys.platform == "linux" else Fresh()


class Fresh(Processes):
    """A fresh Python process for each cell."""

    def __init__(self) -> None:
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, cell: Cell, place: Mapping[str, str]) -> None:
        """Start a cell in a process that imports everything itself."""
        command = [*_command("experiments.compare.cell"), *_written(cell), str(os.getpid())]
        with (cell.path / LOG).open("ab") as log, tempfile.TemporaryFile() as plugins:
            plugins.write(pack(cell.plugins))
            plugins.seek(0)
            environment = {**_environment(cell), **place}
            self._running[cell.name] = subprocess.Popen(command, stdout=log, stderr=log, stdin=plugins, env=environment)

    def ended(self, seconds: float) -> dict[str, int]:
        """Sleep, then look."""
        time.sleep(seconds)
        statuses = {name: process.poll() for name, process in self._running.items()}
        done = {name: status for name, status in statuses.items() if status is not None}
        for name in done:
            del self._running[name]
        return done

    def close(self) -> None:
        """Terminate all, and kill whoever doesn't heed it."""
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            _wait(process)


class Warm(Processes):
    """Forks of a process that has imported everything (:mod:`experiments.compare.warm`).

    There is one for each number of threads: libraries read ``OMP_NUM_THREADS`` when they are loaded.
    """

    def __init__(self) -> None:
        self._servers: dict[int, _Server] = {}

    def start(self, cell: Cell, place: Mapping[str, str]) -> None:
        """Start a cell, and before the first one the process that it is forked from."""
        job = {
            "name": cell.name,
            "arguments": _written(cell),
            "log": str(cell.path / LOG),
            "environment": dict(place),
            "plugins": pack(cell.plugins).decode(),
        }
        threads = cell.config.run.threads
        if threads not in self._servers:
            self._servers[threads] = _Server(_environment(cell), cell.path / LOG)
        self._servers[threads].start(job)

    def ended(self, seconds: float) -> dict[str, int]:
        """Wait for the first answer of any; a server that has ended itself takes its cells with it."""
        waiting = {server.answers: server for server in self._servers.values()}
        ready, _, _ = select.select(list(waiting), [], [], seconds)
        done: dict[str, int] = {}
        for answers in ready:
            done |= waiting[answers].ended()
        self._servers = {threads: server for threads, server in self._servers.items() if not server.gone}
        return done

    def close(self) -> None:
        """End the servers, which end their cells."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()


class _Server:
    """The study's side of a warm process.

    Attributes:
        answers: The descriptor of what it says.
        gone: Whether it has ended without having been told to.
    """

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self.answers, theirs = os.pipe()
        command = _command("experiments.compare.warm")
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=theirs, stderr=errors, env=environment
            )
        os.close(theirs)
        self._log = log
        self._running: dict[str, Path] = {}
        self._unread, self.gone = b"", False

    def start(self, job: Mapping[str, Any]) -> None:
        self._running[job["name"]] = Path(job["log"])
        jobs = self._process.stdin
        if jobs is not None:
            with suppress(BrokenPipeError):  # ended() will tell
                jobs.write(json.dumps(job).encode() + b"\n")
                jobs.flush()

    def ended(self) -> dict[str, int]:
        read = os.read(self.answers, 1 << 16)
        if not read:
            self.gone = True
            for log in self._running.values():
                if log != self._log:  # which ends with the reason
                    with log.open("a", encoding="utf-8") as file:
                        file.write(f"the process that cells are forked from has ended: {self._log} says why\n")
            return dict.fromkeys(self._running, self.close())
        *lines, self._unread = (self._unread + read).split(b"\n")
        done = dict(map(json.loads, lines))
        for name in done:
            del self._running[name]
        return done

    def close(self) -> int:
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        status = _wait(self._process)
        os.close(self.answers)
        return status


def _command(module: str) -> list[str]:
    return [sys.executable, "-P", "-m", "snnfl.launch", module]


def _environment(cell: Cell) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(cell.config.run.threads)}


def _written(cell: Cell) -> list[str]:
    """Write what a cell's process reads; return the files."""
    cell.path.mkdir(parents=True, exist_ok=True)
    write_bytes(cell.path / CONFIGURATION, to_yaml(cell.config).encode())
    write_bytes(cell.path / EXTRAS, cell.extras.to_json().encode())
    return [str(cell.path / name) for name in (CONFIGURATION, EXTRAS)]


def _wait(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
