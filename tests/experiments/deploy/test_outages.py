"""A deployment of real processes, encrypted and authenticated, and what happens to a run when they and links fail.

One SuperLink serves all tests of this file, and one run is disturbed in all ways, since each run costs minutes of CPU:
:func:`disturbed` makes it, the tests look at what is left.
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
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr_local import BINARIES, needs_proc
from safetensors.torch import load_file

from clients.client_app import app as client_app
from experiments.deploy import DeployError
from experiments.deploy.check import check_deployment
from experiments.deploy.init import init_deployment
from experiments.deploy.run import run_on
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
    lines, error = site.fleet.snnfl("check")
    assert error == f"{NODES} of the lines above must be put right before a run"
    assert sum("not registered: snnfl deploy register" in line for line in lines) == NODES
    lines, error = site.fleet.snnfl("register")
    assert error is None
    assert all(re.search(r"registered as node \d+", line) for line in lines)
    for index in range(NODES):
        site.start_node(index, **({"require_spiking": "true"} if index == 0 else {}))
    return site


def test_check_says_a_line_per_node(connected: Site) -> None:
    lines, error = connected.fleet.snnfl("check")
    assert error is None
    assert [line.split()[0] for line in lines[:4]] == ["superlink", "certificate", "flower", "clock"]
    for index, line in enumerate(lines[4:]):
        assert re.match(rf"node-{index} +partition {index}, online since \d{{4}}-", line)
    assert len(lines) == 4 + NODES
    lines, _ = connected.fleet.snnfl("register")
    assert all("was registered before" in line for line in lines)


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
    with pytest.raises(
        DeployError, match=rf"data.clients=2, but this deployment has {NODES} nodes; say data.clients=3"
    ):
        run_on(fleet.deployment, fleet.folder / "config.yaml", ["data.clients=2"], lambda line: None)


def test_an_unregistered_node_and_one_with_a_wrong_authority_are_refused(connected: Site, tmp_path: Path) -> None:
    fleet = connected.fleet
    init_deployment(tmp_path, "127.0.0.1", 1)
    for name, wrong in (
        ("stranger", f"--auth-supernode-private-key={tmp_path}/keys/node-0"),
        ("misled", f"--root-certificates={tmp_path}/certificates/ca.crt"),
    ):
        process = fleet.start(name, [*fleet.node_command(0), "--max-retries=1", wrong])
        assert process.wait(300) != 0
        assert "Failed to initialize the connection to the SuperLink." in fleet.log(name)
    assert "Failed to activate SuperNode" in fleet.log("stranger")
    assert "certificate verify failed" in fleet.log("misled")
    assert fleet.snnfl("check")[1] is None  # neither has become a node


@dataclass
class Evidence:
    """What a run has left behind.

    Attributes:
        told: What the operator read until the SuperLink was killed; Flower's stream is up to a minute late.
        before: The whole log of that part of the run, read afterwards.
        after: That of the resumed part.
        rows: Of ``metrics.jsonl``.
        path: The run's folder.
    """

    told: str
    before: str
    after: str
    rows: list[dict[str, Any]]
    path: Path


@pytest.fixture(scope="module")
def disturbed(connected: Site) -> Evidence:
    """Three rounds: in the second node 1 is cut off and node 2 killed, in the third the SuperLink; all come back."""
    fleet = connected.fleet
    options = [*OPTIONS, "run.rounds=3", "run.name=disturbed", "strategy.timeout=300"]
    process = fleet.submit(*options)
    for index in (1, 2):
        wait(lambda index=index: fleet.log(f"node-{index}").count("Receiving: train") == 2, "round 2 has begun")
    mended = time.monotonic() + CUT_SECONDS
    if connected.switch is not None:
        connected.switch(False)
    fleet.kill("node-2")
    wait(lambda: len(fleet.rows("disturbed")) == 2, "the second round is complete")
    time.sleep(2)  # the round's log reaches the SuperLink; the third round begins with a process that imports PyTorch
    fleet.kill("superlink")
    process.wait(300)
    told = fleet.log("run")
    if connected.switch is not None:
        time.sleep(max(0.0, mended - time.monotonic()))
        connected.switch(True)
    fleet.start_superlink()
    connected.start_node(2)
    wait(lambda: fleet.snnfl("check")[1] is None, "the nodes have come back")
    fleet.submit(*options, "--resume").wait(900)
    after, (number,) = fleet.log("run"), re.findall(r"Successfully started run (\d+)", told)
    fleet.start("logs", [BINARIES / "snnfl", "deploy", "logs", fleet.deployment.path, number]).wait(120)
    path = fleet.folder / "runs" / "disturbed"
    return Evidence(told=told, before=fleet.log("logs"), after=after, rows=fleet.rows("disturbed"), path=path)


def test_a_run_goes_on_without_a_node_that_is_killed_and_takes_it_back(disturbed: Evidence) -> None:
    assert re.search(r"round 1: server SNN 0\.\d+, server ANN 0\.\d+; 3 replies, 0 failed, 0 refused", disturbed.before)
    assert re.search(r"round 2: reply of partition 2 \(node \d+\) failed: .*Node Unavailable", disturbed.before)
    lost = 1 if NO_CABLE else 2
    assert re.search(rf"round 2: server SNN 0\.\d+, .*; {3 - lost} replies, {lost} failed, 0 refused", disturbed.before)
    assert re.search(r"round 3: server SNN 0\.\d+, server ANN 0\.\d+; 3 replies, 0 failed, 0 refused", disturbed.after)
    counted = [(row["round"], row["replies"], row["failed"], row["aggregated"]) for row in disturbed.rows]
    assert counted == [(1, 3, 0, True), (2, 3 - lost, lost, True), (3, 3, 0, True)]


@pytest.mark.skipif(NO_CABLE is not None, reason=f"no cable to cut: {NO_CABLE}")
def test_a_run_goes_on_without_a_node_that_is_cut_off_for_a_minute(disturbed: Evidence) -> None:
    assert re.search(r"round 2: reply of partition 1 \(node \d+\) failed: .*Node Unavailable", disturbed.before)
    assert "round 3: reply of partition 1" not in disturbed.after


def test_a_killed_superlink_is_one_line_to_the_operator(disturbed: Evidence) -> None:
    last = disturbed.told.strip().splitlines()[-1]
    assert re.fullmatch(r"snnfl: flwr run exits with status 1: Connection to the SuperLink is unavailable\..*", last)
    assert "Traceback" not in disturbed.told


class Lossy(ClientApp):
    """Clients as the run had them: in round 2 no reply of theirs arrives, whether they had trained by then or not.

    Args:
        trained: By partition, for those whose reply is lost.
    """

    def __init__(self, trained: dict[int, bool]) -> None:
        super().__init__()
        self.trained = trained

    def __call__(self, message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        second = "config" in message.content and message.content["config"]["server-round"] == 2
        if not (second and partition in self.trained):
            return client_app(message, context)
        if self.trained[partition]:
            client_app(message, context)  # and keeps its new biases
        return Message(Error(0, "lost"), reply_to=message)


def kept_rounds(fleet: Fleet, index: int) -> list[int]:
    """Return the rounds after which a node has kept its client's state, in the one run that it took part in."""
    (run,) = fleet.state(index).iterdir()
    (client,) = run.iterdir()
    assert client.name == str(index)
    assert client.stat().st_mode & 0o077 == 0
    return list(round_files(client))


