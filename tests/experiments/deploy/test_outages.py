"""A deployment of real processes, encrypted and authenticated, and what happens to a run when they and links fail.

One SuperLink serves all tests of this file. Two runs are disturbed in as many ways as fit into them, since each costs
more than the test: :func:`resumed` and :func:`disturbed` make them, the tests look at what is left.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from fleet import Fleet, cable, fleet_of, missing_for_a_cut, wait
from flwr_local import needs_proc
from safetensors.torch import load_file

from clients.client_app import app as client_app
from experiments.deploy import DeployError
from experiments.deploy.check import check_deployment
from experiments.deploy.init import init_deployment
from experiments.engines.in_process import run_in_process
from snnfl.config import compose, flatten
from snnfl.sealed import round_files
from strategies.run_directory import ANN_FILE, SNN_FILE, read_metrics
from strategies.server_app import app as server_app

pytestmark = [pytest.mark.flwr, pytest.mark.slow, needs_proc, pytest.mark.timeout(1800)]

NODES = 3
CUT_SECONDS = 60
OPTIONS = [f"data.clients={NODES}", "training.epochs=1", "conversion.steps=8", "conversion.calibration_images=32"]
NO_CABLE = missing_for_a_cut()


@dataclass
class Site:
    """The processes, and the cable that node 1 hangs on, if this machine can make one."""

    fleet: Fleet
    network: str | None
    host: str
    switch: Callable[[bool], None] | None

    def start_node(self, index: int, **options: str) -> None:
        behind = {"netns": self.network, "host": self.host} if index == 1 and self.network is not None else {}
        self.fleet.start_node(index, **behind, **options)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A SuperLink that knows no node yet."""
    with ExitStack() as stack:
        network, host, switch = None, "127.0.0.1", None
        if NO_CABLE is None:
            network = f"snnfl{tmp_path_factory.getbasetemp().name[-6:].replace('-', '')}"
            host, switch = stack.enter_context(cable(network))
        fleet = stack.enter_context(fleet_of(tmp_path_factory.mktemp("fleet"), NODES, host))
        yield Site(fleet, network, host, switch)


@pytest.fixture(scope="module")
def connected(site: Site) -> Site:
    """The same with all nodes registered and connected; node 0 insists on spiking updates."""
    before = site.fleet.snnfl("check")
    assert before.returncode == 2
    assert before.stdout.count("not registered: snnfl deploy register") == NODES
    assert site.fleet.snnfl("register").stdout.count("registered as node") == NODES
    for index in range(NODES):
        site.start_node(index, **({"require_spiking": "true"} if index == 0 else {}))
    return site


def test_check_says_a_line_per_node(connected: Site) -> None:
    done = connected.fleet.snnfl("check")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [
        "superlink",
        "certificate",
        "flower",
        "clock",
        "node-0",
        "node-1",
        "node-2",
    ]
    assert all(re.search(rf"partition {index}, online since \d{{4}}-", line) for index, line in enumerate(lines[4:]))
    again = connected.fleet.snnfl("register")
    assert again.stdout.count("was registered before") == NODES


def test_what_is_wrong_is_one_line(connected: Site, tmp_path: Path) -> None:
    fleet = connected.fleet
    port = fleet.deployment.port
    mistakes = {
        f"127.0.0.1:{port}": "its certificate is not signed by .*ca.crt; copy that file",
        "127.0.0.1:1": "the port is closed; start flower-superlink",
        f"nowhere.invalid:{port}": "no such host",
    }
    for number, (server, complaint) in enumerate(mistakes.items()):
        other = init_deployment(tmp_path / str(number), server, 1)
        with pytest.raises(DeployError, match=complaint) as error:
            check_deployment(other, lambda line: None)
        assert len(str(error.value).splitlines()) == 1
    done = fleet.snnfl("run", "config.yaml", "data.clients=2")
    assert done.stderr == f"snnfl: data.clients=2, but this deployment has {NODES} nodes; say data.clients={NODES}\n"


def test_an_unregistered_node_and_one_with_a_wrong_authority_are_refused(connected: Site, tmp_path: Path) -> None:
    fleet = connected.fleet
    init_deployment(tmp_path, "127.0.0.1", 1)
    command = [*fleet.node_command(0), "--max-retries=1"]
    stranger = [*command, f"--auth-supernode-private-key={tmp_path}/keys/node-0"]
    misled = [*command, f"--root-certificates={tmp_path}/certificates/ca.crt"]
    for name, wrong in (("stranger", stranger), ("misled", misled)):
        fleet.start(name, wrong)
    assert fleet.processes["stranger"].wait(300) != 0
    assert fleet.processes["misled"].wait(300) != 0
    refused = "Failed to initialize the connection to the SuperLink."
    assert refused in fleet.log("stranger")
    assert "/v1/fleet/activate-node" in fleet.log("superlink").split("404")[0] or "401" in fleet.log("superlink")
    assert refused in fleet.log("misled")
    assert "CERTIFICATE_VERIFY_FAILED" in fleet.log("misled") or "certificate verify failed" in fleet.log("misled")
    assert fleet.snnfl("check").returncode == 0  # neither has become a node


def in_process(folder: Path, *overrides: str) -> Path:
    """Run the same configuration in this process; return its folder."""
    config = compose(None, [*OPTIONS, *overrides, f"run.directory={folder}"])
    run_in_process(server_app, client_app, run_config=flatten(config), clients=NODES)
    return folder / config.run.name


