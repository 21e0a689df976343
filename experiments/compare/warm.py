"""``experiments.compare.warm``: a process that has imported what cells need, and forks a process for each of them.

Importing takes a cell of a few seconds longer than running. So this happens once per study. A cell has a process of its
own all the same, which begins where a fresh one is after its imports: nothing of one cell can reach the next, and one
that crashes or is killed ends alone. Nothing has been computed before the fork, so that there are no threads and no
drawn random numbers in what is forked.

It reads a job per line from the standard input and answers, as a line of JSON on the standard output, with the name of
each cell that has ended and its status, negative for a signal. When the standard input ends, for which the end of the
study is enough, it ends its cells and itself.

This is no ``multiprocessing`` with its ``forkserver``: that one runs the user's own script again in each process, where
``snnfl.compare`` is called from one without ``if __name__ == "__main__"``, and cannot import what a wheel hides
(:mod:`snnfl.launch`).
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from snnfl.launch import importing

with importing():
    import matplotlib.backends.backend_agg
    import matplotlib.backends.backend_svg
    import matplotlib.figure  # noqa: F401
    import numpy as np
    import torch
    import torch.utils.data
    from numba.core.registry import cpu_target

    from experiments.compare import cell

PATIENCE_SECONDS = 10.0
"""How long a cell may take to end when it is told to."""


class _Server:
    """The process that forks.

    Attributes:
        running: Name of each cell by its process.
    """

    def __init__(self) -> None:
        self.running: dict[int, str] = {}
        self._answers = os.dup(1)
        os.dup2(2, 1)  # whatever else is printed is no answer
        self._ended, wake = os.pipe()
        os.set_blocking(self._ended, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the study ends its cells
        self._inherited = [self._answers, self._ended, wake]

    def serve(self) -> Mapping[str, Any] | None:
        """Return a job in the process that is to do it, and ``None`` in this one after the last."""
        server, unread = os.getpid(), b""
        while True:
            ready, _, _ = select.select([0, self._ended], [], [])
            if self._ended in ready:
                os.read(self._ended, 4096)
                self._tell()
            if 0 in ready:
                read = os.read(0, 1 << 16)
                if not read:
                    self._end()
                    return None
                *lines, unread = (unread + read).split(b"\n")
                for job in map(json.loads, lines):
                    if pid := os.fork():
                        self.running[pid] = job["name"]
                    else:
                        self._become(job, server)
                        return job  # type: ignore[no-any-return]

    def _tell(self) -> None:
        for pid in list(self.running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                answer = [self.running.pop(pid), os.waitstatus_to_exitcode(status)]
                os.write(self._answers, json.dumps(answer).encode() + b"\n")

    def _end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + PATIENCE_SECONDS
            for pid in self.running:
                os.kill(pid, number)
            while self.running and time.monotonic() < deadline:
                select.select([self._ended], [], [], 0.1)
                self._tell()

    def _become(self, job: Mapping[str, Any], server: int) -> None:
        """Give a forked process what a fresh one would have: files, signals, environment, arguments, random draws."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for descriptor in self._inherited:
            os.close(descriptor)
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        with tempfile.TemporaryFile() as plugins:
            plugins.write(job["plugins"].encode())
            plugins.seek(0)
            for old, new in ((plugins.fileno(), 0), (log, 1), (log, 2)):
                os.dup2(old, new)
        os.close(log)
        os.environ.update(job["environment"])
        sys.argv = [str(cell.__file__), *job["arguments"], str(server)]
        np.random.seed()  # a fresh process's draws are of its own; Python's module random sees to that itself
        torch.default_generator.seed()


def main() -> None:
    """Fork a process for each job, and run its cell in there."""
    server = _Server()
    cpu_target.typing_context.refresh()  # what Numba imports before it reads its first kernel from the disk
    cpu_target.target_context.refresh()
    gc.freeze()  # objects of now are shared by all cells as long as nobody writes to them
    if server.serve() is not None:
        cell.main()
        gc.freeze()  # the interpreter would look through all of them before it ends


if __name__ == "__main__":
    main()