def test_the_resumed_run_ends_with_the_weights_of_the_same_run_in_process(
    disturbed: Evidence, connected: Site, tmp_path: Path
) -> None:
    config = compose(None, [*OPTIONS, "run.rounds=3", f"run.directory={tmp_path}"])
    node = {"state-directory": str(tmp_path / "state")}
    lost = {index: 2 in kept_rounds(connected.fleet, index) for index in ((2,) if NO_CABLE else (1, 2))}
    run_in_process(server_app, Lossy(lost), run_config=flatten(config), clients=NODES, node_config=node)
    expected = tmp_path / config.run.name
    for name in (ANN_FILE, SNN_FILE):
        ours, theirs = load_file(disturbed.path / name), load_file(expected / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    measured = ("server_snn_accuracy", "server_ann_accuracy", "client_ann_accuracy_mean", "bytes_up")
    assert [[row[key] for key in measured] for row in disturbed.rows] == [
        [row[key] for key in measured] for row in read_metrics(expected)
    ]


def test_each_node_keeps_its_private_state_to_itself(disturbed: Evidence, connected: Site) -> None:
    assert all(kept_rounds(connected.fleet, index)[-1] == 3 for index in range(NODES))


def test_a_node_refuses_what_its_configuration_forbids(disturbed: Evidence, connected: Site) -> None:
    fleet = connected.fleet
    options = [*OPTIONS, "run.name=plain", "strategy.spiking=false", f"strategy.minimum_replies={NODES}"]
    assert fleet.submit(*options).wait(600) == 1
    refusal = "strategy.spiking=false uploads ordinary networks, but this node is configured with require-spiking=true"
    complaint = rf"2 of 3 nodes can take part, fewer than .*minimum_replies=3; node \d+ cannot take part: .*{refusal}"
    assert re.search(complaint, fleet.log("run"))
    assert re.search(r"snnfl: run \d+: finished:failed", fleet.log("run").splitlines()[-1])
    assert not fleet.rows("plain")
