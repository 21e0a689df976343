"""What is measured after a round, against direct computations."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from safetensors.torch import load_file

from clients import client_app
from experiments.engines.in_process import run_in_process
from snnfl.config import Config, compose, flatten
from snnfl.data import test_batches
from snnfl.spiking import load
from snnfl.training import evaluate, load_arrays, private_biases
from snnfl.workspace import Workspace
from strategies.lock import LOCK_FILE
from strategies.recorder import Recorder, Row, client_columns
from strategies.run_directory import (
    ANN_FILE,
    CHECKPOINTS,
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    FIGURE_FILES,
    SNN_FILE,
    read_metrics,
)
from strategies.server_app import server_app
from strategies.update import Update

CLIENTS = 4

KEYS = {
    "round",
    "server_snn_accuracy",
    "server_ann_accuracy",
    "client_ann_accuracy_mean",
    "client_ann_accuracy_std",
    "client_snn_accuracy_mean",
    "client_snn_accuracy_std",
    "train_loss",
    "bytes_up",
    "bytes_down",
    "seconds_train",
    "seconds_convert",
    "seconds_client_evaluate",
    "seconds_exchange",
    "seconds_aggregate",
    "seconds_server_evaluate",
    "seconds_round",
    "server_snn_accuracy_at",
    # beyond what is asked for
    "client_received_accuracy_mean",
    "client_received_accuracy_std",
    "client_received_accuracy_weighted",
    "client_received_loss_weighted",
    "attack_success_snn",
    "attack_success_ann",
    "detection",
    "excluded",
    "replies",
    "refused",
    "failed",
    "aggregated",
    "learning_rate",
    "test_images",
    "asked",
    "faults",
    "absent",
    "firing_rates",
    "firing_rate",
    "synaptic_operations",
    "multiply_accumulates",
    "nanojoules",
    "nanojoules_with_memory",
    "epsilon",
    "epsilon_empirical",
    "noise_multiplier",
    "clipping_norm",
    "states_lost",
}


class Clients(ClientApp):
    """The client app; notes train replies by round, and fails or spoils replies where it is told to."""

    def __init__(self, spoil: dict[tuple[int, int], str] | None = None) -> None:
        super().__init__()
        self.spoil = spoil or {}
        self.replies: dict[int, list[Message]] = {}

    def __call__(self, message: Message, context: Context) -> Message:
        reply = client_app.app(message, context)
        if message.metadata.message_type != "train":
            return reply
        server_round = int(message.content["config"]["server-round"])
        action = self.spoil.get((server_round, int(context.node_config["partition-id"])))
        if action == "fail":
            return Message(Error(0, "no luck"), reply_to=message)
        if action == "spoil":
            reply.content["metrics"]["num-examples"] = 0
        self.replies.setdefault(server_round, []).append(reply)
        return reply


def run(directory: Path, *overrides: str, clients: ClientApp = client_app.app) -> tuple[Config, list[Row], Path]:
    small = [f"data.clients={CLIENTS}", "training.epochs=2", "conversion.steps=8", "run.rounds=2"]
    small.append("data.training_images=480")
    config = compose(None, [f"run.directory={directory}", "data.partition=dirichlet", *small, *overrides])
    rows: list[Row] = []
    run_in_process(server_app(rows.append), clients, run_config=flatten(config), clients=CLIENTS)
    path = directory / "run"
    assert rows == read_metrics(path)
    return config, rows, path


def test_an_s_run_is_recorded_as_it_was(tmp_path: Path) -> None:
    clients = Clients()
    options = ("evaluation.images=50", "conversion.initial_potential=half", "evaluation.curve=[16,1,8]")
    config, rows, path = run(tmp_path, *options, clients=clients)
    work = Workspace(config)
    assert [row["round"] for row in rows] == [1, 2]
    assert all(row.keys() == KEYS for row in rows)
    assert [row["test_images"] for row in rows] == [50, 360]

    # The server's accuracies are those of the network in the file, on the whole test set.
    network = load(path / SNN_FILE)
    assert network.initial_potential == "half"
    [(images, labels)] = test_batches(work.dataset, 1000)
    hits = network.simulate(images, steps=8)[8].argmax(1) == labels
    assert rows[-1]["server_snn_accuracy"] == hits.double().mean().item()
    assert set(rows[-1]["server_snn_accuracy_at"]) == {"1", "8", "16"}
    assert rows[-1]["server_snn_accuracy_at"]["8"] == rows[-1]["server_snn_accuracy"]
    for length in (1, 16):  # as if it were simulated for this length alone
        hits = network.simulate(images, steps=length)[length].argmax(1) == labels
        assert rows[-1]["server_snn_accuracy_at"][str(length)] == hits.double().mean().item()
    assert rows[-1]["server_ann_accuracy"] == (network.analog(images).argmax(1) == labels).double().mean().item()

    # The clients' columns are those of their replies.
    for row in rows:
        metrics = [reply.content["metrics"] for reply in clients.replies[row["round"]]]
        accuracies = [m["accuracy"] for m in metrics]
        mean = sum(accuracies) / CLIENTS
        assert row["client_ann_accuracy_mean"] == pytest.approx(mean)
        variance = sum((accuracy - mean) ** 2 for accuracy in accuracies) / CLIENTS
        assert row["client_ann_accuracy_std"] == pytest.approx(math.sqrt(variance))
        examples = sum(m["num-examples"] for m in metrics)
        assert examples == len(work.dataset.train_labels)
        assert row["train_loss"] == pytest.approx(sum(m["num-examples"] * m["loss"] for m in metrics) / examples)
        assert row["bytes_up"] == sum(
            len(array.data) for reply in clients.replies[row["round"]] for array in reply.content["arrays"].values()
        )
        state = {name: array for name, array in work.initial_state.items() if name not in private_biases(work.model)}
        assert row["bytes_down"] == CLIENTS * sum(128 + array.nbytes for array in state.values())
        for phase in ("train", "convert"):
            assert row[f"seconds_{phase}"] == pytest.approx(sum(m[f"seconds-{phase}"] for m in metrics))
        assert row["seconds_client_evaluate"] == pytest.approx(sum(m["seconds-evaluate"] for m in metrics))
        assert 0 < row["seconds_exchange"] < row["seconds_round"]
        assert (row["replies"], row["refused"], row["failed"]) == (CLIENTS, 0, 0)

    assert load_file(path / ANN_FILE).keys() == state.keys()  # no biases
    expected = {
        CONFIG_FILE,
        ENVIRONMENT_FILE,
        "metrics.jsonl",
        ANN_FILE,
        SNN_FILE,
        *FIGURE_FILES,
        CHECKPOINTS,
        LOCK_FILE,
    }
    assert {entry.name for entry in path.iterdir()} == expected
    assert compose(path / CONFIG_FILE) == config


def test_a_plain_run_is_recorded_as_it_was(tmp_path: Path) -> None:
    clients = Clients()
    config, rows, path = run(tmp_path, "strategy.spiking=false", "strategy.fraction_evaluate=1.0", clients=clients)
    work = Workspace(config)
    load_arrays(work.model, load_file(path / ANN_FILE))
    result = evaluate(work.model, test_batches(work.dataset, 256))
    last = rows[-1]
    assert all(row.keys() == KEYS for row in rows)
    assert (last["server_snn_accuracy"], last["server_ann_accuracy"]) == (None, result.accuracy)
    # Every client evaluates the model that the server has.
    assert last["client_received_accuracy_mean"] == pytest.approx(result.accuracy)
    assert last["client_received_accuracy_std"] == pytest.approx(0.0)
    assert last["seconds_convert"] == 0
    assert set(private_biases(work.model)) <= load_file(path / ANN_FILE).keys()
    assert not (path / SNN_FILE).exists()
    arrays = sum(128 + array.nbytes for array in work.initial_state.values())
    assert last["bytes_up"] == CLIENTS * arrays
    assert last["bytes_down"] == 2 * CLIENTS * arrays  # to train and to evaluate


def test_without_client_evaluation_the_accuracies_are_null(tmp_path: Path) -> None:
    _, rows, _ = run(tmp_path, "evaluation.clients=false", "run.rounds=1")
    assert rows[0].keys() == KEYS
    assert [rows[0][f"client_ann_accuracy_{what}"] for what in ("mean", "std")] == [None, None]
    assert rows[0]["seconds_client_evaluate"] == 0
    assert rows[0]["train_loss"] > 0


@pytest.mark.filterwarnings("error")
def test_a_round_without_valid_replies_is_recorded_with_nulls(tmp_path: Path) -> None:
    spoiled = {(1, partition): "spoil" if partition % 2 else "fail" for partition in range(CLIENTS)}
    _, rows, path = run(tmp_path, clients=Clients({**spoiled, (2, 0): "fail"}))
    first, second = rows
    nulls = ("server_snn_accuracy", "server_ann_accuracy", "client_ann_accuracy_mean", "train_loss")
    assert [first[key] for key in nulls] == [None] * 4
    counted = ("replies", "refused", "failed", "aggregated")
    assert [first[key] for key in counted] == [0, 2, 2, False]
    assert [second[key] for key in counted] == [3, 0, 1, True]
    assert None not in [second[key] for key in nulls]
    assert (path / SNN_FILE).exists()


def test_a_run_without_any_valid_reply_keeps_the_initial_weights(tmp_path: Path) -> None:
    spoiled = {(n, partition): "fail" for n in (1, 2) for partition in range(CLIENTS)}
    config, rows, path = run(tmp_path, clients=Clients(spoiled))
    assert [row["replies"] for row in rows] == [0, 0]
    initial = Workspace(config).initial_state
    final = load_file(path / ANN_FILE)
    assert len(final) == 13
    assert all(torch.equal(array, initial[name]) for name, array in final.items())
    assert not (path / SNN_FILE).exists()


def test_too_few_replies_keep_the_network(tmp_path: Path) -> None:
    clients = Clients({(2, 0): "fail"})
    _, rows, _ = run(tmp_path, f"strategy.minimum_replies={CLIENTS}", clients=clients)
    assert rows[1]["server_snn_accuracy"] == rows[0]["server_snn_accuracy"]
    assert (rows[1]["replies"], rows[1]["train_loss"], rows[1]["aggregated"]) == (0, None, False)


def test_columns_of_given_reports() -> None:
    def update(examples: int, loss: float, accuracy: float | None, seconds: float) -> Update:
        metrics = {"num-examples": examples, "loss": loss, "seconds-train": seconds, "snn-accuracy": loss / 8 + 1 / 8}
        return Update(arrays={}, metrics=metrics if accuracy is None else {**metrics, "accuracy": accuracy})

    report = SimpleNamespace(
        updates=(update(10, 1.0, 0.5, 2.0), update(30, 3.0, 0.9, 0.5), update(1, 5.0, None, 0.25)),
        evaluations=(
            {"accuracy": 0.2, "loss": 3.0, "num-examples": 30.0},
            {"accuracy": 0.6, "loss": 1.0, "num-examples": 10.0},
        ),
        refused=1,
        failed=2,
        excluded=3,
        aggregated=True,
        summed=False,
    )
    assert client_columns(SimpleNamespace(report=report)) == pytest.approx(
        {
            "client_ann_accuracy_mean": 0.7,
            "client_ann_accuracy_std": 0.2,
            "client_snn_accuracy_mean": 0.5,
            "client_snn_accuracy_std": math.sqrt(1 / 24),
            "client_received_accuracy_mean": 0.4,
            "client_received_accuracy_std": 0.2,
            "client_received_accuracy_weighted": 0.3,
            "client_received_loss_weighted": 2.5,
            "train_loss": (10 + 90 + 5) / 41,
            "replies": 3,
            "refused": 1,
            "failed": 2,
            "excluded": 3,
            "aggregated": True,
            "seconds_train": 2.75,
            "seconds_convert": 0.0,
            "seconds_client_evaluate": 0.0,
        }
    )
    report.summed = True
    sums = client_columns(SimpleNamespace(report=report))
    assert (sums["client_ann_accuracy_mean"], sums["client_ann_accuracy_std"]) == (pytest.approx(0.7), None)
    assert sums["client_received_accuracy_std"] == pytest.approx(0.2)  # replies to evaluate messages aren't masked


@pytest.mark.parametrize(("clip", "said"), [(0.8, False), (1.5, True)])
def test_a_layer_that_quantisation_mutes_gets_no_advice_that_cannot_help(clip, said):
    config = compose(
        {"model": {"neuron": "lif"}, "strategy": {"spiking": False}, "quantization": {"potentials": 4, "clip": clip}}
    )
    warned = Recorder._warning(SimpleNamespace(work=SimpleNamespace(config=config)), "relu1", 0.0)
    assert (warned is not None) is said
