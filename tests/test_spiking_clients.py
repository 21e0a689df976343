"""Federations of networks that are trained as spiking ones: every strategy, wrapper, poisoning and ending."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import snnfl
from clients import client_app
from experiments.engines.in_process import run_in_process
from snnfl.config import Config, ConfigError, compose, flatten
from snnfl.data import Dataset
from snnfl.data import test_batches as batches_of
from snnfl.data.sources import register as register_source
from snnfl.models import SpikingModel
from snnfl.spiking.storage import NetworkFileError
from snnfl.spiking.storage import load as load_network
from snnfl.training import evaluate
from snnfl.workspace import EVALUATION, Workspace
from strategies import bases
from strategies.recorder import Row
from strategies.run_directory import ANN_FILE, SNN_FILE, node_folders, read_metrics
from strategies.server_app import server_app

CLIENTS = 5
SMALL = [
    "strategy.spiking=false", "model.neuron=lif", "model.time_steps=4", "model.name=mlp", "run.rounds=2",
    f"data.clients={CLIENTS}", "data.training_images=100", "data.test_images=40", "training.epochs=1",
    "training.batch_size=10", "training.optimizer=adam", "training.learning_rate=0.005",
]  # fmt: skip
"""A run of a quarter of a second: of two steps for each client and round, the second has something to stay near."""


def run(folder: Path, *overrides: str, observer: Callable[[Row], object] = lambda row: None) -> tuple[Config, Path]:
    """Play a small run; return its configuration and its folder."""
    config = compose(None, [*SMALL, f"run.directory={folder}", *overrides])
    path = folder / config.run.name
    nodes = {"clients": config.data.clients, "node_config": node_folders(path)}
    run_in_process(server_app(observer), client_app.app, run_config=flatten(config), **nodes)
    return config, path


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / SNN_FILE)


def same(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


LEARNED = ["model.learn_beta=true", "model.learn_threshold=true"]
SGD = ["training.optimizer=sgd", "training.learning_rate=0.05"]
FEW = {"bulyan": ["data.clients=8"], "fednova": SGD, "scaffold": SGD}
"""What some strategies need beside their name."""

PRIVATE = [[*LEARNED, f"privacy.mechanism={name}", "privacy.noise_multiplier=0.01"] for name in ("central", "local")]


@pytest.mark.parametrize(
    "overrides",
    [
        *([f"strategy.name={name}", *FEW.get(name, ()), *LEARNED] for name in bases.names()),
        *PRIVATE,
        ["model.name=lenet5", "model.neuron=rlif", "model.learn_beta=true", "model.learn_threshold=true"],
        ["model.neuron=alif", "model.readout=rate", "training.loss=per_step", "training.clip_norm=1"],
        ["model.neuron=if", "model.reset=zero", "model.reset_delay=false", "training.micro_batch=4"],
        ["model.name=lenet5", "model.pooling=max"],
        ["model.encoding=poisson", "model.readout=max_potential", "training.optimizer=adamw"],
        ["strategy.name=moon", "model.projection_head=true", "model.encoding=poisson", "training.loss=per_step"],
        ["model.name=convnet", "model.pooling=max"],
        ["strategy.fraction_evaluate=0.5", "model.neurons=head", "model.name=convnet", "data.augment=true"],
    ],
    ids=" ".join,
)
def test_every_combination_trains_and_is_measured_as_a_spiking_network(tmp_path: Path, overrides: list[str]) -> None:
    config, path = run(tmp_path, *overrides)
    rows = read_metrics(path)
    solo = config.strategy.name == "solo"
    assert [(row["failed"], row["refused"], row["aggregated"]) for row in rows] == [(0, 0, not solo)] * 2
    for row in rows:
        assert [row[f"{who}_ann_accuracy{what}"] for who, what in (("server", ""), ("client", "_mean"))] == [None, None]
        assert (row["server_snn_accuracy"] is None) == (config.strategy.name in ("solo", "fedbn"))
        assert (row["firing_rates"] is None) == (row["server_snn_accuracy"] is None)
        assert 0 <= row["client_snn_accuracy_mean"] <= 1
        assert row["seconds_convert"] == 0
    assert not (path / ANN_FILE).exists()
    assert (path / SNN_FILE).exists() != solo
    if rows[-1]["server_snn_accuracy"] is None:  # the server has no whole model
        return
    model = snnfl.load_run(path).snn()
    assert isinstance(model, SpikingModel)
    assert not model.training
    work = Workspace(config)
    with snnfl_drawing(work, model):
        found = evaluate(model, batches_of(work.dataset, config.evaluation.batch_size, 0)).accuracy
    assert found == rows[-1]["server_snn_accuracy"]


def snnfl_drawing(work: Workspace, model: SpikingModel):
    """Let a model draw as the run's evaluation does."""
    work.__dict__["model"] = model
    return work.drawing(EVALUATION)


