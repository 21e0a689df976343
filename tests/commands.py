"""Commands in processes of their own, forked from one that has imported everything: that takes longer than a run."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from experiments import cli

SECONDS = 200
"""That anything may take: a busy machine needs ten times as long as an idle one."""

SERVER = """
import gc; gc.disable()  # until all is imported
import json, os, sys
import numpy, torch, flwr.simulation  # what takes long
from forking_flower import INTERPRETER, warm_up
from experiments import cli, flower_simulation, running
from experiments.audit import command
from experiments.compare import command
from experiments.engines import in_process, ray
from strategies import server_app
warm_up()
mains = {"snnfl": cli.main, "flower-simulation": flower_simulation.main}
answers = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    folder, *arguments = json.loads(line)
    if not (pid := os.fork()):
        os.setsid()
        os.chdir(folder)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = arguments
        sys.executable = os.environ.get(INTERPRETER, sys.executable)
        status = 1
        try:
            mains[arguments[0]]()
            status = 0
        except SystemExit as done:
            status = done.code if isinstance(done.code, int) else int(done.code is not None)
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(pid, file=answers, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers, flush=True)
"""


@dataclass
class Command:
    """A command that runs, in a session of its own; its output is in the files ``out`` and ``err`` of a folder."""

    folder: Path
    pid: int
    answers: Any

    @property
    def out(self) -> str:
        """What it has printed."""
        return _read(self.folder / "out")

    @property
    def err(self) -> str:
        """What it has printed to the standard error."""
        return _read(self.folder / "err")

    def interrupt(self) -> float:
        """Press Ctrl-C; return the seconds until the command has said something about it."""
        start = time.monotonic()
        os.kill(self.pid, signal.SIGINT)
        until(lambda: "interrupted" in self.err, f"it says that it is interrupted: {self.err}")
        return time.monotonic() - start

    def status(self) -> int:
        """Wait for its end; return its exit status, negative for a signal."""
        return int(self.answers.readline())


@dataclass
class Commands:
    """Starts one command after another."""

    process: subprocess.Popen[str]

    def start(self, folder: Path, *arguments: str) -> Command:
        """Start a command in a folder; wait for its :meth:`Command.status` before the next."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(folder), *arguments]) + "\n")
        self.process.stdin.flush()
        return Command(folder, int(self.process.stdout.readline()), self.process.stdout)

    def run(self, folder: Path, *arguments: str) -> tuple[int, str, str]:
        """Run a command to its end; return its exit status and both of its outputs."""
        command = self.start(folder, *arguments)
        return command.status(), command.out, command.err


@contextmanager
def commands(variables: Mapping[str, str] = os.environ) -> Iterator[Commands]:
    """Start the process that imports everything, with these environment variables."""
    environment = {**variables, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "200"}
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", SERVER], env=environment, **pipes)
    try:
        yield Commands(process)
    finally:
        process.kill()
        process.communicate()


def in_this_process(*arguments: str) -> int:
    """Run ``snnfl`` here; return its exit status."""
    handlers = logging.getLogger().handlers[:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["snnfl", *arguments])
        with pytest.raises(SystemExit) as done:
            cli.main()
    logging.getLogger().handlers[:] = handlers
    return int(done.value.code or 0)


def until(holds: Callable[[], bool], what: str) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"waited {SECONDS} s until {what}"
        time.sleep(0.01)


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
