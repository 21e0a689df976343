"""Ctrl-C: within two seconds the command says what is kept and how to go on, and ends with status 130."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Commands, commands, in_this_process, until

from strategies.run_directory import CHECKPOINTS, read_metrics

ROOT = Path(__file__).parents[2]
PROMPTLY = 2.0
OPTIONS = [
    "data.clients=3",
    "model.name=mlp",
    "training.epochs=1",
    "conversion.steps=4",
    "conversion.calibration_images=16",
    "evaluation.images=50",
]
FOREVER = "run.rounds=100000"


@pytest.fixture(scope="module")
def snnfl(forked: Path) -> Iterator[Commands]:
    """Commands whose processes are forked, too."""
    with commands() as started:
        yield started


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "empty.yaml").write_text("{}\n")
    return str(tmp_path / "empty.yaml")


@pytest.mark.slow
def test_a_run_says_what_is_kept_and_goes_on_as_it_says(
    snnfl: Commands, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = snnfl.start(tmp_path, "snnfl", "run", config, *OPTIONS, FOREVER)
    until(lambda: list((tmp_path / "runs/run" / CHECKPOINTS).glob("round-*")) != [], "the first round is over")
    second = ["run", config, *OPTIONS, "--resume", f"run.directory={tmp_path}/runs"]
    assert in_this_process(*second) == 2, "another process has the folder"
    assert f"{tmp_path}/runs/run: another process of snnfl writes there" in capsys.readouterr().err
    assert command.interrupt() < PROMPTLY
    assert command.status() == 130
    (line,) = command.err.splitlines()
    complete = int(line.split("interrupted; ")[1].split()[0])
    kept = f"{complete} of 100000 rounds in {tmp_path}/runs/run are complete"
    assert line == f"snnfl: interrupted; {kept}; the same command with --resume goes on after them"
    assert complete in [int(path.stem.partition("-")[2]) for path in (tmp_path / "runs/run" / CHECKPOINTS).iterdir()]
    last = ["snnfl", "run", config, *OPTIONS, f"run.rounds={complete + 1}", "--resume"]
    assert snnfl.run(tmp_path, *last)[0] == 0


@pytest.mark.slow
def test_a_run_without_a_complete_round_and_one_without_checkpoints(
    snnfl: Commands, config: str, tmp_path: Path
) -> None:
    command = snnfl.start(tmp_path, "snnfl", "run", config, *OPTIONS, "training.epochs=100000")
    until((tmp_path / "runs" / "run" / "config.yaml").exists, "the run has begun")
    assert command.interrupt() < PROMPTLY
    assert command.status() == 130
    (line,) = command.err.splitlines()
    assert line.endswith("/runs/run is complete; the same command with --resume goes on from the start")
    without = ["run.keep_checkpoints=0", "run.name=none"]
    command = snnfl.start(tmp_path, "snnfl", "run", config, *OPTIONS, FOREVER, *without)
    until(lambda: "round      1/100000" in command.out, "the first round is over")
    assert command.interrupt() < PROMPTLY
    assert command.status() == 130
    assert "/runs/none keeps the metrics, but with run.keep_checkpoints=0 nothing to go on from" in command.err


def read_lines(fifo: Path, lines: int) -> str:
    """Read so many lines of a command's output, and no more."""
    with fifo.open() as pipe:
        return "".join(pipe.readline() for _ in range(lines))


@pytest.mark.slow
def test_a_run_whose_output_is_closed_says_what_is_kept(snnfl: Commands, config: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out")
    command = snnfl.start(tmp_path, "snnfl", "run", config, *OPTIONS, FOREVER)
    assert read_lines(tmp_path / "out", 2).count("\n") == 2
    assert command.status() == 141
    kept = rf"(\d+) of 100000 rounds in {tmp_path}/runs/run are complete; the same command with --resume goes on"
    said = re.fullmatch(rf"snnfl: nobody reads the output any more; {kept} after them\n", command.err)
    assert said, command.err
    assert len(read_metrics(tmp_path / "runs/run")) - int(said[1]) in (0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["run", "empty.yaml", "--print-config"]])
