"""Commands as somebody types them in a shell, forked from a process that has imported everything: that takes longer.

A folder for the ``PATH`` has a small program for each: it hands over its arguments, environment, current folder and
open files to a process of the same virtual environment, of which a fork does the rest, and ends with its status. Our
own packages and a user's are not imported before, and the real script is what runs. So nothing but the imports of
libraries is left out; some tests of each kind of command start it alone, as a user does.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COMMANDS = ("snnfl", "flower-simulation", "python")
"""Two scripts, and the interpreter, of which a script is the first argument."""

PROGRAM = """\
#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    said = json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(said).to_bytes(4)], [0, 1, 2])
    server.sendall(said)
    status = int(server.recv(8))
sys.exit(status if status >= 0 else 128 - status)
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
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        code = f"import runpy; runpy.run_path({__file__!r})['main']({listening.fileno()}, {str(binaries)!r})"
        pipe: Any = {"stdin": subprocess.DEVNULL, "pass_fds": [listening.fileno()], "start_new_session": True}
        server = subprocess.Popen([python, "-c", code], env=alone, **pipe)
        try:
            yield folder
        finally:
            server.kill()
            server.wait()


def main(listening: int, binaries: str) -> None:
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
    gc.freeze()  # as long as nobody writes to it, all share it
    arguments, folder, environment, files = accepted(socket.socket(fileno=listening))
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    np.random.seed()  # a fresh process's draws are of its own
    torch.default_generator.seed()
    name = Path(arguments[0]).name
    sys.argv = arguments[1:] if name == "python" else [str(Path(binaries, name)), *arguments[1:]]
    searched = [str(Path(sys.argv[0]).parent), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.path[:1] = map(os.path.abspath, searched)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        gc.freeze()  # the interpreter would look through all of it before it ends


def accepted(listening: socket.socket) -> tuple[list[str], str, dict[str, str], list[int]]:
    """Return what a command has handed over, in the process that is to be it; the others never return."""
    while True:
        connection, _ = listening.accept()
        length, files, _, _ = socket.recv_fds(connection, 4, 3)
        with connection.makefile("rb") as stream:
            said = stream.read(int.from_bytes(length))
        if not (pid := os.fork()):
            return *json.loads(said), files
        for file in files:
            os.close(file)
        _, status = os.waitpid(pid, 0)
        connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
        connection.close()
