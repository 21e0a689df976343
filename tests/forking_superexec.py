"""A SuperExec that has imported PyTorch once: it forks the processes of ServerApp and ClientApps, which wait for that.

Flower starts one for every message, and each imports for longer than it trains. A forked one is a process as any other:
of the same group and environment, with the same main function, in the same folder. Our own packages are not imported
before: a process takes them from the app that was sent.
"""

from __future__ import annotations

import sys
from pathlib import Path

NAME = "flower-superexec"

SCRIPT = """\
#!{python}
import os, signal, subprocess, sys, traceback
from types import SimpleNamespace

import numba, omegaconf, safetensors.torch, torch, torch.fx  # what takes long
from flwr.supercore.cli import flower_superexec
from flwr.supercore.superexec.executor import subprocess_executor
from flwr.superlink.cli import flwr_serverapp
from flwr.supernode.cli import flwr_clientapp

MAINS = {{"flwr-serverapp": flwr_serverapp, "flwr-clientapp": flwr_clientapp}}
children = set()


def start(command, **options):
    if command[0] not in MAINS:
        return subprocess.Popen(command, **options)
    children.difference_update([pid for pid in children if os.waitpid(pid, os.WNOHANG)[0]])
    if pid := os.fork():
        children.add(pid)
        return None
    status = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
        if options:  # stdout and stderr are not wanted
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1), os.dup2(null, 2)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        sys.argv = list(command)
        MAINS[command[0]]()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


subprocess_executor.subprocess = SimpleNamespace(Popen=start, DEVNULL=subprocess.DEVNULL)
sys.exit(flower_superexec())
"""


def write_superexec(folder: Path) -> Path:
    """Write the command into a folder, which is to stand first in the ``PATH`` of SuperLink and SuperNodes."""
    folder.mkdir(exist_ok=True)
    path = folder / NAME
    path.write_text(SCRIPT.format(python=sys.executable))
    path.chmod(0o755)
    return folder
