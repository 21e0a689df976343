"""``snnfl run`` killed by SIGKILL at random points, five times in a row, and resumed: nothing is lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from strategies.run_directory import ANN_FILE, CONFIG_FILE, METRICS_FILE, SNN_FILE, read_metrics

# A process that runs its first command itself and forks one for each other: importing takes longer than a run.
FORKS = """
import json, os, sys
from experiments import cli
answers = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
def snnfl(line):
    sys.argv = ["snnfl", *json.loads(line)]
    try:
        cli.main()
    except SystemExit as done:
        return done.code or 0
    return 1
print(snnfl(sys.stdin.readline()), file=answers, flush=True)
for line in sys.stdin:
    if not (pid := os.fork()):
        os._exit(snnfl(line))
    print(pid, file=answers, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers, flush=True)
"""

ROUNDS = 10
OPTIONS = [
    f"run.rounds={ROUNDS}",
    "data.clients=3",
    "data.partition=dirichlet",
    "model.name=mlp",
    "training.epochs=1",
    "conversion.steps=4",
    "conversion.calibration_images=16",
    "evaluation.images=50",
    "strategy.fraction_train=0.7",
    "strategy.name=fedadam",
]


class Commands:
    """Runs ``snnfl`` in processes of their own, but for the first time."""

    def __init__(self, folder: Path) -> None:
        (folder / "empty.yaml").write_text("{}\n")
        self.config = folder / "empty.yaml"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", FORKS], env=environment, **pipes)

    def send(self, *arguments: str) -> None:
        """Start a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(["run", str(self.config), *OPTIONS, *arguments]) + "\n")
        self.process.stdin.flush()

    def answer(self) -> int:
        """Return the id of the started process, and then its exit status, negative for a signal."""
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


@pytest.fixture
def snnfl(tmp_path: Path) -> Iterator[Commands]:
    commands = Commands(tmp_path)
    yield commands
    commands.process.kill()
    commands.process.communicate()


def rows(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith("seconds_")} for row in read_metrics(run)]


def finished_rounds(run: Path) -> int:
    path = run / METRICS_FILE
    return path.read_bytes().count(b"\n") if path.exists() else 0


NATIVE = ("strategy.spiking=false", "model.neuron=lif", "model.time_steps=4", "model.encoding=poisson")
"""Clients that train spiking networks, whose encoding draws."""


@pytest.mark.slow
@pytest.mark.parametrize(("clients", "final"), [((), (ANN_FILE, SNN_FILE)), (NATIVE, (SNN_FILE,))], ids=["S", "LIF"])
def test_a_run_that_is_killed_five_times_ends_as_if_nothing_had_been(
    snnfl: Commands, tmp_path: Path, clients: tuple[str, ...], final: tuple[str, ...]
) -> None:
    snnfl.send(f"run.directory={tmp_path}", "run.name=whole", *clients)
    assert snnfl.answer() == 0
    seconds = max(row["seconds_round"] for row in read_metrics(tmp_path / "whole")[1:])
    run, draw = tmp_path / "killed", random.Random(0)
    for finished in (0, 1, 2, 4, 6):  # spread over its life: each is killed within two rounds after so many
        begun = (run / CONFIG_FILE).exists()  # what was never run is not resumed
        snnfl.send(f"run.directory={tmp_path}", "run.name=killed", *clients, *(["--resume"] if begun else []))
        process = snnfl.answer()
        while finished_rounds(run) < finished:
            time.sleep(0.001)
        moment = time.monotonic() + draw.uniform(0, 1.5 * seconds)
        while time.monotonic() < moment and finished_rounds(run) < ROUNDS - 2:
            time.sleep(0.001)
        os.kill(process, signal.SIGKILL)
        assert snnfl.answer() == -signal.SIGKILL
        assert finished_rounds(run) < ROUNDS
    snnfl.send(f"run.directory={tmp_path}", "run.name=killed", *clients, "--resume")
    assert snnfl.answer() > 0
    assert snnfl.answer() == 0
    assert rows(run) == rows(tmp_path / "whole")
    for name in final:
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
