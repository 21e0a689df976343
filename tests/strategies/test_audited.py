"""An audit changes no bit of a run, keeps what the server saw and attacks it live."""

from __future__ import annotations

import json

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian
from safetensors.torch import load_file

from clients.client_app import app as client_app
from experiments.engines.in_process import run_in_process
from snnfl.auditing.recording import read_recording, read_truth
from snnfl.auditing.victims import Scope, setting_of, victims_of
from snnfl.config import AuditConfig, compose, flatten
from snnfl.threat import ThreatModelError
from snnfl.training import private_biases
from snnfl.updates import ArraySpec
from snnfl.workspace import Workspace
from strategies.audited import Audited
from strategies.population import Population
from strategies.run_directory import node_folders, read_metrics, run_path
from strategies.server_app import server_app
from strategies.update import UpdateSpec

METRICS = ("num-examples", "loss", "accuracy", "seconds-train")

SMALL = [
    "data.clients=500", "data.minimum_samples=1", "strategy.fraction_train=0.006", "run.rounds=2", "training.epochs=1",
    "training.batch_size=4", "training.momentum=0", "training.weight_decay=0", "conversion.steps=4",
    "evaluation.clients=false", "evaluation.images=20",
]  # fmt: skip
FULL = ["audit.record=true", "audit.ground_truth=true"]


def run(tmp_path, name, *options):
    config = compose(overrides=[*SMALL, f"run.directory={tmp_path}", f"run.name={name}", *options])
    path = run_path(config)
    run_in_process(
        server_app(),
        client_app,
        run_config=flatten(config),
        clients=config.data.clients,
        node_config=node_folders(path),
    )
    return config, path


@pytest.mark.parametrize(
    ("spiking", "name", "secure"),
    [
        ("true", "fedavg", "false"), ("false", "fedavg", "false"), ("true", "moon", "false"),
        ("false", "fedadam", "false"), ("false", "fedavg", "true"),
    ],
)  # fmt: skip
def test_an_audit_changes_no_bit(tmp_path, spiking, name, secure):
    of_both = [f"strategy.spiking={spiking}", f"strategy.name={name}", f"strategy.secure_aggregation={secure}"]
    _, plain = run(tmp_path, "plain", *of_both)
    attack = "snn_naive" if spiking == "true" else "inverting_gradients"
    options = [*of_both, *FULL, f"audit.attacks=[{attack}]", "audit.iterations=2"]
    _, audited = run(tmp_path, "audited", *options)
    first, second = (load_file(path / "final_ann.safetensors") for path in (plain, audited))
    assert all(torch.equal(first[name], second[name]) for name in first)
    unequal = {"seconds_train", "seconds_convert", "seconds_client_evaluate", "seconds_aggregate"}
    for ours, theirs in zip(read_metrics(plain), read_metrics(audited), strict=True):
        assert [ours[k] for k in ours if "seconds" not in k] == [theirs[k] for k in theirs if "seconds" not in k]
    assert unequal <= read_metrics(plain)[0].keys()
    entry = json.loads((audited / "audit/round-000002.json").read_text())[0]
    assert entry["attack"] == attack
    assert entry["victims"] == 3


@pytest.mark.parametrize("kind", [FedAvg, FedAdam, FedMedian])
def test_any_strategy_of_flower_is_recorded_and_not_disturbed(tmp_path, scripted, update_reply, kind):
    """Without a guard around it: what is recorded is what the messages held."""
    spec = UpdateSpec(arrays={"w": ArraySpec(shape=(2, 3))}, metrics=frozenset(METRICS))
    at_least_one = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
    population = Population(scripted([17, 904], lambda message: message), partitions={17: 5, 904: 2})

    def played(strategy):
        arrays, travelled = ArrayRecord({"w": torch.arange(6.0).view(2, 3)}), []
        for server_round in (1, 2):
            messages = list(strategy.configure_train(server_round, arrays, ConfigRecord(), population))
            replies = [update_reply({"w": torch.full((2, 3), float(node))}, node) for node in (17, 904)]
            refused = update_reply({"w": torch.full((2, 2), 9.0)}, 904)
            travelled.append(messages[0].content["arrays"].to_torch_state_dict()["w"])
            if isinstance(strategy, Audited):
                strategy._receiving(server_round, refused)  # a strategy without a guard would stumble over it
            arrays, _ = strategy.aggregate_train(server_round, replies)
        return arrays, travelled

    expected, travelled = played(kind(**at_least_one))
    found, _ = played(Audited(kind(**at_least_one), tmp_path, AuditConfig(), spec))
    assert torch.equal(found.to_torch_state_dict()["w"], expected.to_torch_state_dict()["w"])
    recorded = {(r.server_round, r.partition): r.exchange for r in read_recording(tmp_path)}
    assert recorded.keys() == {(1, 2), (1, 5), (2, 2), (2, 5)}
    for (server_round, partition), exchange in recorded.items():
        assert torch.equal(exchange.sent["w"], travelled[server_round - 1])
        assert torch.equal(exchange.received["w"], torch.full((2, 3), {5: 17.0, 2: 904.0}[partition]))
    assert not torch.equal(*travelled)


