"""Real SuperNodes, two of which send what cannot be inflated: the run goes on with the third."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from fleet import FORKED, REPOSITORY, Fleet, fleet_of, wait
from flwr_local import BINARIES, needs_proc

pytestmark = [pytest.mark.flwr, pytest.mark.slow, needs_proc, FORKED, pytest.mark.timeout(1800)]

HOSTILE = """
import re
from flwr.app import {kind}

honest = {kind}.deflate


def deflate(self):
    head, _, body = honest(self).partition(b"\\0")
    body = re.sub({old!r}, {new!r}, body)
    return b"%b %d\\0%b" % (head.rsplit(b" ", 1)[0], len(body), body)  # the SuperLink compares the length


{kind}.deflate = deflate
"""

AT_TRAINING = {"kind": "Array", "old": rb'"shape": \[.*?\]', "new": b'"shape": ["a"]'}
AT_THE_QUESTION = {"kind": "MetricRecord", "old": b"partition-id", "new": b"\xff" * 12}


def start_hostile(fleet: Fleet, index: int, how: dict[str, object]) -> None:
    """Start a SuperNode whose ClientApp deflates objects in another way than Flower's."""
    folder = fleet.folder / f"hostile-{index}"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(HOSTILE.format(**how))
    name = f"node-{index}"
    fleet.start(name, ["env", f"PYTHONPATH={folder}:{REPOSITORY}", *fleet.node_command(index)])
    wait(lambda: "SuperNode ID" in fleet.log(name), f"{name} is connected")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Three nodes: an honest one, one that is malformed when it has trained, one that is from the first question on."""
    with fleet_of(tmp_path_factory.mktemp("fleet"), 3, in_memory=True) as fleet:
        assert fleet.snnfl("register")[1] is None
        fleet.start_node(0)
        start_hostile(fleet, 1, AT_TRAINING)
        start_hostile(fleet, 2, AT_THE_QUESTION)
        yield fleet


def test_malformed_objects_cost_their_own_nodes_replies(fleet: Fleet) -> None:
    options = ["run.name=attacked", "run.rounds=2", "data.clients=3", "model.name=mlp", "strategy.timeout=300"]
    options += ["training.epochs=1", "conversion.steps=4", "evaluation.images=60", "evaluation.clients=false"]
    fleet.submit(*options).wait(900)
    counted = [(row["round"], row["replies"], row["failed"], row["aggregated"]) for row in fleet.rows("attacked")]
    assert counted == [(1, 1, 1, True), (2, 1, 1, True)]
    (number,) = re.findall(r"Successfully started run (\d+)", fleet.log("run"))
    fleet.start("logs", [BINARIES / "snnfl", "deploy", "logs", fleet.deployment.path, number]).wait(120)
    told = fleet.log("logs")
    assert re.search(r"node \d+ cannot take part: its reply cannot be read: DecodeError", told)
    for number in (1, 2):
        reason = "its reply cannot be read: TypeError: Invalid arguments for Array"
        assert re.search(rf"round {number}: reply of partition 1 \(node \d+\) failed: {reason}", told)
    assert "finished, but not as configured: partition 1 gave no valid reply to 2 of 2 train messages" in told
    assert (fleet.folder / "runs" / "attacked" / "final_snn.safetensors").exists()
