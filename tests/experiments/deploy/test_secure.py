"""Secure aggregation by real processes: three SuperNodes that know each other's keys, one of which is killed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fleet import FORKED, fleet_of, wait
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr_local import needs_proc
from safetensors.torch import load_file

from clients.client_app import app as client_app
from experiments.engines.in_process import run_in_process
from snnfl.config import compose, flatten
from strategies.run_directory import SNN_FILE
from strategies.server_app import app as server_app

OPTIONS = [
    "data.clients=3", "run.rounds=1", "conversion.steps=8", "conversion.calibration_images=32",
    "strategy.secure_aggregation=true", "evaluation.images=60",
    "training.epochs=12",  # which take a second, in which the client is killed
]  # fmt: skip
KILLED = 2


class Gone(ClientApp):
    """The real client, but for the one that dies in its training."""

    def __call__(self, message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train" and context.node_config["partition-id"] == KILLED:
            raise RuntimeError("killed")
        return client_app(message, context)


@pytest.mark.flwr
@pytest.mark.slow
@pytest.mark.timeout(900)
@FORKED
@needs_proc
def test_a_node_that_is_killed_between_sharing_and_unmasking_costs_its_own_update(tmp_path: Path) -> None:
    with fleet_of(tmp_path / "fleet", 3, in_memory=True) as fleet:
        assert fleet.snnfl("register")[1] is None
        made = fleet.deployment.path
        for index in range(3):
            fleet.start_node(index, identity_key=f"'{made}/keys/node-{index}'", identities=f"'{made}/identities'")
        fleet.submit(*OPTIONS, "run.name=secure")
        trains = f"node-{KILLED}"
        wait(lambda: "train message" in fleet.log(trains), "the node has shared its seeds and trains")
        fleet.kill(trains)
        wait(lambda: bool(fleet.rows("secure")), "the round has ended", 300)
        fleet.processes["run"].wait(120)
        (row,) = fleet.rows("secure")
        assert (row["replies"], row["failed"], row["aggregated"]) == (2, 1, True), fleet.log("run")
        assert row["faults"][0]["partition"] == KILLED
        found = load_file(fleet.folder / "runs/secure" / SNN_FILE)
    config = compose(None, [*OPTIONS, f"run.directory={tmp_path}"])
    run_in_process(server_app, Gone(), run_config=flatten(config), clients=3)
    expected = load_file(tmp_path / "run" / SNN_FILE)
    assert all(torch.equal(found[name], array) for name, array in expected.items())
