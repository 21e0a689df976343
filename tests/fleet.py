"""A deployment of real processes on this machine: one SuperLink, its SuperNodes and the commands of an operator."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from flwr_local import BINARIES, free_port, kill_processes
from forking_flower import COMMANDS, Forked, Forks, write_superexec
from typer.testing import CliRunner

from experiments.cli import app
from experiments.deploy import DeployError
from experiments.deploy.folder import Deployment
from experiments.deploy.init import init_deployment
from strategies.run_directory import read_metrics

SECONDS = 400
"""That anything may take: a busy machine needs ten times as long as an idle one."""

REPOSITORY = Path(__file__).parents[1]

FORKED = pytest.mark.usefixtures("forked")
"""What a fleet's processes are forked from is forked itself."""

LIMITS = re.compile(r".*(?:database is locked|No heartbeat received|HTTP status 500|500 Internal).*")
"""What Flower's logs say where it met limits of its own."""

RECEIVED = re.compile(r"\[RUN (\d+)\]\n.*Receiving: ")
IGNORED = re.compile(r"Run ID (\d+) is not .*Ignoring reply message")


def late(log: str) -> list[str]:
    """Return the replies that took another's turn, of which a SuperNode sends one for each message that it receives.

    A node that was cut off while it trained, and whose run has ended meanwhile, sends that reply when it gets the next
    run's first message, and keeps the reply to this one until there is another message: for ever, if all wait for it.
    """
    return [
        ignored[0]
        for ignored in IGNORED.finditer(log)
        if {*RECEIVED.findall(log[: ignored.start()])[-1:]} - {ignored[1]}
    ]


def missing_for_a_cut() -> str | None:
    """Say why this machine cannot put a node behind a link of its own; ``None`` if it can."""
    if shutil.which("ip") is None:
        return "there is no `ip` (Debian: iproute2)"
    tried = subprocess.run(["ip", "netns", "add", f"snnfl-{os.getpid()}"], capture_output=True, text=True)
    if tried.returncode != 0:
        return f"`ip netns add` fails: {tried.stderr.strip()} (needs root)"
    subprocess.run(["ip", "netns", "delete", f"snnfl-{os.getpid()}"], check=True)
    return None