def test_a_command_that_keeps_nothing_ends_without_a_word(
    snnfl: Commands, config: str, tmp_path: Path, arguments: list[str]
) -> None:
    os.mkfifo(tmp_path / "out")
    command = snnfl.start(tmp_path, "snnfl", *arguments)
    read_lines(tmp_path / "out", 0)
    assert (command.status(), command.err) == (141, "")


@pytest.mark.slow
def test_the_demo_begins_anew(snnfl: Commands, tmp_path: Path) -> None:
    command = snnfl.start(tmp_path, "snnfl", "demo", *OPTIONS, FOREVER)
    until(lambda: "round      1/100000" in command.out, "the first round is over")
    assert command.interrupt() < PROMPTLY
    assert command.status() == 130
    said = "snnfl: interrupted; runs/demo and runs/demo_fedavg keep the rounds so far; the same command begins anew"
    assert command.err.splitlines() == [said]
    assert snnfl.run(tmp_path, "snnfl", "demo", *OPTIONS, "run.rounds=1")[0] == 0


@pytest.mark.slow
def test_a_study_says_how_many_cells_are_finished(snnfl: Commands, tmp_path: Path) -> None:
    options = dict(option.split("=") for option in OPTIONS)
    study = {"name": "study", "options": options, "matrix": {"run.rounds": [1, 100000]}}
    (tmp_path / "study.yaml").write_text(json.dumps(study))
    command = snnfl.start(tmp_path, "snnfl", "compare", "study.yaml", "--jobs", "2")
    runs = tmp_path / "runs" / "study"
    until(lambda: len(list(runs.glob("*/accuracy.svg"))) == 1, "one cell is finished")
    until(lambda: len(list(runs.glob("100000-*/checkpoints/*"))) > 1, "the other has begun")
    assert command.interrupt() < PROMPTLY
    assert command.status() == 130
    said = "snnfl: interrupted; 1 of 2 cells are finished; the same command goes on with the others"
    assert command.err.splitlines() == [said]


def is_locked(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        with path.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


@pytest.mark.slow
def test_an_audit_says_that_there_is_no_report(snnfl: Commands, config: str, tmp_path: Path) -> None:
    recorded = ["audit.record=true", "audit.ground_truth=true", "run.rounds=1"]
    assert snnfl.run(tmp_path, "snnfl", "run", config, *OPTIONS, *recorded)[0] == 0
    command = snnfl.start(tmp_path, "snnfl", "audit", "runs/run", "--iterations", "1000000")
    until(lambda: is_locked(tmp_path / "runs/run/audit/.lock"), "the attacks begin")
    assert command.interrupt() < PROMPTLY
    assert command.status() == 130
    assert command.err.splitlines()[-1].startswith("snnfl: interrupted; no report is written; what was recorded is as ")
    assert not (tmp_path / "runs/run/audit/report.html").exists()


@pytest.mark.slow
@pytest.mark.ray
def test_on_ray_too(snnfl: Commands, tmp_path: Path) -> None:
    """Ray is shut down after the line, which takes as long as it takes."""
    options = [
        part for option in (FOREVER, "training.epochs=1", 'model.name="mlp"') for part in ("--run-config", option)
    ]
    command = snnfl.start(tmp_path, "flower-simulation", "--app", str(ROOT), "--num-supernodes", "3", *options)
    until(lambda: list((tmp_path / "runs/run" / CHECKPOINTS).glob("round-*")) != [], "the first round is over")
    assert command.interrupt() < PROMPTLY
    assert command.status() == 130
    (line,) = [line for line in command.err.splitlines() if "interrupted" in line]
    assert line.startswith("flower-simulation: interrupted; ")
    way = "the same command with --run-config run.resume=true goes on after them"
    assert line.endswith(f" of 100000 rounds in {tmp_path}/runs/run are complete; {way}")
    assert "Traceback" not in command.err
