"""A Ray cluster of two nodes: the bits of one process, and a run that outlives one of them.

Both nodes are on this machine, as Ray's own tests have it; to Ray they are machines with a processor each.
"""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from fleet import SECONDS, wait
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr_local import BINARIES, TIMEOUT, needs_proc
from ray._private.node import Node
from ray.cluster_utils import Cluster

from clients import client_app
from experiments.engines.in_process import run_in_process
from experiments.engines.ray import run_on_ray
from snnfl.config import compose, flatten
from strategies.run_directory import ANN_FILE, SNN_FILE, read_metrics
from strategies.server_app import server_app

pytestmark = [pytest.mark.ray, pytest.mark.slow]

CLIENTS = 4
OPTIONS = [
    "run.rounds=3",
    f"data.clients={CLIENTS}",
    "model.name=mlp",
    "training.epochs=1",
    "conversion.steps=4",
    "conversion.calibration_images=16",
    "evaluation.images=60",
]


STATEFUL = ["strategy.name=moon", "strategy.spiking=false", "data.partition=dirichlet", "data.augment=true"]
"""A plain run whose clients keep their previous model."""


@pytest.fixture
def second(cluster: Cluster) -> Iterator[Node]:
    """A second node of the cluster, with a processor."""
    node = cluster.add_node(num_cpus=1)
    yield node
    if node in cluster.worker_nodes:
        cluster.remove_node(node)
    cluster.wait_for_nodes(SECONDS)  # until it counts as lost


class Located(ClientApp):
    """Clients that write down where they train; in round 2 the first one on the second node waits for its end.

    Args:
        folder: Gets a file per round and partition that names the node.
        fatal: The node that is going to be lost.
    """

    def __init__(self, folder: Path, fatal: str) -> None:
        super().__init__()
        self.folder = folder
        self.fatal = fatal

    def __call__(self, message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train":
            server_round = message.content["config"]["server-round"]
            node = ray.get_runtime_context().get_node_id()
            (self.folder / f"{server_round} {context.node_config['partition-id']}").write_text(node)
            if server_round == 2 and node == self.fatal:
                threading.Event().wait()
        return client_app.app(message, context)


class Failing(ClientApp):
    """Clients of which one fails in round 2."""

    def __init__(self, partition: int) -> None:
        super().__init__()
        self.partition = partition

    def __call__(self, message: Message, context: Context) -> Message:
        train = message.metadata.message_type == "train" and message.content["config"]["server-round"] == 2
        if train and context.node_config["partition-id"] == self.partition:
            raise OSError("its machine is gone")
        return client_app.app(message, context)


@needs_proc
def test_a_plain_run_whose_clients_keep_a_state_gives_the_bits_of_one_process(
    cluster: Cluster, second: Node, tmp_path: Path
) -> None:
    overrides = [*OPTIONS, *STATEFUL]
    config = compose(None, [*overrides, f"run.directory={tmp_path}", "run.name=alone"])
    run_in_process(server_app(), client_app.app, run_config=flatten(config), clients=CLIENTS)
    (tmp_path / "config.yaml").write_text("{}")
    command = [BINARIES / "snnfl", "run", "config.yaml", *overrides, "engine.name=ray"]
    command += [f"engine.address={cluster.address}", f"run.directory={tmp_path}", "run.name=cluster"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert (tmp_path / "cluster" / ANN_FILE).read_bytes() == (tmp_path / "alone" / ANN_FILE).read_bytes()


def test_a_run_on_two_nodes_goes_on_without_one_and_gives_the_bits_of_one_process(
    cluster: Cluster, second: Node, on_cluster: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    places = tmp_path / "places"
    places.mkdir()

    def hosts(server_round: int) -> dict[str, str]:
        return {path.name: path.read_text() for path in places.glob(f"{server_round} *")}

    def lose_the_second() -> None:
        wait(lambda: second.node_id in hosts(2).values(), "a client trains on the second node in round 2")
        cluster.remove_node(second, allow_graceful=False)

    killer = threading.Thread(target=lose_the_second, daemon=True)
    killer.start()
    config = compose(None, [*OPTIONS, f"run.directory={tmp_path}", "run.name=cluster", "strategy.timeout=600"])
    located = Located(places, second.node_id)
    run_on_ray(server_app(), located, run_config=flatten(config), clients=CLIENTS, backend_config=on_cluster)
    killer.join()
    assert [len(set(hosts(number).values())) for number in (1, 2, 3)] == [2, 2, 1]
    rows = read_metrics(tmp_path / "cluster")
    assert [(row["replies"], row["failed"]) for row in rows] == [(4, 0), (3, 1), (4, 0)]

    (lost,) = (int(name.split()[1]) for name, host in hosts(2).items() if host == second.node_id)
    told = [record.getMessage() for record in caplog.records if "failed" in record.getMessage()]
    reason = rf"round 2: reply of partition {lost} \(node \d+\) failed: its process died \(\w+\)"
    assert len([line for line in told if re.fullmatch(reason, line)]) == 1
    config = compose(None, [*OPTIONS, f"run.directory={tmp_path}", "run.name=alone"])
    run_in_process(server_app(), Failing(lost), run_config=flatten(config), clients=CLIENTS)
    for name in (ANN_FILE, SNN_FILE):
        assert (tmp_path / "cluster" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
