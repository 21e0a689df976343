"""Flower's processes, forked from one that has imported what all of them import: that takes longer than what they do.

Flower starts a SuperExec for each SuperLink and SuperNode, and for every message a process of a ServerApp or ClientApp,
or one for a simulation.
A forked one is a process as any other: of the same group and environment, with the same main function, in the same
folder. Our own packages are not imported before: a process takes them from the app that was sent.

A fleet starts it as :class:`Forks`: for each line of its standard input it starts a command in a session of its own.
:func:`write_superexec` is for whoever is no fork of it, which finds its SuperExec in the ``PATH``.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NAME = "flower-superexec"
LINKS = ("flower-superlink", "flower-supernode")
COMMANDS = (*LINKS, "snnfl")
"""What a fleet forks."""

INTERPRETER = "SNNFL_TESTS_INTERPRETER"
"""A variable that names the program by which what is forked starts Python: that of the fixture ``forked``."""

REPOSITORY = Path(__file__).parents[1]


def write_superexec(folder: Path) -> Path:
    """Write the command into a folder, which is to stand first in the ``PATH`` of SuperLink and SuperNodes."""
    folder.mkdir(exist_ok=True)
    path = folder / NAME
    path.write_text(f"#!{sys.executable}\nimport runpy\nrunpy.run_path({__file__!r})['become_superexec']()\n")
    path.chmod(0o755)
    return folder


class Forks:
    """The process that a fleet's are forked from; started when the first is."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[bytes] | None = None
        self._ended: dict[int, int] = {}
        self._unread = b""

    def start(self, command: Sequence[str], log: Path, folder: Path, environment: Mapping[str, str]) -> Forked:
        """Start one of :data:`COMMANDS`; folder and environment are those of the first."""
        if self._server is None:
            code = f"import runpy; runpy.run_path({__file__!r})['serve']()"
            pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
            arguments = [environment.get(INTERPRETER, sys.executable), "-c", code]
            self._server = subprocess.Popen(arguments, env=environment, cwd=folder, start_new_session=True, **pipes)
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps([str(log), *map(str, command)]).encode() + b"\n")
        started: list[int] = []
        while not started:
            started = self._heard()
        return Forked(started[0], self)

    def ended(self, pid: int) -> int | None:
        """Return the exit status of a process, if it has ended; negative for a signal."""
        assert self._server is not None
        while pid not in self._ended and select.select([self._server.stdout], [], [], 0)[0]:
            self._heard()
        return self._ended.get(pid)

    def close(self) -> None:
        """End the server, but not what it has started."""
        if self._server is not None:
            self._server.kill()
            self._server.communicate()

    def _heard(self) -> list[int]:
        """Read what the server says; return who has started, and keep how others have ended."""
        assert self._server is not None
        assert self._server.stdout is not None
        if not (read := os.read(self._server.stdout.fileno(), 1 << 16)):
            raise ChildProcessError("what a fleet is forked from has ended")
        *lines, self._unread = (self._unread + read).split(b"\n")
        told = [json.loads(line) for line in lines]
        self._ended.update(pair for pair in told if len(pair) == 2)
        return [pair[0] for pair in told if len(pair) == 1]


class Forked:
    """A process that was forked, as a ``Popen``."""

    def __init__(self, pid: int, forks: Forks) -> None:
        self.pid, self._forks = pid, forks

    def poll(self) -> int | None:
        """Return its exit status, if it has ended."""
        return self._forks.ended(self.pid)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; return its exit status."""
        deadline = time.monotonic() + (timeout or float("inf"))
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            time.sleep(0.02)
        return status


def serve() -> None:
    """Fork a process for each line, which answers with its id; answer with its id and status when it has ended."""
    warm_up()
    children: set[int] = set()
    answers, unread = os.dup(1), b""
    os.dup2(2, 1)
    while True:
        if select.select([0], [], [], 0.05)[0]:
            read = os.read(0, 1 << 16)
            if not read:
                return
            *lines, unread = (unread + read).split(b"\n")
            for line in lines:
                log, *command = json.loads(line)
                children.add(forked(lambda log=log, command=command: become(command, log, answers)))
        for pid in list(children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                children.discard(pid)
                os.write(answers, f"[{pid}, {os.waitstatus_to_exitcode(status)}]\n".encode())


def forked(what: Callable[[], object]) -> int:
    """Do something in a process of its own; return its id."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        what()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def become(command: list[str], log: str, answers: int) -> None:
    """Be a command, as a shell would start it in a session of its own."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number, descriptor in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
        os.dup2(descriptor, number)
    os.write(answers, f"[{os.getpid()}]\n".encode())
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    name = Path(command[0]).name
    if name in LINKS:
        its_superexec_is_forked()
    sys.argv, sys.path[0] = command, str(Path(sys.executable).parent)
    sys.executable = os.environ.get(INTERPRETER, sys.executable)
    mains()[name]()


def its_superexec_is_forked() -> None:
    """Let this process have a child now, while it has no threads, which becomes its SuperExec when it is to."""
    from flwr.superlink.cli import flower_superlink
    from flwr.supernode import start_client_internal

    reading, writing = os.pipe()

    def wait_for_it() -> None:
        os.close(writing)
        with os.fdopen(reading) as pipe:
            line = pipe.readline()
        if line:
            new_session, *sys.argv = json.loads(line)
            if new_session:
                os.setsid()
            become_superexec()

    child = Child(forked(wait_for_it))
    os.close(reading)

    def start(command: list[str], *, start_new_session: bool = False) -> Child:
        os.write(writing, json.dumps([start_new_session, *command]).encode() + b"\n")
        return child

    for module in (start_client_internal, sys.modules[flower_superlink.__module__]):
        module.subprocess = SimpleNamespace(Popen=start, TimeoutExpired=subprocess.TimeoutExpired)


class Child(Forked):
    """A child of this process."""

    def __init__(self, pid: int) -> None:
        self.pid, self.status = pid, None

    def poll(self) -> int | None:
        """Return its exit status, if it has ended."""
        if self.status is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if ended else None
        return self.status

    def terminate(self) -> None:
        """Ask it to end."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)


