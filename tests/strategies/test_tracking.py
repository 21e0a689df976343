"""Whom a run tells of its rounds, and what it says when that cannot be."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clients.client_app import app as client_app
from experiments.engines.in_process import run_in_process
from snnfl.config import ConfigError, compose, flatten
from strategies import tracking
from strategies.run_directory import TENSORBOARD, read_metrics
from strategies.server_app import server_app


def run(directory, *overrides):
    small = ["data.clients=2", "training.epochs=1", "run.rounds=2", "conversion.steps=2", "evaluation.curve=[1]"]
    config = compose(None, [f"run.directory={directory}", "evaluation.images=20", *small, *overrides])
    run_in_process(server_app(), client_app, run_config=flatten(config), clients=2)
    return directory / "run"


def test_tensorboard_reads_what_metrics_hold(tmp_path):
    path = run(tmp_path, "run.tracking=tensorboard")
    events = EventAccumulator(str(path / TENSORBOARD)).Reload()
    rows = read_metrics(path)
    assert set(events.Tags()["scalars"]) == set(tracking.numbers(rows[-1])) - {"round"}
    for name in ("server_snn_accuracy", "bytes_up", "server_snn_accuracy_at/1"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(row["round"], pytest.approx(tracking.numbers(row)[name])) for row in rows]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_on_a_full_disk_tensorboard_costs_each_round_a_line(tmp_path, caplog):
    config = compose(None, ["run.tracking=tensorboard"])
    tracker = tracking.find_tracker(config)
    assert tracker is not None
    told = tracker.open(config, tmp_path, 1)
    (events,) = (tmp_path / TENSORBOARD).iterdir()
    kept = events.rename(tmp_path / "kept")
    events.symlink_to("/dev/full")
    told({"round": 1, "loss": 0.5})
    said = "round 1 is not tracked: run.tracking=tensorboard: OSError: [Errno 28] No space left on device"
    assert [record.getMessage() for record in caplog.records] == [f"{said}; metrics.jsonl has it"]
    kept.rename(events)
    told({"round": 2, "loss": 0.25})
    found = EventAccumulator(str(tmp_path / TENSORBOARD)).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in found] == [(2, 0.25)]


@pytest.mark.usefixtures("own_registries")
def test_another_tracker_is_one_decorator(tmp_path):
    told = []

    @tracking.register("notebook", package="json")
    def notebook(config, folder, first_round):
        told.append((config.run.name, folder, first_round))
        return told.append

    path = run(tmp_path, "run.tracking=notebook")
    rows = read_metrics(path)
    assert [row.pop("tracking") for row in rows] == [{"name": "notebook", "failed": None}] * len(rows)
    assert told == [("run", path, 1), *rows]
    with pytest.raises(ValueError, match="already registered"):
        tracking.register("notebook", package="json")(notebook)


@pytest.mark.usefixtures("own_registries")
def test_a_tracker_that_fails_costs_the_run_nothing_but_a_line(tmp_path, caplog):
    @tracking.register("offline", package="json")
    def offline(config, folder, first_round):
        def told(row):
            if row["round"] == 1:
                raise ConnectionError("no route\nto host")

        return told

    path = run(tmp_path, "run.tracking=offline")
    assert [row["round"] for row in read_metrics(path)] == [1, 2]
    lines = [record.getMessage() for record in caplog.records if "tracked" in record.getMessage()]
    reason = "run.tracking=offline: ConnectionError: no route to host"
    assert lines == [f"round 1 is not tracked: {reason}; metrics.jsonl has it"]
    reasons = [row["tracking"]["failed"] for row in read_metrics(path)]
    assert reasons == ["ConnectionError: no route to host", None]


@pytest.mark.usefixtures("own_registries")
@pytest.mark.parametrize(("answer", "part"), [(None, "found NoneType"), (KeyError("token"), "KeyError: 'token'")])
def test_a_tracker_that_does_not_start_is_one_line(tmp_path, answer, part):
    @tracking.register("broken", package="json")
    def broken(config, folder, first_round):
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.raises(ConfigError, match=r"run\.tracking=broken") as error:
        run(tmp_path, "run.tracking=broken")
    assert part in str(error.value)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("tensorbord", ["run.tracking=tensorbord", "did you mean 'tensorboard'"]),
        ("tensorboard", ["tensorboard is not installed", "pip install 'snnfl[tensorboard]'"]),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(tmp_path, monkeypatch, name, parts):
    monkeypatch.setattr(tracking, "find_spec", lambda package: None)
    assert importlib.util.find_spec("tensorboard") is not None
    with pytest.raises(ConfigError) as error:
        run(tmp_path, f"run.tracking={name}")
    assert all(part in str(error.value) for part in parts)
    assert len(str(error.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