@dataclass
class Evidence:
    """What a run has left behind."""

    log: str
    rows: list[dict[str, Any]]
    path: Path


@pytest.fixture(scope="module")
def resumed(connected: Site) -> tuple[str, Evidence]:
    """A run of two rounds, whose SuperLink is killed in the second: what the operator read, and what was left."""
    fleet = connected.fleet
    options = [*OPTIONS, "run.rounds=2", "run.name=resumed"]
    process = fleet.submit(*options)
    wait(lambda: len(fleet.rows("resumed")) == 1 or process.poll() is not None, "the first round is complete")
    wait(lambda: fleet.log("node-0").count("Receiving: train message") == 2, "the second round has begun")
    fleet.kill("superlink")
    process.wait(300)
    interrupted = fleet.log("run")
    fleet.start_superlink()
    wait(lambda: fleet.snnfl("check").returncode == 0, "the nodes have come back")
    process = fleet.submit(*options, "--resume")
    process.wait(600)
    return interrupted, Evidence(fleet.log("run"), fleet.rows("resumed"), fleet.folder / "runs" / "resumed")


def test_a_killed_superlink_is_one_line_to_the_operator(resumed: tuple[str, Evidence]) -> None:
    last = resumed[0].strip().splitlines()[-1]
    assert re.fullmatch(r"snnfl: .*", last), resumed[0]
    assert "Traceback" not in resumed[0]


def test_a_run_goes_on_after_its_superlink_was_killed_with_equal_weights(
    resumed: tuple[str, Evidence], connected: Site, tmp_path: Path
) -> None:
    _, run = resumed
    assert "results: runs/resumed/ on 127.0.0.1" in run.log
    assert [(row["round"], row["replies"], row["failed"]) for row in run.rows] == [(1, 3, 0), (2, 3, 0)]
    expected = in_process(tmp_path, "run.rounds=2")
    for name in (ANN_FILE, SNN_FILE):
        ours, theirs = load_file(run.path / name), load_file(expected / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    measured = ("server_snn_accuracy", "server_ann_accuracy", "client_ann_accuracy_mean", "bytes_up")
    assert [[row[key] for key in measured] for row in run.rows] == [
        [row[key] for key in measured] for row in read_metrics(expected)
    ]


def test_each_node_keeps_its_private_state_to_itself(resumed: tuple[str, Evidence], connected: Site) -> None:
    for index in range(NODES):
        (run,) = connected.fleet.state(index).iterdir()
        (client,) = run.iterdir()
        assert client.name == str(index)
        assert list(round_files(client)) == [1, 2]
        assert client.stat().st_mode & 0o077 == 0


def test_a_node_refuses_what_its_configuration_forbids(resumed: tuple[str, Evidence], connected: Site) -> None:
    done = connected.fleet.snnfl(
        "run", "config.yaml", *OPTIONS, "run.rounds=1", "run.name=plain", "strategy.spiking=false"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = connected.fleet.rows("plain")
    assert (row["replies"], row["failed"]) == (2, 0)
    assert re.search(r"cannot take part: .*strategy.spiking=false uploads ordinary networks", done.stdout)


@pytest.fixture(scope="module")
def disturbed(connected: Site) -> Evidence:
    """A run of four rounds; in the second node 2 is killed and started again, and node 1 cut off for a minute."""
    fleet = connected.fleet
    options = [*OPTIONS, "run.rounds=4", "run.name=disturbed", f"strategy.timeout={CUT_SECONDS + 15}"]
    asked = {index: fleet.log(f"node-{index}").count("Receiving: train message") for index in (1, 2)}
    process = fleet.submit(*options)
    for index in (1, 2):
        begun = asked[index] + 2
        wait(lambda index=index, begun=begun: fleet.log(f"node-{index}").count("Receiving: train") >= begun, "round 2")
    if connected.switch is not None:
        connected.switch(False)
    fleet.kill("node-2")
    connected.start_node(2)
    if connected.switch is not None:
        time.sleep(CUT_SECONDS)
        connected.switch(True)
    process.wait(900)
    return Evidence(fleet.log("run"), fleet.rows("disturbed"), fleet.folder / "runs" / "disturbed")


def test_a_run_goes_on_without_a_node_that_is_killed_and_takes_it_back(disturbed: Evidence) -> None:
    rows = disturbed.rows
    assert [row["round"] for row in rows] == [1, 2, 3, 4], disturbed.log
    assert all(row["aggregated"] for row in rows)
    assert (rows[0]["replies"], rows[0]["failed"]) == (3, 0)
    assert (rows[1]["replies"], rows[1]["failed"]) == ((2, 1) if NO_CABLE else (1, 2))
    assert re.search(r"round 2: reply of partition 2 \(node \d+\) failed: no reply within 75 s", disturbed.log)
    assert rows[3]["replies"] >= 2
    assert not re.search(r"round [34]: reply of partition 2", disturbed.log)


@pytest.mark.skipif(NO_CABLE is not None, reason=f"no cable to cut: {NO_CABLE}")
def test_a_run_goes_on_without_a_node_that_is_cut_off_and_takes_it_back(disturbed: Evidence) -> None:
    assert re.search(r"round 2: reply of partition 1 \(node \d+\) failed", disturbed.log)
    assert re.search(r"round 2: server SNN 0\.\d+, server ANN 0\.\d+; 1 replies, 2 failed, 0 refused", disturbed.log)
    assert (disturbed.rows[3]["replies"], disturbed.rows[3]["failed"]) == (3, 0)