@pytest.fixture
def sequences(own_registries: None) -> str:
    """A data set of a hundred recordings of two kinds: which half of the pixels is busier."""

    @register_source("moving_bars")
    def moving_bars(root: Path) -> Dataset:
        draw = torch.Generator().manual_seed(0)
        labels = torch.arange(120) % 2
        rates = torch.full((120, 6, 2, 8, 8), 0.2)
        rates[labels == 0, :, :, :4] = 1.5
        rates[labels == 1, :, :, 4:] = 1.5
        frames = torch.poisson(rates, generator=draw).to(torch.uint8)
        return Dataset(
            name="moving_bars", train_images=frames[:80], train_labels=labels[:80], test_images=frames[80:],
            test_labels=labels[80:], class_names=("up", "down"), mean=torch.zeros(2), std=torch.ones(2), sequence=True,
        )  # fmt: skip

    return "data.source=moving_bars"


@pytest.mark.parametrize("encoding", ["direct", "poisson", "delta"])
def test_recordings_with_time_steps_of_their_own(tmp_path: Path, sequences: str, encoding: str) -> None:
    options = [
        sequences,
        "model.time_steps=null",
        f"model.encoding={encoding}",
        "data.clients=3",
        "training.batch_size=10",
    ]
    _, path = run(tmp_path, *options, "data.training_images=0", "data.test_images=0", "run.rounds=3")
    row = read_metrics(path)[-1]
    assert row["server_snn_accuracy"] > 0.8
    assert (row["multiply_accumulates"] > 0) == (encoding == "direct"), "frames are real values, spikes are not"
    options += ["data.training_images=0", "data.test_images=0"]
    _, path = run(tmp_path, *options, "model.name=convnet", "run.name=images", "run.rounds=1")
    assert [(row["failed"], row["aggregated"]) for row in read_metrics(path)] == [(0, True)]
    with pytest.raises(ConfigError, match=r"model.time_steps=4: .* sequences of 6 steps, which count"):
        run(tmp_path, sequences, "data.training_images=0", "data.test_images=0", "run.name=other")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("model.surrogate=atam", "model.surrogate=atam: unknown surrogate gradient; did you mean 'atan'?"),
        ("model.encoding=poison", "model.encoding=poison: unknown encoding; did you mean 'poisson'?"),
        ("model.encoding=delta", "model.encoding=delta: it encodes sequences"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(tmp_path: Path, option: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        run(tmp_path, option)
    assert words in str(error.value)
    assert not [*tmp_path.iterdir()]


def test_noise_on_leaks_and_thresholds_leaves_aggregates_in_their_range(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    noisy = ["privacy.mechanism=central", "privacy.noise_multiplier=100", "privacy.noise_seed=0", *LEARNED]
    with caplog.at_level(logging.WARNING, "strategies.guarded"):
        _, path = run(tmp_path, *noisy, "run.rounds=4", "run.seed=2")
    found = weights(path)
    assert 0 <= found["relu1.beta"] <= 1
    assert found["relu1.threshold"] > 0
    # Of a threshold the logarithm is noised, so that no round is lost to one that isn't positive.
    assert all(row["aggregated"] for row in read_metrics(path))
    assert "isn't positive" not in caplog.text


def test_it_learns(tmp_path: Path) -> None:
    often = ["run.rounds=6", "data.training_images=0", "data.clients=4", "training.epochs=2", "training.batch_size=10"]
    _, path = run(tmp_path, *often)
    assert read_metrics(path)[-1]["server_snn_accuracy"] > 0.7


def test_one_seed_gives_one_result_whatever_the_encoding_draws(tmp_path: Path) -> None:
    paths = [
        run(tmp_path, "model.encoding=poisson", f"run.seed={seed}", f"run.name={name}")[1]
        for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    ]
    assert same(paths[0], paths[1])
    assert not same(paths[0], paths[2])


@pytest.mark.parametrize("overrides", [[], ["strategy.name=moon", "model.encoding=poisson"], ["strategy.name=fedadam"]])
def test_a_run_that_is_broken_off_goes_on_to_the_same_bits(tmp_path: Path, overrides: list[str]) -> None:
    def stop(row: Row) -> None:
        raise KeyboardInterrupt

    _, whole = run(tmp_path, "run.name=whole", *overrides)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "run.name=broken", *overrides, observer=stop)
    _, broken = run(tmp_path, "run.name=broken", "run.resume=true", *overrides)
    assert same(broken, whole)
    ours, theirs = ([row["server_snn_accuracy"] for row in read_metrics(path)] for path in (broken, whole))
    assert ours == theirs


@pytest.mark.parametrize("attack", ["badnets", "blended", "distributed", "label_flip", "model_replacement"])
def test_poisoning_by_data_and_its_detection(tmp_path: Path, attack: str) -> None:
    learned = ["model.learn_threshold=true", "model.learn_beta=true", "poisoning.target=7"]
    detectors = "detection.detectors=[norm,cosine,krum,hdbscan,thresholds,log_thresholds]"
    learned += ["poisoning.trigger_size=3"] if attack == "distributed" else []
    _, path = run(tmp_path, f"poisoning.attack={attack}", detectors, "model.name=lenet5", *learned)
    last = read_metrics(path)[-1]
    assert last["refused"] == 0
    assert last["attack_success_ann"] is None
    assert 0 <= last["attack_success_snn"] <= 1
    scores = last["detection"]["thresholds"]["scores"].values()
    assert len(set(scores)) > 1


def test_learned_thresholds_can_be_forged_and_others_are_none(tmp_path: Path) -> None:
    forge = ["poisoning.attack=badnets", "poisoning.forge_thresholds=true"]
    with pytest.raises(ConfigError, match=r"upload no thresholds .*model.learn_threshold=true"):
        compose(None, [*SMALL, *forge])
    _, path = run(tmp_path, *forge, "model.name=lenet5", "model.learn_threshold=true")
    assert read_metrics(path)[-1]["refused"] == 0
    with pytest.raises(ConfigError, match=r"detector thresholds: .* model.learn_threshold=true"):
        run(tmp_path, "detection.detectors=[thresholds]", "run.name=none")


def test_an_audit_records_and_every_attack_says_what_it_does_not_repeat(tmp_path: Path) -> None:
    _, path = run(tmp_path, "audit.record=true", "audit.ground_truth=true", "model.name=lenet5")
    found = snnfl.audit(path, progress=False)
    assert found.entries
    assert {entry["verdict"] for entry in found.entries} == {"refused"}
    reasons = {entry["verdict_text"] for entry in found.entries}
    assert all("training.optimizer=adam" in reason for reason in reasons), reasons


@pytest.mark.parametrize("option", ["training.optimizer=adam", "training.micro_batch=4"], ids=str)
def test_no_attack_takes_other_training_for_plain_sgd(tmp_path: Path, option: str) -> None:
    plain = ["model.neuron=relu", "model.time_steps=null", "model.name=lenet5", "training.optimizer=sgd"]
    for spiking in ("false", "true"):
        name = f"run.name={spiking}"
        _, path = run(tmp_path, *plain, option, "audit.record=true", f"strategy.spiking={spiking}", name)
        found = snnfl.audit(path, progress=False, iterations=1)
        assert {entry["verdict"] for entry in found.entries} == {"refused"}
        assert all(option in entry["verdict_text"] for entry in found.entries)


def test_weights_go_on_where_another_run_ended(tmp_path: Path) -> None:
    _, path = run(tmp_path)
    _, again = run(tmp_path, f"model.weights={path / SNN_FILE}", "run.name=again", "training.learning_rate=1e-9")
    before, after = weights(path), weights(again)
    trained = [name for name in before if ".running_" not in name]
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in trained)


def test_the_file_says_how_it_is_read(tmp_path: Path) -> None:
    _, path = run(tmp_path)
    with pytest.raises(NetworkFileError, match=r"trained as a spiking one; snnfl.load_run\(FOLDER\).snn\(\)"):
        load_network(path / SNN_FILE)
    with pytest.raises(ConfigError, match=r"no final_ann\.safetensors: .*model\.neuron=lif\); take snn\(\)"):
        snnfl.load_run(path).ann()


def test_an_update_whose_threshold_is_not_positive_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(self: Workspace) -> None:
        self.arrays["relu1.threshold"].fill_(-1.0)

    monkeypatch.setattr(Workspace, "settle", spoil)
    with caplog.at_level(logging.WARNING):
        _, path = run(tmp_path, "model.learn_threshold=true", "run.rounds=1")
    assert read_metrics(path)[-1]["refused"] == CLIENTS
    assert "relu1.threshold: expected positive values, the smallest is -1" in caplog.text


def test_each_round_says_what_the_neurons_do_and_warns_once_of_those_that_tell_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def said() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "strategies.recorder"]

    with caplog.at_level(logging.WARNING, "strategies.recorder"):
        _, path = run(tmp_path, "run.name=well")
        assert said() == []
        for row in read_metrics(path):
            assert row["firing_rates"].keys() == {"relu1"}
            assert 0 < row["firing_rate"] < 1
            assert row["synaptic_operations"] > 0
            assert row["nanojoules_with_memory"] > row["nanojoules"] > 0
        silent = ["model.threshold=1000000", "run.name=silent", "model.batch_norm=false", "model.name=lenet5"]
        run(tmp_path, *silent)
        _, path = run(tmp_path, *silent, "run.resume=true", "run.rounds=3")
        assert [line.split()[0] for line in said()] == [f"relu{number}" for number in (1, 2, 3, 4)]
    assert [row["synaptic_operations"] for row in read_metrics(path)] == [0] * 3


