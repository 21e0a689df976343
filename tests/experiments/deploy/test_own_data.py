"""Three real SuperNodes with data of their own, and two that cannot take part: the same weights as in one process."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from fleet import FORKED, SECONDS, Fleet, fleet_of, wait
from flwr_local import needs_proc
from own_data import OPTIONS, lay_arrays, lay_dataset, lay_pictures
from safetensors.torch import load_file

from clients.client_app import app as client_app
from experiments.engines.in_process import run_in_process
from snnfl.config import compose, flatten
from strategies.run_directory import ANN_FILE, SNN_FILE, read_metrics, simulated_node
from strategies.server_app import app as server_app

pytestmark = [pytest.mark.flwr, pytest.mark.slow, needs_proc, FORKED, pytest.mark.timeout(1800)]

NODES = 5
TRAINING = ["run.rounds=2", "training.epochs=1", "conversion.steps=8", "conversion.calibration_images=32"]
MEASURED = (
    "server_snn_accuracy",
    "client_ann_accuracy_mean",
    "client_received_accuracy_weighted",
    "client_received_loss_weighted",
    "train_loss",
    "bytes_up",
    "absent",
    "test_images",
)


def lay_hospitals(folder: Path) -> list[Path]:
    """Write what four nodes hold, the last of them a class that the run doesn't have; the fifth will name nothing."""
    misfit = lay_pictures(folder / "3-misfit", range(1500, 1600))
    (misfit / "two").rename(misfit / "secret")
    return [
        lay_pictures(folder / "0-pictures", range(400)),
        lay_arrays(folder / "1-arrays.npz", range(400, 1000)),
        lay_dataset(folder / "2-dataset", range(1000, 1200)),
        misfit,
    ]


@dataclass
class Played:
    """A run of the fleet.

    Attributes:
        fleet: Its processes.
        status: Of ``snnfl deploy run``.
        told: What its operator read.
        root: Of the same data, as a simulation reads them.
    """

    fleet: Fleet
    status: int
    told: str
    root: Path


@contextmanager
def played(folder: Path) -> Iterator[Played]:
    places = lay_hospitals(folder / "hospitals")
    shutil.copytree(folder / "hospitals", folder / "simulated" / "clients")
    (folder / "simulated" / "clients" / "4-empty").mkdir()
    with fleet_of(folder, NODES, in_memory=True) as fleet:
        assert fleet.snnfl("register")[1] is None
        for index, place in enumerate(places):
            fleet.start_node(index, data_path=f"'{place}'")
        fleet.start_node(len(places))
        wait(lambda: fleet.snnfl("check")[1] is None, "all nodes are online")
        # The server names a folder of this machine that holds something for each.
        named = lay_pictures(folder / "named" / "clients" / "4", range(200)).parents[1]
        for index in range(4):
            lay_pictures(named / "clients" / str(index), range(200))
        options = [*OPTIONS, *TRAINING, f"data.clients={NODES}", f"data.root={named}"]
        status = fleet.submit(*options).wait(2 * SECONDS)
        yield Played(fleet, status, fleet.log("run"), folder / "simulated")


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    with played(tmp_path_factory.mktemp("own")) as run:
        yield run


def test_the_same_data_in_one_process_give_the_same_weights(deployed: Played, tmp_path: Path) -> None:
    assert deployed.status == 3, deployed.told  # two nodes are missing, and the end says so
    config = compose(
        None,
        [*OPTIONS, *TRAINING, f"data.clients={NODES}", f"data.root={deployed.root}", f"run.directory={tmp_path}"],
    )
    run_in_process(
        server_app, client_app, run_config=flatten(config), clients=NODES, node_config=simulated_node(config)
    )
    for name in (ANN_FILE, SNN_FILE):
        ours, theirs = load_file(deployed.fleet.folder / "runs" / "run" / name), load_file(tmp_path / "run" / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    rows, wanted = deployed.fleet.rows("run"), read_metrics(tmp_path / "run")
    assert [[row[key] for key in MEASURED] for row in rows] == [[row[key] for key in MEASURED] for row in wanted]
    assert [(row["replies"], row["absent"], row["test_images"]) for row in rows] == [(3, [3, 4], 0)] * 2
    assert all(0 < row["client_received_accuracy_weighted"] <= 1 for row in rows)


def test_a_node_whose_data_do_not_fit_is_refused_and_the_others_go_on(deployed: Played) -> None:
    log = deployed.told
    assert re.search(r"node \d+ cannot take part: .*it has a class that is none of data\.classes=\['zero'", log)
    assert "finished, but not as configured: partition 3 took no part" in log


def test_what_a_node_holds_stays_there(deployed: Played) -> None:
    log, fleet = deployed.told, deployed.fleet
    assert not re.search(r"hospitals|misfit|secret|\.png", log)  # neither paths nor the names of files and folders
    assert re.search(r"3-misfit: 'secret' is none of data\.classes", fleet.log("node-3"))  # its owner learns which
    written = "".join(path.read_text(errors="replace") for path in (fleet.folder / "runs").rglob("*.json*"))
    assert "hospitals" not in written


def test_with_too_few_nodes_that_fit_the_run_ends_in_one_line(deployed: Played) -> None:
    fleet = deployed.fleet
    options = [*OPTIONS, "run.name=few", f"data.clients={NODES}", "strategy.minimum_replies=4"]
    assert fleet.submit(*options).wait(2 * SECONDS) == 2
    last = fleet.log("run").strip().splitlines()[-1]
    assert re.match(r"snnfl: 3 of 5 nodes can take part, fewer than strategy\.minimum_replies=4; node \d+ cannot", last)
    assert not fleet.rows("few")


def test_a_node_that_names_no_data_reads_none_that_the_server_names(deployed: Played) -> None:
    log = deployed.told  # the server's data.root holds a folder for this node
    assert re.search(r"node \d+ cannot take part: .*this node names no data of its own; start it with --node-conf", log)
