"""A run that began in this process and goes on in Ray's workers: nothing of it lives in memory alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from clients.client_app import app as client_app
from experiments.engines.in_process import run_in_process
from experiments.engines.ray import run_on_ray
from snnfl.config import compose, flatten
from strategies.run_directory import ANN_FILE, CLIENTS, SNN_FILE, read_metrics
from strategies.server_app import server_app

SMALL = ["data.clients=2", "model.name=mlp", "training.epochs=1", "conversion.steps=4"]


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_goes_on_on_another_engine(on_cluster: dict[str, Any], tmp_path: Path) -> None:
    ray = partial(run_on_ray, backend_config=on_cluster)
    for name, engine, overrides in (
        ("whole", run_in_process, ["run.rounds=3"]),
        ("parts", run_in_process, ["run.rounds=1"]),
        ("parts", ray, ["run.rounds=3", "run.resume=true"]),
    ):
        config = compose(None, [*SMALL, f"run.directory={tmp_path}", f"run.name={name}", *overrides])
        node = {"state-directory": str(tmp_path / name / CLIENTS)}
        engine(server_app(), client_app, run_config=flatten(config), clients=2, node_config=node)
    assert [row["round"] for row in read_metrics(tmp_path / "parts")] == [1, 2, 3]
    for file in (ANN_FILE, SNN_FILE):
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    written = list((tmp_path / "parts" / CLIENTS).rglob("round-000003.safetensors"))
    assert sorted(path.parent.name for path in written) == ["0", "1"]
