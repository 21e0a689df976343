"""Runs that train with quantised activations: in S- and plain runs, with every kind of strategy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clients import client_app
from experiments.engines.in_process import run_in_process
from snnfl.config import Config, ConfigError, compose, flatten
from snnfl.spiking import load
from snnfl.training import exchangeable
from snnfl.workspace import Workspace
from strategies.run_directory import ANN_FILE, SNN_FILE, read_metrics
from strategies.server_app import server_app


def configuration(directory: Path, *overrides: str) -> Config:
    small = ["data.clients=3", "run.rounds=2", "training.epochs=1", "data.training_images=300", "evaluation.images=50"]
    learning = ["training.activation=qcfs", "training.learning_rate=0.05", "model.name=lenet5"]
    few = ["conversion.steps=4", "conversion.signed=true", "conversion.burst=2", "conversion.initial_potential=half"]
    return compose(None, [f"run.directory={directory}", *small, *learning, *few, *overrides])


@pytest.mark.flwr
@pytest.mark.parametrize(
    "overrides",
    [
        ("strategy.name=fedavg",),
        ("strategy.name=fedprox", "strategy.spiking=false"),
        ("strategy.name=moon", "model.projection_head=true", "conversion.thresholds=channel_mmse"),
        ("strategy.name=fedadam", "strategy.server_learning_rate=0.5"),
    ],
    ids=lambda overrides: overrides[0],
)
def test_thresholds_are_learned_aggregated_and_positive(overrides, tmp_path):
    config = configuration(tmp_path, *overrides)
    run_in_process(server_app(), client_app.app, run_config=flatten(config), clients=config.data.clients)
    folder = tmp_path / config.run.name
    learned = {name: array for name, array in load_file(folder / ANN_FILE).items() if name.endswith(".threshold")}
    start = Workspace(config).initial_state
    assert len(learned) >= 4
    for name, array in learned.items():
        assert array.shape == (1,)
        assert not torch.equal(array, start[name])
    if config.strategy.spiking:
        network = load(folder / SNN_FILE)
        assert {*network.graph.learned_thresholds} == {*learned} & network.parameters.keys()
        assert all(bool((array > 0).all()) for array in network.thresholds.values())
        assert len(read_metrics(folder)) == 2


def test_an_update_without_a_positive_learned_threshold_does_not_fit(tmp_path):
    for spiking in ("true", "false"):
        work = Workspace(configuration(tmp_path, f"strategy.spiking={spiking}", "conversion.thresholds=channel_mmse"))
        spec = work.format.specs["relu1.threshold"]
        assert spec.shape == (1,)
        assert work.format.sent_specs["relu1.threshold"].values == "positive"
        assert spec.mistake(torch.tensor([-0.5])) is not None
        assert spec.mistake(torch.tensor([float("inf")])) is not None
        assert spec.mistake(torch.tensor([0.5])) is None


def test_what_a_client_uploads_comes_back_as_its_ann(tmp_path):
    work = Workspace(configuration(tmp_path))
    images = work.dataset.normalise(work.dataset.train_images[:16])
    state = work.initial_state
    decoded = work.format.decode(work.format.encode(state, images), state)
    for name in work.graph.learned_thresholds:
        assert torch.equal(decoded[name], state[name])
    assert {*decoded} == {*work.format.sent_specs}


def test_a_run_starts_from_a_relu_network_or_from_one_that_has_learned_thresholds(tmp_path):
    relu = Workspace(configuration(tmp_path, "training.activation=relu"))
    save_file({name: array.contiguous() for name, array in relu.arrays.items()}, tmp_path / "relu.safetensors")
    work = Workspace(configuration(tmp_path, f"model.weights={tmp_path}/relu.safetensors", "run.seed=9"))
    for name, array in relu.arrays.items():
        assert torch.equal(array, work.arrays[name])
    work.arrays["relu1.threshold"].fill_(0.75)
    save_file({name: array.contiguous() for name, array in work.arrays.items()}, tmp_path / "qcfs.safetensors")
    again = Workspace(configuration(tmp_path, f"model.weights={tmp_path}/qcfs.safetensors"))
    assert {name: array.tolist() for name, array in exchangeable(again.model).items()} == {
        name: array.tolist() for name, array in work.arrays.items()
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("training.activation=relu", "training.levels=4"), "training.levels=4: training.activation=relu has none"),
        (("quantization.activations=4",), "training.activation=qcfs quantises them already"),
        (("model.neuron=lif", "strategy.spiking=false"), "training.activation=qcfs: quantises ReLUs"),
    ],
)
def test_what_quantised_activations_contradict_is_refused(overrides, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        configuration(tmp_path, *overrides)