@dataclass
class Fleet:
    """The processes of a deployment.

    Attributes:
        folder: Holds all that they write, but for the database.
        deployment: Certificates, keys and nodes.
        database: Of the SuperLink.
        processes: By name; each leads a process group of its own.
        complaints: Of logs that newer ones have replaced.
        environment: Of a user's processes; ``None`` for those of this checkout, most of which are forked.
        forks: What they are forked from.
    """

    folder: Path
    deployment: Deployment
    database: Path
    processes: dict[str, subprocess.Popen[bytes] | Forked] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    environment: Mapping[str, str] | None = None
    forks: Forks = field(default_factory=Forks)

    @property
    def env(self) -> dict[str, str]:
        """Offline, one thread each; all share one folder of installed apps, whose compiled code is made once."""
        if self.environment is not None:
            return {**self.environment, "FLWR_HOME": str(self.folder / "flwr-home")}
        return {
            **os.environ,
            "FLWR_HOME": str(self.folder / "flwr-home"),
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(REPOSITORY),
            "PATH": os.pathsep.join(map(str, (write_superexec(self.folder / "bin"), BINARIES, os.environ["PATH"]))),
        }

    def start_superlink(self, *, in_memory: bool = False) -> None:
        """Start the SuperLink; return when it answers. In memory, its database ends with it."""
        made = self.deployment.path / "certificates"
        files = [f"--ssl-ca-certfile={made}/ca.crt", f"--ssl-certfile={made}/server.crt"]
        host = "127.0.0.1" if self.deployment.guarded else "0.0.0.0"
        command = ["flower-superlink", f"--host={host}", f"--port={self.deployment.control_port}", *files]
        command += [f"--ssl-keyfile={made}/server.key", "--enable-supernode-auth"]
        self.start("superlink", command if in_memory else [*command, f"--database={self.database}"])
        wait(lambda: "Uvicorn running" in self.log("superlink"), "the SuperLink answers")

    def start_guard(self, nginx: str) -> None:
        """Start an nginx with the configuration that ``snnfl deploy init`` wrote; return when it listens."""
        self.start("guard", [nginx, "-p", f"{self.deployment.path}/", "-c", "guard.conf"])
        wait(lambda: listens(self.deployment.port), "the guard listens")

    def start_node(self, index: int, host: str = "127.0.0.1", **options: str) -> None:
        """Start a SuperNode; return when it is connected.

        Args:
            index: Its partition.
            host: By which it reaches the SuperLink.
            options: ``netns``, the network namespace that it lives in, and ``path``, where its programs are looked for
                first; else more of its configuration.
        """
        prefix = ["ip", "netns", "exec", options.pop("netns")] if "netns" in options else []
        if "path" in options:
            prefix += ["env", f"PATH={options.pop('path')}{os.pathsep}{self.env['PATH']}"]
        name = f"node-{index}"
        command = [*prefix, *self.node_command(index, host, **options)]

        def connected() -> bool:
            """Start it again whenever it has ended, as Docker does: a killed node is let in when it is missed."""
            if name not in self.processes or self.processes[name].poll() is not None:
                self.start(name, command)
            return "SuperNode ID" in self.log(name)

        wait(connected, f"{name} is connected")

    def node_command(self, index: int, host: str = "127.0.0.1", **options: str) -> list[str]:
        """Return the command of a SuperNode with a state directory of its own."""
        made, nodes = self.deployment.path, len(self.deployment.nodes)
        config = f"partition-id={index} num-partitions={nodes} state-directory='{self.state(index)}'"
        config += "".join(f" {key.replace('_', '-')}={value}" for key, value in options.items())
        return [
            "flower-supernode",
            f"--superlink={host}:{self.deployment.port}",
            f"--root-certificates={made}/certificates/ca.crt",
            f"--auth-supernode-private-key={made}/keys/node-{index}",
            f"--port={free_port()}",
            f"--node-config={config}",
        ]

    def state(self, index: int) -> Path:
        """Return a node's state directory."""
        return self.folder / f"state-{index}"

    def start(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes] | Forked:
        """Start a process whose output becomes a log."""
        path = self.folder / f"{name}.log"
        self.complaints += LIMITS.findall(self.log(name)) if path.exists() else []
        if self.environment is None and Path(command[0]).name in COMMANDS:
            self.processes[name] = self.forks.start(command, path, self.folder, self.env)
            return self.processes[name]
        with path.open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command, env=self.env, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        return self.processes[name]

    def lives(self) -> bool:
        """Tell whether neither SuperLink nor a SuperNode has ended, and the SuperLink sees each node."""
        kept = [process for name, process in self.processes.items() if name.startswith(("superlink", "node-"))]
        return all(process.poll() is None for process in kept) and self.snnfl("check")[1] is None

    def stuck(self) -> list[str]:
        """Return what Flower's logs say of its own limits, which a busy machine exceeds: no verdict on the app."""
        logs = [self.log(name) for name in self.processes]
        return [*self.complaints, *(line for log in logs for line in (*LIMITS.findall(log), *late(log)))]

    def signal(self, name: str, number: int) -> None:
        """Send a signal to a process and its children."""
        os.killpg(self.processes[name].pid, number)

    def kill(self, name: str) -> None:
        """Kill a process and its children at once, as a power cut would."""
        process = self.processes.pop(name)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def log(self, name: str) -> str:
        """Return what a process has printed since its start, without colours."""
        return re.sub(r"\x1b\[\d+m", "", (self.folder / f"{name}.log").read_text(errors="replace"))

    def snnfl(self, command: str) -> tuple[list[str], str | None]:
        """Run ``snnfl deploy check`` or ``register`` in this process; return its lines and its error, if it has one."""
        done = CliRunner().invoke(app, ["deploy", command, str(self.deployment.path)])
        assert done.exception is None or isinstance(done.exception, DeployError), done.exception
        return done.stdout.splitlines(), None if done.exception is None else str(done.exception)

    def submit(self, *arguments: str) -> subprocess.Popen[bytes] | Forked:
        """Start ``snnfl deploy run`` with an empty configuration file and these options; its log is ``run``."""
        command = [str(BINARIES / "snnfl"), "deploy", "run", str(self.deployment.path), "config.yaml", *arguments]
        return self.start("run", command)

    def rows(self, run: str) -> list[dict[str, Any]]:
        """Return the rows of a run so far; the SuperLink's working directory is :attr:`folder`."""
        path = self.folder / "runs" / run
        return read_metrics(path) if (path / "metrics.jsonl").exists() else []


