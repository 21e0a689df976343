"""A deployment of real processes, encrypted and authenticated, and what happens to a run when they and links fail.

One SuperLink serves the tests of this file while they pass, and one run is disturbed in all ways, since each run costs
minutes of CPU: :func:`disturbed` makes it, the tests look at what is left. What is waited for is seen, never guessed.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch
from fleet import FORKED, SECONDS, Fleet, cable, fleet_of, missing_for_a_cut, wait
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr_local import BINARIES, needs_proc
from safetensors.torch import load_file
from shared import ATTEMPTS, NO_ANSWER, Shared

from clients.client_app import app as client_app
from experiments.deploy import DeployError
from experiments.deploy.check import check_deployment
from experiments.deploy.init import init_deployment
from experiments.deploy.run import run_on
from experiments.engines.in_process import run_in_process
from snnfl.checksummed import round_files
from snnfl.config import compose, flatten
from strategies.run_directory import ANN_FILE, SNN_FILE, read_metrics
from strategies.server_app import app as server_app

pytestmark = [pytest.mark.flwr, pytest.mark.slow, needs_proc, FORKED, pytest.mark.timeout(1800)]

NODES = 3
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


@contextmanager
def connected_site(folder: Path) -> Iterator[Site]:
    """Start a SuperLink, let in all nodes, and wait until they are connected; node 0 insists on spiking updates."""
    with ExitStack() as stack:
        network, host, switch = None, "127.0.0.1", None
        if NO_CABLE is None:
            network = f"snnfl{uuid4().hex[:6]}"
            host, switch = stack.enter_context(cable(network))
        fleet = stack.enter_context(fleet_of(folder, NODES, host))
        lines, error = fleet.snnfl("check")
        assert error == f"{NODES} of the lines above must be put right before a run"
        assert sum("not registered: snnfl deploy register" in line for line in lines) == NODES
        lines, error = fleet.snnfl("register")
        assert error is None
        assert all(re.search(r"registered as node \d+", line) for line in lines)
        site = Site(fleet, network, host, switch)
        for index in range(NODES):
            site.start_node(index, **({"require_spiking": "true"} if index == 0 else {}))
        yield site


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared[Site]]:
    make = lambda: connected_site(tmp_path_factory.mktemp("fleet"))  # noqa: E731
    with Shared(make, lambda site: site.fleet.lives()) as shared:
        yield shared


@pytest.fixture
def connected(sites: Shared[Site]) -> Site:
    """A site whose nodes are all connected."""
    return sites.get()


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
        f"nowhere.invalid:{port}": "the port is closed; start flower-superlink --host 127.0.0.1 .* first ssh -L",
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
        assert process.wait(SECONDS) != 0
        assert "Failed to initialize the connection to the SuperLink." in fleet.log(name)
    assert "Failed to activate SuperNode" in fleet.log("stranger")
    assert "certificate verify failed" in fleet.log("misled")
    assert fleet.snnfl("check")[1] is None  # neither has become a node


@dataclass
class Evidence:
    """What a run has left behind.

    Attributes:
        told: What the operator read until the SuperLink was killed.
        before: The whole log of that part of the run, read afterwards.
        after: That of the resumed part.
        rows: Of ``metrics.jsonl``.
        path: The run's folder.
        kept: By node, the rounds after which it has kept its client's state.
    """

    told: str
    before: str
    after: str
    rows: list[dict[str, Any]]
    path: Path
    kept: list[list[int]]


@pytest.fixture(scope="module")
def disturbed(sites: Shared[Site]) -> Evidence:
    """Disturb a run; again with a new fleet where Flower met limits of its own, which tell nothing of the app."""
    for attempt in range(ATTEMPTS):
        site = sites.get()
        try:
            evidence, stuck = disturb(site), site.fleet.stuck()
        except NO_ANSWER:
            if attempt == ATTEMPTS - 1:
                raise
        else:
            if not stuck:
                return evidence
            print(*stuck, sep="\n")
        sites.spoil()
    return evidence


def disturb(site: Site) -> Evidence:
    """Run three rounds: in the second node 1 is cut off and node 2 killed, in the third the SuperLink; all return."""
    fleet = site.fleet
    options = [*OPTIONS, "run.rounds=3", "run.name=disturbed", "strategy.timeout=300"]
    process = fleet.submit(*options)
    for index in (1, 2):
        wait(lambda index=index: fleet.log(f"node-{index}").count("Receiving: train") == 2, "round 2 has begun")
    if site.switch is not None:
        site.switch(False)
    fleet.kill("node-2")
    wait(lambda: len(fleet.rows("disturbed")) == 2, "the second round is complete, without the two", pause=0.01)
    fleet.signal("node-0", signal.SIGSTOP)  # nobody can end the third round, which one node would in less than a second
    wait(lambda: "round 2: server SNN" in fleet.log("run"), "the operator has read it")
    if len(fleet.rows("disturbed")) != 2:
        raise TimeoutError("the third round was over before node 0 was stopped")
    fleet.kill("superlink")
    process.wait(SECONDS)
    told = fleet.log("run")
    fleet.signal("node-0", signal.SIGCONT)
    if site.switch is not None:
        site.switch(True)
    fleet.start_superlink()
    site.start_node(2)
    wait(lambda: fleet.snnfl("check")[1] is None, "the nodes have come back")
    resumed = fleet.submit(*options, "--resume")
    wait(lambda: resumed.poll() is not None or bool(fleet.stuck()), "the resumed run is over", 2 * SECONDS)
    if resumed.poll() is None:
        raise TimeoutError("\n".join(fleet.stuck()))
    after, (number,) = fleet.log("run"), re.findall(r"Successfully started run (\d+)", told)
    fleet.start("logs", [BINARIES / "snnfl", "deploy", "logs", fleet.deployment.path, number]).wait(SECONDS)
    return Evidence(
        told=told,
        before=fleet.log("logs"),
        after=after,
        rows=fleet.rows("disturbed"),
        path=fleet.folder / "runs" / "disturbed",
        kept=[kept_rounds(fleet, index) for index in range(NODES)],
    )


def kept_rounds(fleet: Fleet, index: int) -> list[int]:
    """Return the rounds after which a node has kept its client's state, in the one run that it took part in."""
    (run,) = fleet.state(index).iterdir()
    (client,) = run.iterdir()
    assert client.name == str(index)
    assert client.stat().st_mode & 0o077 == 0
    return list(round_files(client))


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
    first = r"flwr run exits with status 1: Connection to the SuperLink is unavailable\..*"  # whoever notices first
    assert re.fullmatch(rf"snnfl: (?:{first}|the SuperLink on \S+ has ended, and its runs with it)", last)
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


