"""Commands as somebody types them in a shell, forked from a process that has imported everything: that takes longer.

A folder for the ``PATH`` has a small program for each: it hands over its arguments, environment, current folder and
open files to a process of the same virtual environment, of which a fork does the rest, hands on the signals that it
gets, and ends as that ends, or takes it along. Our own packages and a user's are not imported before, and the real
script is what runs. So nothing but the imports of libraries is left out; some tests of each kind of command start it
alone, as a user does.

To what is forked the folder's ``python`` is the interpreter (``sys.executable``), so what it starts is forked, too: the
warm process of a study, Flower's command line, and the workers of Ray.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

COMMANDS = (
    "snnfl", "flower-simulation", "flwr", "flower-superlink", "flower-supernode", "flower-superexec", "flwr-serverapp",
    "flwr-clientapp", "flwr-simulation", "python",
)  # fmt: skip
"""Scripts, and the interpreter."""

PROGRAM = """\
#!{python} -IS
import json, os, signal, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    said = json.dumps([os.getpid(), sys.argv, os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(said).to_bytes(4)], [0, 1, 2])
    server.sendall(said)
    pid = int(server.recv(8, socket.MSG_WAITALL))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: os.kill(pid, number))
    status = int(server.recv(8, socket.MSG_WAITALL))
if status < 0:
    signal.signal(-status, signal.SIG_DFL) if status != -9 else None
    os.kill(os.getpid(), -status)
os._exit(status)
"""


@contextmanager
def typed(folder: Path, binaries: Path, environment: Mapping[str, str] = os.environ) -> Iterator[Path]:
    """Make a folder of these commands.

    Args:
        folder: Where.
        binaries: Of the virtual environment.
        environment: Of the process that they are forked from, for libraries that look into it when they are imported.

    Yields:
        The folder.
    """
    python, address = binaries / "python", str(folder / "socket")
    folder.mkdir(parents=True)
    for name in COMMANDS:
        (folder / name).write_text(PROGRAM.format(python=python, address=address))
        (folder / name).chmod(0o755)
    alone = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
    alone |= {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}  # which libraries read when they are imported
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        places = f"{str(folder)!r}, {str(binaries)!r}"
        code = f"import runpy; runpy.run_path({__file__!r})['main']({listening.fileno()}, {places})"
        pipe: Any = {"stdin": subprocess.DEVNULL, "pass_fds": [listening.fileno()], "start_new_session": True}
        server = subprocess.Popen([python, "-c", code], env=alone, **pipe)
        try:
            subprocess.run([folder / "python", "-c", ""], check=True)  # Ray gives its own half a minute to start
            yield folder
        finally:
            server.kill()
            server.wait()


def main(listening: int, folder: str, binaries: str) -> None:
    """Fork a process for each command; in this one it is run."""
    gc.disable()  # until all is imported
    import matplotlib.pyplot
    import numpy as np
    import torch

    sys.path.insert(1, str(Path(__file__).parent))
    from forking_flower import warm_up

    del sys.path[1]
    warm_up()
    np.random.seed()
    assert matplotlib.pyplot
    assert "ray" not in sys.modules, (
        "it reads its environment when it is imported, and each of its processes has another"
    )
    gc.freeze()  # as long as nobody writes to it, all share it
    pid, arguments, place, environment, files = accepted(socket.socket(fileno=listening))
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.setpgid(0, 0)
    os.chdir(place)
    os.environ.clear()
    os.environ.update(environment)
    for module in ("constant", "local_superlink"):  # which have read it when they were imported
        port = environment.get("FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", "39091")
        vars(sys.modules[f"flwr.cli.{module}"])["LOCAL_SUPERLINK_HTTP_API_PORT"] = port
    this, parent = os.getpid(), os.getppid
    os.getppid = lambda: parent_of(pid) if os.getpid() == this else parent()
    np.random.seed()  # a fresh process's draws are of its own
    torch.default_generator.seed()
    sys.executable = str(Path(folder, "python"))
    name = Path(arguments[0]).name
    end_with(lambda: interpret(arguments[1:]) if name == "python" else run([str(Path(binaries, name)), *arguments[1:]]))


def end_with(what: Callable[[], object]) -> None:
    """Do something and end as an interpreter does, which would also take all modules apart: that takes longer."""
    status: object = 0
    try:
        what()
    except SystemExit as end:
        status = end.code or 0
    except BaseException as error:
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
        sys.excepthook(*sys.exc_info())
    if not isinstance(status, int):
        status = print(status, file=sys.stderr) or 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    if status < 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status & 0xFF)


def parent_of(pid: int) -> int:
    """Return the parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def interpret(arguments: list[str]) -> None:
    """Do what an interpreter does with its arguments, of which these are understood."""
    safe = False
    while arguments[0] in ("-u", "-P", "-W"):
        option = arguments.pop(0)
        if option == "-u":
            for stream in (sys.stdout, sys.stderr):
                stream.reconfigure(write_through=True)  # type: ignore[attr-defined]
        if option == "-W":
            warnings._processoptions([arguments.pop(0)])  # type: ignore[attr-defined]
        safe |= option == "-P"
    if arguments[0] not in ("-c", "-m"):
        run(arguments)
    elif arguments[0] == "-m":
        sys.path[:1] = [*([] if safe else [os.getcwd()]), *searched()]
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[:1] = ["", *searched()]
        sys.argv = ["-c", *arguments[2:]]
        sys.modules["__main__"] = session = ModuleType("__main__")
        exec(compile(arguments[1], "<string>", "exec"), vars(session))


def run(arguments: list[str]) -> None:
    """Run a script."""
    sys.path[:1] = [str(Path(arguments[0]).parent.absolute()), *searched()]
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")


def searched() -> list[str]:
    """Return what the environment says where to look for modules."""
    return [os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]


def accepted(listening: socket.socket) -> tuple[int, list[str], str, dict[str, str], list[int]]:
    """Return what a command has handed over, in the process that is to be it; the others never return."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    parent = os.getppid()
    listening.settimeout(2.0)
    while True:
        try:
            connection, _ = listening.accept()
        except TimeoutError:
            if os.getppid() != parent:  # a killed pytest leaves nobody who keeps the pipe that it printed to
                os._exit(1)
            continue
        if os.fork():
            connection.close()
            continue
        reading, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        length, files, _, _ = socket.recv_fds(connection, 4, 3)
        with connection.makefile("rb") as stream:
            said = stream.read(int.from_bytes(length))
        if not (pid := os.fork()):
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return *json.loads(said), files
        for file in files:
            os.close(file)
        with suppress(BrokenPipeError):
            connection.sendall(b"%8d" % pid)
        if reading not in select.select([connection, reading], [], [])[0]:
            os.kill(pid, signal.SIGKILL)  # who has typed it has been killed
        _, status = os.waitpid(pid, 0)
        with suppress(BrokenPipeError):
            connection.sendall(b"%8d" % os.waitstatus_to_exitcode(status))
        os._exit(0)
