"""The server app: from a configuration to a strategy, and what goes wrong before anything is sent or written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import Krum

from clients import client_app
from experiments.engines.in_process import run_in_process
from snnfl.config import ConfigError, compose, flatten
from snnfl.conversion import exposed_biases
from snnfl.workspace import Workspace
from strategies.guarded import Guarded
from strategies.population import PopulationError
from strategies.run_directory import ANN_FILE
from strategies.server_app import app, build_strategy, run, server_app
from strategies.spiking import Spiking


def test_stragglers_stay_away_and_the_run_goes_on(tmp_path: Path) -> None:
    small = ["data.clients=4", "run.rounds=6", "training.epochs=1", "strategy.spiking=false", "evaluation.images=10"]
    replies = []
    for name in ("one", "two"):
        options = [f"run.directory={tmp_path}", f"run.name={name}", "strategy.participation=0.3", *small]
        rows: list[Any] = []
        run_in_process(server_app(rows.append), client_app.app, run_config=flatten(compose(None, options)), clients=4)
        replies.append([row["replies"] for row in rows])
    assert replies[0] == replies[1]
    assert 0 in replies[0]
    assert any(replies[0])
    one, two = ((tmp_path / name / ANN_FILE).read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_robust_s_run_aggregates_its_spiking_network_likewise() -> None:
    for name, expected in (("krum", Krum), ("fedadam", type(None))):
        strategy, _ = build_strategy(Workspace(compose(None, [f"strategy.name={name}"])))
        assert isinstance(strategy, Spiking)
        assert type(strategy.network_base) is expected
        assert strategy.network_base is not strategy.base
        assert strategy.minimum_replies == (5 if name == "krum" else 1)


@pytest.mark.parametrize("bias_back", [True, False])
def test_an_s_run_starts_without_biases_unless_they_come_back(bias_back: bool) -> None:
    config = compose(None, [f"strategy.bias_back={bias_back}", "run.seed=3", "strategy.minimum_replies=2"])
    work = Workspace(config)
    strategy, arrays = build_strategy(work)
    assert isinstance(strategy, Spiking)
    assert (strategy.format.bias_back, strategy.seed, strategy.minimum_replies) == (bias_back, 3, 2)
    assert strategy.format.conversion == config.conversion
    biases = {"fc3.bias", "fc4.bias", "fc5.bias"}
    assert work.initial_state.keys() - arrays.keys() == (set() if bias_back else biases)
    assert all(torch.equal(torch.from_numpy(a.numpy()), work.initial_state[name]) for name, a in arrays.items())


def test_a_plain_run_starts_with_everything() -> None:
    work = Workspace(compose(None, ["strategy.spiking=false", "run.seed=3", "strategy.minimum_replies=2"]))
    strategy, arrays = build_strategy(work)
    assert type(strategy) is Guarded
    assert (strategy.seed, strategy.minimum_replies) == (3, 2)
    assert arrays.keys() == work.initial_state.keys() == strategy.spec.arrays.keys()


def test_the_flower_app_ends_with_who_started_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    watching: list[bool] = []
    monkeypatch.setattr("strategies.server_app.end_in_good_order", lambda: watching.append(True))
    with pytest.raises(ConfigError):
        run_in_process(app, client_app.app, run_config={"no.such": "option"}, clients=1)
    assert watching == [True]


def test_the_flower_app_is_the_server_app() -> None:
    assert isinstance(app, ServerApp)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("strategy.name=fedavgg", r"strategy.name=fedavgg: unknown strategy; did you mean 'fedavg'"),
        ("model.name=lenet", r"model.name=lenet"),
        ("data.source=digit", r"data.source=digit"),
        ("run.device=cuda:99", r"run.device=cuda:99: not available on this machine"),
        ("data.clients=2000", r"data.clients=2000"),
        ("model.name=mlp training.batch_size=1", r"training.batch_size=1: norm1 of model.name=mlp cannot"),
        ("strategy.name=krum strategy.weighting=uniform", r"strategy.weighting=uniform: strategy.name=krum doesn't"),
        ("data.partition=quantity data.beta=0.02", r"data.minimum_samples=10: none of .*; take data.beta=0.1"),
    ],
)
def test_a_configuration_that_cannot_run_is_an_error_before_anything_is_sent(
    tmp_path: Path, scripted: Callable[..., Any], override: str, message: str
) -> None:
    grid = scripted([2], lambda message: Message(RecordDict(), reply_to=message))
    config = compose(None, [f"run.directory={tmp_path}", "strategy.timeout=1", *override.split()])
    with pytest.raises(ConfigError, match=message):
        run(grid, config)
    assert not grid.asked
    assert not list(tmp_path.iterdir())


def test_nodes_that_do_not_fit_leave_no_folder(tmp_path: Path) -> None:
    config = compose(None, [f"run.directory={tmp_path}", "data.clients=3"])
    with pytest.raises(PopulationError, match=r"the grid holds 4 partitions, but data.clients=3"):
        run_in_process(server_app(), client_app.app, run_config=flatten(config), clients=4)
    assert not list(tmp_path.iterdir())


def test_an_earlier_run_is_found_before_training(tmp_path: Path) -> None:
    config = compose(None, [f"run.directory={tmp_path}", "data.clients=2", "run.rounds=1", "training.epochs=1"])
    rows: list[Any] = []
    run_in_process(server_app(rows.append), client_app.app, run_config=flatten(config), clients=2)
    with pytest.raises(ConfigError, match="holds an earlier run"):
        run_in_process(server_app(rows.append), client_app.app, run_config=flatten(config), clients=2)
    assert len(rows) == 1


@pytest.mark.parametrize(
    ("overrides", "exposed"),
    [
        (["conversion.calibration=bias"], ()),
        (["conversion.calibration=none"], ("fc3", "fc4", "fc5")),
        (["conversion.calibration=time_bias", "model.batch_norm=false"], ("conv1", "conv2", "fc3", "fc4", "fc5")),
    ],
)
def test_biases_that_no_calibration_shifts_are_named(overrides, exposed, caplog):
    work = Workspace(compose(None, overrides))
    found = exposed_biases(work.graph, work.config.conversion.calibration, work.initial_state, work.dataset.input_shape)
    assert found == exposed
    build_strategy(work)
    lines = [record.getMessage() for record in caplog.records if record.name == "strategies.server_app"]
    assert len(lines) == bool(exposed)
    assert all(name in line for line in lines for name in exposed)