def test_the_resumed_run_ends_with_the_weights_of_the_same_run_in_process(disturbed: Evidence, tmp_path: Path) -> None:
    config = compose(None, [*OPTIONS, "run.rounds=3", f"run.directory={tmp_path}"])
    node = {"state-directory": str(tmp_path / "state")}
    lost = {index: 2 in disturbed.kept[index] for index in ((2,) if NO_CABLE else (1, 2))}
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


def test_each_node_keeps_its_private_state_to_itself(disturbed: Evidence) -> None:
    assert [rounds[-1] for rounds in disturbed.kept] == [3] * NODES


def test_a_node_refuses_what_its_configuration_forbids(connected: Site) -> None:
    fleet = connected.fleet
    options = [*OPTIONS, "run.name=plain", "strategy.spiking=false", f"strategy.minimum_replies={NODES}"]
    assert fleet.submit(*options).wait(2 * SECONDS) == 2
    refusal = "strategy.spiking=false uploads ordinary networks, but this node is configured with require-spiking=true"
    complaint = rf"2 of 3 nodes can take part, fewer than .*minimum_replies=3; node \d+ cannot take part: .*{refusal}"
    assert re.match(rf"snnfl: {complaint}", fleet.log("run").splitlines()[-1])
    assert not fleet.rows("plain")