def listens(port: int) -> bool:
    """Tell whether somebody listens on a port of this machine."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def free_pair() -> int:
    """Return a free port behind which another one is free, too."""
    while listens((port := free_port()) + 1):
        pass
    return port


def wait(holds: Callable[[], bool], what: str, seconds: float = SECONDS, *, pause: float = 0.2) -> None:
    """Wait until something holds, which is looked at again after each pause.

    Raises:
        TimeoutError: If it doesn't within ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s until {what}")
        time.sleep(pause)


@contextmanager
def fleet_of(
    folder: Path,
    nodes: int,
    host: str = "127.0.0.1",
    *,
    in_memory: bool = False,
    environment: Mapping[str, str] | None = None,
    guarded: bool = False,
) -> Iterator[Fleet]:
    """Make a deployment and start its SuperLink; at the end kill whatever came out of it.

    Args:
        folder: For all files.
        nodes: How many keys there are.
        host: Of the certificate; the operator, on the SuperLink's machine, uses its loopback all the same.
        in_memory: Whether the SuperLink keeps its database there.
        environment: As for :class:`Fleet`.
        guarded: Whether the SuperLink listens for a guard and its operator alone; else whoever reaches it is let in.
    """
    made = init_deployment(folder / "deployment", f"{host}:{free_pair()}", nodes)
    # On a disk that others keep busy SQLite waits for writes, and tells those who wait for it that it is locked.
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as place:
        control = made.control_port if guarded else made.port
        here = replace(made, host="127.0.0.1", control_host="127.0.0.1", control_port=control)
        fleet = Fleet(folder, here, Path(place, "superlink.db"), environment=environment)
        fleet.deployment.write()
        (folder / "config.yaml").write_text("{}")
        try:
            fleet.start_superlink(in_memory=in_memory)
            yield fleet
        finally:
            for name in list(fleet.processes):
                fleet.kill(name)
            fleet.forks.close()
            kill_processes("FLWR_HOME", fleet.env["FLWR_HOME"])


@contextmanager
def cable(name: str) -> Iterator[tuple[str, Callable[[bool], None]]]:
    """Make a network namespace at the end of a cable of its own.

    Args:
        name: Of the namespace, at most 11 characters.

    Yields:
        The address by which it reaches this machine, and a switch: ``False`` cuts the cable, ``True`` mends it.
    """
    ours, theirs = f"{name}-out", f"{name}-in"
    network = f"10.{os.getpid() % 250 + 1}.{os.getpid() // 250 % 250 + 1}"

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    ip("netns", "add", name)
    try:
        ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name)
        ip("address", "add", f"{network}.1/24", "dev", ours)
        ip("link", "set", ours, "up")
        for arguments in (["address", "add", f"{network}.2/24", "dev", theirs], ["link", "set", theirs, "up"]):
            ip("-netns", name, *arguments)
        ip("-netns", name, "link", "set", "lo", "up")
        yield f"{network}.1", lambda mended: ip("link", "set", ours, "up" if mended else "down")
    finally:
        ip("netns", "delete", name)  # and with it both ends of the cable
