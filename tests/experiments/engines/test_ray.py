"""The Ray engine: the same results as in process, and nothing left behind."""

import importlib
import os
import uuid
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import ray
from flwr.app import Context
from flwr_local import lingering_processes, needs_proc
from ray._private.node import Node

from experiments.engines.in_process import run_in_process
from experiments.engines.ray import RayError, _check_resources, run_on_ray
from experiments.engines.ray_internals import without_helpers

CLIENTS = 3
RUN_CONFIG = {"rounds": 3, "output": "", "data.clients": CLIENTS}


@pytest.fixture
def mean_app(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "toy_apps" / "mean")
    return importlib.import_module("mean_app")


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """A value of the variable SNNFL_TEST that the processes of one test inherit, and no others have."""
    value = uuid.uuid4().hex
    monkeypatch.setenv("SNNFL_TEST", value)
    return value


def about(context: Context) -> list[dict[str, object]]:
    return [dict(context.state[f"about-{partition}"]) for partition in range(CLIENTS)]


@pytest.mark.ray
@needs_proc
def test_ray_gives_what_the_process_gives(mean_app: ModuleType, mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("OMP_NUM_THREADS", "FLWR_TELEMETRY_ENABLED"):
        monkeypatch.delenv(variable, raising=False)
    config = {**RUN_CONFIG, "failing": 1}
    here = run_in_process(mean_app.server_app, mean_app.client_app, run_config=config, clients=CLIENTS)
    there = run_on_ray(mean_app.server_app, mean_app.client_app, run_config=config, clients=CLIENTS)

    assert here.run_config == there.run_config == config
    vector = here.state["arrays"]["vector"].numpy()
    np.testing.assert_allclose(vector, [2 * 3 / 4 * 7 / 8] * 3)  # partition 1 failed: mean (0*1 + 2*3)/4
    np.testing.assert_allclose(there.state["arrays"]["vector"].numpy(), vector)
    assert here.state["metrics"]["calls"] == pytest.approx(3.0)  # the state of clients persists
    assert there.state["metrics"]["calls"] == pytest.approx(3.0)
    assert here.state["reasons"]["reasons"] == ["ValueError: the client failed"] * CLIENTS
    assert here.state["reasons"] == there.state["reasons"]

    for local, remote in zip(about(here), about(there), strict=True):
        for key in ("partition-id", "num-partitions", "calls", "clients"):
            assert local[key] == remote[key]
        assert local["process"] == os.getpid() != remote["process"]
        assert (remote["threads"], remote["telemetry"]) == ("1", "0")
    lost = "the app's module was pickled by value: what it caches is lost after each message"
    assert any(remote["cached"] for remote in about(there)), lost  # a worker that started late has trained nobody
    assert not ray.is_initialized()
    assert not lingering_processes("SNNFL_TEST", mark)


@pytest.mark.ray
@needs_proc
def test_an_error_of_the_server_reaches_the_caller_and_ray_is_shut_down(mean_app: ModuleType, mark: str) -> None:
    config = {**RUN_CONFIG, "failing": "server"}
    with pytest.raises(ValueError, match="the server failed"):
        run_on_ray(mean_app.server_app, mean_app.client_app, run_config=config, clients=CLIENTS)
    assert not ray.is_initialized()
    assert not lingering_processes("SNNFL_TEST", mark)


@pytest.mark.parametrize(
    ("resources", "complaint"),
    [
        ({"num_cpus": 3, "num_gpus": 0}, "num_cpus=3 per client: expected more than 0, and at most the 2"),
        ({"num_cpus": 0, "num_gpus": 0}, "num_cpus=0"),
        ({"num_cpus": "1", "num_gpus": 0}, "num_cpus='1'"),
        ({"num_cpus": 1, "num_gpus": 0.5}, "num_gpus=0.5 per client: expected 0 or more, and at most the 0"),
        ({"num_cpus": 1, "num_gpus": -1}, "num_gpus=-1"),
    ],
)
def test_resources_that_are_not_there(
    resources: dict[str, float], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    with pytest.raises(RayError, match=complaint):
        _check_resources(resources)
    _check_resources({"num_cpus": 0.5, "num_gpus": 0})


def test_a_running_ray_is_left_alone(mean_app: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with pytest.raises(RayError, match="already running"):
        run_on_ray(mean_app.server_app, mean_app.client_app, run_config=RUN_CONFIG, clients=1)


@pytest.mark.parametrize("option", ["log_to_driver", "include_dashboard"])
def test_ray_starts_helpers_that_are_asked_for_and_no_others(option: str) -> None:
    names = {"log_to_driver": "start_log_monitor", "include_dashboard": "start_api_server", "": "start_monitor"}
    before = {name: getattr(Node, name) for name in names.values()}
    with without_helpers({**dict.fromkeys(names, False), option: True}):
        kept = [name for name, method in before.items() if getattr(Node, name) is method]
    assert kept == [names[option]]
    assert before == {name: getattr(Node, name) for name in names.values()}


def test_a_federation_on_ray_needs_a_client(mean_app: ModuleType) -> None:
    with pytest.raises(ValueError, match="clients=0"):
        run_on_ray(mean_app.server_app, mean_app.client_app, run_config=RUN_CONFIG, clients=0)


def test_a_ray_that_starts_too_slowly_is_told_in_a_line(mean_app: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: object) -> None:
        raise Exception("The current node timed out during startup.\nThis could happen because")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RayError, match=r"^Ray does not start with .*: The current node timed out during startup. This"):
        run_on_ray(mean_app.server_app, mean_app.client_app, run_config=RUN_CONFIG, clients=1)


def test_ray_refuses_unknown_init_args(mean_app: ModuleType) -> None:
    with pytest.raises(RayError, match=r"init_args=\{'cpus': 1\}: Unknown keyword"):
        run_on_ray(
            mean_app.server_app,
            mean_app.client_app,
            run_config=RUN_CONFIG,
            clients=1,
            backend_config={"init_args": {"cpus": 1}},
        )
