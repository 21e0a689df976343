"""How ``snnfl deploy run`` ends when its ServerApp, in another process, refuses, fails, lacks a node or goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import FORKED, Fleet, fleet_of, wait
from flwr_local import BINARIES, needs_proc

from experiments.deploy.run import CONNECTION, flower_home
from experiments.engines.deployment import list_runs
from strategies.lock import locked

pytestmark = [pytest.mark.flwr, pytest.mark.slow, needs_proc, FORKED, pytest.mark.timeout(1200)]

OPTIONS = ["data.clients=2", "model.name=mlp", "training.epochs=1", "conversion.steps=2", "data.test_images=20"]
OPTIONS += ["conversion.calibration_images=8", "run.rounds=1"]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two nodes, the second of which takes part in no plain run."""
    with fleet_of(tmp_path_factory.mktemp("fleet"), 2, in_memory=True) as made:
        assert made.snnfl("register")[1] is None
        made.start_node(0)
        made.start_node(1, require_spiking="true")
        yield made


def submit(fleet: Fleet, *options: str) -> tuple[int, str]:
    """Run to the end; return the exit status and the last line."""
    status = fleet.submit(*OPTIONS, *options).wait(600)
    return status, fleet.log("run").splitlines()[-1]


def test_a_node_that_takes_no_part_is_status_3(fleet: Fleet) -> None:
    status, line = submit(fleet, "run.name=plain", "strategy.spiking=false")
    said = "partition 1 took no part: no node that holds it could be asked; the log says why"
    assert (status, line) == (3, f"snnfl: finished, but not as configured: {said}"), fleet.log("run")
    assert re.search(r"node \d+ cannot take part: NodePolicyError: .*require-spiking=true", fleet.log("run"))
    assert fleet.rows("plain")[0]["absent"] == [1]


def test_a_run_that_its_server_app_refuses_is_one_line_and_status_2(fleet: Fleet) -> None:
    folder = fleet.folder / "runs" / "plain"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        status, line = submit(fleet, "run.name=plain", "run.overwrite=true")
    assert (status, line.partition("; ")[0]) == (2, f"snnfl: {folder}: another process of snnfl writes there")
    assert "Traceback" not in fleet.log("run")


def test_a_full_disk_is_one_line_and_status_1(fleet: Fleet, tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(tmp_path)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"mount -t tmpfs fails: {done.stderr.strip()} (needs root)")
    try:
        status, line = submit(fleet, f"run.directory={tmp_path}")
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)
    assert status == 1
    assert re.search(rf"{tmp_path}/run/\S+: No space left on device; no round in {tmp_path}/run is complete; ", line), (
        line
    )
    assert "Traceback" not in fleet.log("run")


def test_ctrl_c_says_that_the_run_goes_on_and_how_to_end_it(
    fleet: Fleet, forked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(forked / "python"))  # Flower's command line lists runs again and again
    process = fleet.submit(*OPTIONS, "run.name=long", "run.rounds=1000")
    wait(lambda: "round 1:" in fleet.log("run"), "the first round is over")
    os.kill(process.pid, signal.SIGINT)
    wait(lambda: "snnfl: interrupted" in fleet.log("run"), "it says so", 2)
    assert process.wait(60) == 130
    (line,) = [line for line in fleet.log("run").splitlines() if line.startswith("snnfl: interrupted")]
    goes_on = r"snnfl: interrupted; run (\d+) goes on at the SuperLink: follow it with (snnfl .*), end it with (.+)"
    found = re.fullmatch(goes_on, line)
    assert found, line
    number, follow, stop = found.groups()
    assert follow == f"snnfl deploy logs {fleet.deployment.path}"

    def status() -> str:
        runs = list_runs([CONNECTION, "--run-id", number], flower_home(fleet.deployment))
        return str(runs[0]["status"])

    rounds = len(fleet.rows("long"))
    wait(lambda: len(fleet.rows("long")) > rounds, "it goes on")
    assert status() == "running"
    subprocess.run(["sh", "-c", stop], env=fleet.env, check=True, capture_output=True)
    wait(lambda: status() == "finished:stopped", "it has ended")
    logs = fleet.start("logs", [BINARIES / follow.split()[0], *follow.split()[1:]])
    assert logs.wait(60) == 0, fleet.log("logs")
    assert re.search(r"round 1: .* replies", fleet.log("logs"))  # of the latest run, which no number names
    assert fleet.start("logs", [BINARIES / "snnfl", *follow.split()[1:], "12345"]).wait(60) == 2
    assert re.fullmatch(
        rf"snnfl: 12345: \S+ has had no run of this number; the latest is {number}\n", fleet.log("logs")
    )
