"""A client that ends its process, or hangs, costs its own reply and nothing of the later rounds."""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.server.superlink.fleet.vce.backend import raybackend
from flwr.simulation.ray_transport.ray_actor import BasicActorPool
from flwr.supercore.task_identity import TaskIdentity

from experiments.engines.in_process import restored_task_identity
from experiments.engines.ray import run_on_ray
from experiments.engines.ray_actors import RenewingActorPool, outlive, renewing_actors


@pytest.mark.ray
@pytest.mark.slow
def test_a_dead_and_a_hanging_client_cost_their_own_replies(
    on_cluster: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "toy_apps")
    app = importlib.import_module("faults_app")
    config = {"timeouts": "120 30 120", "output": str(tmp_path / "rounds.json"), "data.clients": 6}
    start = time.monotonic()
    run_on_ray(app.server_app, app.client_app, run_config=config, clients=6, backend_config=on_cluster)
    before, faults, after = json.loads((tmp_path / "rounds.json").read_text())
    assert before["calls"] == {str(partition): 1 for partition in range(6)}
    assert faults["calls"] == {str(partition): 2 for partition in range(2, 6)}
    assert "its process died (ActorDiedError)" in faults["reasons"]
    assert set(faults["reasons"]) == {"its process died (ActorDiedError)", "no reply within 30 s"}
    # Everybody is back, without a trace of the failed calls, and nobody waits for the one that hangs.
    assert after["calls"] == {str(partition): 2 if partition < 2 else 3 for partition in range(6)}
    assert after["reasons"] == []
    assert time.monotonic() - start < 200
    assert raybackend.BasicActorPool is BasicActorPool


def test_flowers_pool_is_put_back() -> None:
    with renewing_actors() as limit:
        assert raybackend.BasicActorPool is RenewingActorPool
        assert RenewingActorPool.limit is limit
    assert raybackend.BasicActorPool is BasicActorPool


def test_a_message_lives_until_everybody_had_a_turn() -> None:
    with restored_task_identity():
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        messages = [Message(RecordDict(), node, "train") for node in range(2, 102)]
    for message in messages:
        message.metadata.created_at -= 1000.0
    outlive(messages, 3600.0)
    for message in messages:
        assert message.metadata.created_at + message.metadata.ttl - time.time() > 100 * 3600.0