@pytest.mark.parametrize("name", ["fedbn", "solo"])
def test_no_activity_is_measured_where_the_server_holds_no_whole_network(tmp_path: Path, name: str) -> None:
    """The resident model then holds what a client has trained, batch normalisation included."""
    _, path = run(tmp_path, f"strategy.name={name}")
    assert [(row["firing_rates"], row["nanojoules"]) for row in read_metrics(path)] == [(None, None)] * 2


STUDY = """
name: three
options: {run.rounds: 1, run.directory: DIRECTORY, data.clients: 3, data.training_images: 90, data.test_images: 40,
          training.epochs: 1, model.name: mlp, conversion.steps: 4}
matrix:
  trained:
    ANN: {strategy.spiking: false}
    converted: {strategy.spiking: true}
    native: {strategy.spiking: false, model.neuron: lif, model.time_steps: 4}
seeds: [0]
tables:
  - {title: Accuracy, value: accuracy}
  - {title: Energy, value: energy, columns: network}
energy: {images: 4}
"""


@pytest.mark.slow
@pytest.mark.usefixtures("python_is_forked")
def test_a_study_compares_an_ann_a_converted_and_a_native_network(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.replace("DIRECTORY", str(tmp_path)))
    study = snnfl.compare(file, jobs=1, progress=False)
    found = {(entry["table"], entry["row"]): entry["mean"] for entry in study.tables}
    accuracies = {row: mean for (table, row), mean in found.items() if table == "Accuracy"}
    assert accuracies.keys() == {"ANN", "converted", "native"}
    native = next(run for name, run in study.runs.items() if "native" in name)
    assert accuracies["native"] == native.metrics[-1]["server_snn_accuracy"]
    assert {row for table, row in found if table == "Energy"} == {"converted", "native"}
