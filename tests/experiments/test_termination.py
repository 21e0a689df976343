"""SIGTERM to a command, or to the SuperLink that it started, ends whatever came out of it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from fleet import SECONDS, wait
from flwr_local import BINARIES, flower_env, kill_processes, needs_proc, processes_with

from strategies.run_directory import METRICS_FILE

pytestmark = [pytest.mark.slow, needs_proc]

REPOSITORY = Path(__file__).parents[2]
OPTIONS = [
    "run.rounds=100000",
    "data.clients=2",
    "model.name=mlp",
    "training.epochs=1",
    "conversion.steps=4",
    "conversion.calibration_images=16",
    "evaluation.images=60",
    "run.directory=here",
]


@dataclass
class Command:
    """A run that has completed its first round.

    Attributes:
        process: Of the command.
        log: What it prints.
        home: Value of a variable that all its processes have.
    """

    process: subprocess.Popen[bytes]
    log: Path
    home: str

    def named(self, name: str) -> int:
        """Return the one process whose command line holds a name."""
        (found,) = (pid for pid in processes_with("FLWR_HOME", self.home) if name in command_line(pid))
        return found

    def ends(self) -> bool:
        """Wait until none of its processes is left."""
        wait(lambda: not processes_with("FLWR_HOME", self.home), "everything has ended")
        return self.process.wait(SECONDS) is not None


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:  # it has just ended
        return ""


Start = Callable[..., Command]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a run in a process of its own; returns when its first round is complete."""
    env: Mapping[str, str] = flower_env(tmp_path / "flwr-home") | {"PYTHONPATH": str(REPOSITORY)}
    (tmp_path / "config.yaml").write_text("{}")

    def started(*options: str) -> Command:
        command = [BINARIES / "snnfl", "run", "config.yaml", *OPTIONS, *options]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
        begun = Command(process, tmp_path / "log", env["FLWR_HOME"])

        def complete() -> bool:
            assert process.poll() is None, begun.log.read_text()
            return (tmp_path / "here" / "run" / METRICS_FILE).exists()

        wait(complete, "the first round is complete")
        return begun

    yield started
    kill_processes("FLWR_HOME", env["FLWR_HOME"])


@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_on_ray_ends_with_its_workers(start: Start, number: int) -> None:
    command = start("engine.name=ray")
    os.kill(command.process.pid, number)
    assert command.ends()
    assert command.process.returncode > 0, "it has ended by itself, in good order"
    assert "Traceback" not in command.log.read_text()


@pytest.mark.flwr
def test_a_terminated_deployment_stops_its_run_and_the_superlink_that_it_started(start: Start) -> None:
    command = start("engine.name=deployment", "engine.connection=local")
    assert command.named("flower-superlink")
    command.process.terminate()
    assert command.ends()
    assert command.process.returncode > 0
    assert "Traceback" not in command.log.read_text()


@pytest.mark.flwr
def test_a_terminated_superlink_ends_its_simulation_and_tells_who_follows_it(start: Start) -> None:
    command = start("engine.name=deployment", "engine.connection=local")
    os.kill(command.named("flower-superlink"), signal.SIGTERM)
    assert command.ends()
    assert command.process.returncode == 1
    last = command.log.read_text().splitlines()[-1]
    assert last.startswith("snnfl: the SuperLink on 127.0.0.1:")
    assert last.endswith(" has ended, and its runs with it")