def become_superexec() -> None:
    """Be a SuperExec that forks the processes of apps."""
    from flwr.supercore.cli import flower_superexec
    from flwr.supercore.superexec.executor import subprocess_executor

    warm_up()
    children: set[int] = set()

    def start(command: list[str], **options: Any) -> object:
        if command[0] not in mains():
            return subprocess.Popen(command, **options)
        children.difference_update([pid for pid in children if os.waitpid(pid, os.WNOHANG)[0]])
        children.add(forked(lambda: be_an_app(command, silent=bool(options))))
        return None

    subprocess_executor.subprocess = SimpleNamespace(Popen=start, DEVNULL=subprocess.DEVNULL)
    sys.exit(flower_superexec())


def be_an_app(command: list[str], *, silent: bool) -> None:
    """Be a ServerApp, a ClientApp or a simulation."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
    if silent:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    sys.argv = list(command)
    sys.executable = os.environ.get(INTERPRETER, sys.executable)
    mains()[command[0]]()


def mains() -> dict[str, Callable[[], object]]:
    """Return the main function of each command."""
    from flwr.simulation.app import flwr_simulation
    from flwr.superlink.cli import flower_superlink, flwr_serverapp
    from flwr.supernode.cli import flower_supernode, flwr_clientapp

    def snnfl() -> None:
        from snnfl.commands import main

        main()

    own = {"flower-superlink": flower_superlink, "flower-supernode": flower_supernode, "snnfl": snnfl}
    apps = {"flwr-serverapp": flwr_serverapp, "flwr-clientapp": flwr_clientapp, "flwr-simulation": flwr_simulation}
    return {**own, **apps}


def warm_up() -> None:
    """Do once what each would do first, and keep what numba compiles of an app where the checkout keeps the same.

    That is: import libraries, find fonts, and list what Numba knows before it reads its first kernel from the disk.
    """
    import gc
    import io

    gc.disable()  # until all is imported
    import cryptography.hazmat.primitives.ciphers  # noqa: F401
    import omegaconf  # noqa: F401
    import PIL.Image  # noqa: F401
    import safetensors.torch  # noqa: F401
    import scipy  # noqa: F401
    import shamirs  # noqa: F401
    import torch.fx  # noqa: F401
    from matplotlib.figure import Figure
    from numba.core.caching import InTreeCacheLocator
    from numba.core.registry import cpu_target

    mains()
    if hasattr(InTreeCacheLocator, "of_an_app"):
        gc.enable()
        return
    figure = Figure(layout="constrained")
    figure.add_subplot().plot([0, 1], label="line")
    figure.axes[0].legend(fontsize="small")
    for kind in ("png", "svg"):
        figure.savefig(io.BytesIO(), format=kind)
    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()
    begin = InTreeCacheLocator.__init__

    def beside_the_checkout(self: Any, function: Any, file: str) -> None:
        begin(self, function, file)
        same = REPOSITORY.joinpath(*Path(file).parts[-3:])
        if same.exists():  # where its content is another one, numba compiles all the same
            self._cache_path = str(same.parent / "__pycache__")

    InTreeCacheLocator.__init__, InTreeCacheLocator.of_an_app = beside_the_checkout, True
    gc.freeze()  # as long as nobody writes to it, all share it
    gc.enable()