def test_the_recording_holds_what_travelled_and_not_the_biases(tmp_path):
    config, path = run(tmp_path, "s", *FULL)
    work = Workspace(config)
    _ = work.initial_state
    recorded = list(read_recording(path / "audit"))
    assert len(recorded) == 6
    assert not any(name in private_biases(work.model) for name in recorded[0].exchange.sent)
    for received in recorded:
        truth = read_truth(path / "audit/truth", received.server_round, received.partition)
        assert set(truth.biases) == set(truth.trained_biases) == set(private_biases(work.model))
        assert any(
            not torch.equal(truth.biases[name], truth.trained_biases[name]) for name in private_biases(work.model)
        )
        indices = work.partitions[received.partition]
        assert torch.equal(truth.labels, work.dataset.train_labels[indices])
        assert float(truth.images.max()) <= 1
        if received.server_round == 1:  # before its first training a client has the common initial biases
            assert all(torch.equal(truth.biases[name], work.initial_state[name]) for name in private_biases(work.model))


def test_nobody_tells_the_truth_without_consent(tmp_path):
    config, path = run(tmp_path, "quiet", "audit.record=true")
    assert not (path / "audit/truth").exists()
    victims = victims_of(setting_of(Workspace(config)), path / "audit", Scope())
    assert all(victim.truth is None for victim in victims)
    with pytest.raises(ThreatModelError, match="labels cannot be given"):
        victims_of(setting_of(Workspace(config)), path / "audit", Scope(labels=True))


def test_the_threat_model_is_what_the_server_knows_less_what_is_denied(tmp_path):
    config, path = run(tmp_path, "s", *FULL)
    scope = Scope(rounds=frozenset({2}), denied=frozenset({"learning_rate", "initial_weights"}))
    victims = victims_of(setting_of(Workspace(config)), path / "audit", scope)
    assert {victim.server_round for victim in victims} == {2}
    for victim in victims:
        known = victim.view.knowledge
        assert known.learning_rate is None
        assert victim.view.initial is None
        assert not known.biases
        assert known.thresholds
        assert known.images == len(victim.truth.labels)
        assert known.batch_size == min(4, known.images)


def test_chosen_rounds_and_clients_alone_are_recorded(tmp_path):
    _, everything = run(tmp_path, "all", "audit.record=true")
    partition = next(read_recording(everything / "audit")).partition
    _, path = run(tmp_path, "some", "audit.record=true", "audit.rounds=[1]", f"audit.clients=[{partition}]")
    assert [(r.server_round, r.partition) for r in read_recording(path / "audit")] == [(1, partition)]


def test_a_round_that_cannot_be_attacked_does_not_end_the_run(tmp_path, caplog):
    options = ["audit.record=true", "audit.attacks=[snn_naive]", "audit.max_bytes=1"]
    _, path = run(tmp_path, "full", *options)
    assert len(read_metrics(path)) == 2
    assert "round 1 is not attacked" in caplog.text


def test_rows_of_a_table_are_attacked_as_pictures_are(tmp_path):
    options = ["data.source=iris", "data.clients=3", "model.name=mlp", "strategy.fraction_train=1"]
    options += ["training.epochs=1", "training.batch_size=64", "audit.record=true", "audit.ground_truth=true"]
    options += ["audit.attacks=[huang]", "audit.iterations=2", "strategy.spiking=false"]
    run(tmp_path, "iris", *options)
    (path,) = tmp_path.rglob("round-000001.json")
    (found,) = json.loads(path.read_text())
    assert (found["kind"], found["metric"]) == ("table", "relative_error")
    assert found["verdict"] in ("leaks", "unclear", "nothing seen"), found["refusal"]
