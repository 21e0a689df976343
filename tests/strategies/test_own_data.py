"""A federation whose clients have data of their own, in this process: who tests, what is bounded, who is left out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message, MetricRecord, RecordDict
from own_data import OPTIONS, lay_arrays, lay_pictures
from safetensors.torch import load_file

import snnfl
from clients.client_app import app as client_app
from experiments.compare.cell import run_cell
from experiments.compare.extras import Extras
from experiments.compare.records import _round_records as round_records
from experiments.engines.in_process import run_in_process
from snnfl.auditing.victims import setting_of
from snnfl.config import Config, ConfigError, compose, flatten, to_yaml
from snnfl.data import test_batches
from snnfl.data.own import client_places, read_own
from snnfl.training import evaluate, load_arrays
from snnfl.workspace import Workspace
from strategies.population import Holding, Population, PopulationError
from strategies.run_directory import ANN_FILE, read_metrics, run_path, simulated_node
from strategies.server_app import server_app

SMALL = [
    "data.clients=3",
    "training.epochs=1",
    "conversion.steps=8",
    "conversion.calibration_images=32",
    "run.rounds=2",
]
SIZES = (200, 300, 150)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Data of three clients, as a simulation reads them."""
    starts = (0, 200, 500)
    lay_pictures(tmp_path / "clients" / "a", range(starts[0], starts[0] + SIZES[0]))
    lay_arrays(tmp_path / "clients" / "b.npz", range(starts[1], starts[1] + SIZES[1]))
    lay_pictures(tmp_path / "clients" / "c", range(starts[2], starts[2] + SIZES[2]))
    return tmp_path


def play(root: Path, *options: str, name: str = "run") -> tuple[Config, list[dict[str, Any]]]:
    runs = [f"data.root={root}", f"run.directory={root}/runs", f"run.name={name}"]
    config = compose(None, [*OPTIONS, *SMALL, *runs, *options])
    rows: list[dict[str, Any]] = []
    nodes = {"clients": config.data.clients, "node_config": simulated_node(config)}
    run_in_process(server_app(rows.append), client_app, run_config=flatten(config), **nodes)
    return config, rows


def test_without_data_of_its_own_a_server_reports_what_nodes_test(root: Path) -> None:
    config, rows = play(root, "strategy.spiking=false", "model.name=mlp", "training.epochs=3")
    last = rows[-1]
    assert (last["server_ann_accuracy"], last["test_images"]) == (None, 0)
    work = Workspace(config)  # by hand: the received network is the final one, and each node has its own test part
    load_arrays(work.model, load_file(run_path(config) / ANN_FILE))
    parts = [read_own(place, config.data) for place in client_places(root, 3)]
    found = [evaluate(work.model, test_batches(part, 256)) for part in parts]
    sizes = [len(part.test_labels) for part in parts]
    assert sizes == [size // 5 for size in SIZES]
    expected = sum(size * one.accuracy for size, one in zip(sizes, found, strict=True)) / sum(sizes)
    loss = sum(size * one.loss for size, one in zip(sizes, found, strict=True)) / sum(sizes)
    assert last["client_received_accuracy_weighted"] == pytest.approx(expected, abs=1e-12)
    assert last["client_received_loss_weighted"] == pytest.approx(loss, abs=1e-6)
    assert last["client_received_accuracy_weighted"] != pytest.approx(last["client_received_accuracy_mean"], abs=1e-9)


def test_with_data_of_its_own_a_server_tests_and_asks_nobody(root: Path) -> None:
    alone, rows = play(root, name="alone")
    lay_pictures(root / "server", range(1400, 1500))
    config, tested = play(root, name="tested")
    assert tested[-1]["test_images"] == 100
    assert 0 <= tested[-1]["server_snn_accuracy"] <= 1
    assert [row["client_received_accuracy_weighted"] for row in tested] == [None, None]
    assert rows[-1]["server_snn_accuracy"] is None
    ours, theirs = (load_file(run_path(each) / ANN_FILE) for each in (alone, config))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)  # who tests changes no weight


def test_native_clients_solo_and_fedbn_run_on_it(root: Path) -> None:
    for options in (
        ["strategy.spiking=false", "model.neuron=lif", "model.time_steps=3"],
        ["strategy.name=solo"],
        ["strategy.name=fedbn", "strategy.spiking=false"],
        ["strategy.name=fedlec", "strategy.spiking=false"],
        ["strategy.name=qfedavg", "strategy.spiking=false"],
    ):
        _, rows = play(root, *options, "run.overwrite=true", "run.rounds=1")
        assert (rows[0]["replies"], rows[0]["firing_rates"]) == (3, None)
        assert (rows[0]["client_received_accuracy_weighted"] is None) == ("strategy.name=solo" in options)


def test_an_attack_on_it_is_measured_where_the_server_has_data(root: Path) -> None:
    attack = ["poisoning.attack=badnets", "run.rounds=1"]
    assert play(root, *attack)[1][0]["attack_success_snn"] is None
    lay_pictures(root / "server", range(1400, 1500))
    assert 0 <= play(root, *attack, "run.overwrite=true")[1][0]["attack_success_snn"] <= 1


def test_a_client_whose_data_do_not_fit_is_left_out_and_too_few_are_an_end(root: Path) -> None:
    (root / "clients" / "a" / "two").rename(root / "clients" / "a" / "2")
    _, rows = play(root)
    assert [(row["replies"], row["absent"]) for row in rows] == [(2, [0])] * 2
    with pytest.raises(PopulationError, match=r"2 of 3 nodes can take part, fewer than .*=3; node 2 .*'2' is none of"):
        play(root, "strategy.minimum_replies=3", name="few")


def test_a_wrong_number_of_clients_is_said_before_anything_runs(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.clients=4: .*holds 3 \(a, b\.npz, c\)"):
        play(root, "data.clients=4")


def test_a_study_runs_on_it_and_takes_what_nodes_test_for_its_accuracy(root: Path, tmp_path: Path) -> None:
    options = [*OPTIONS, *SMALL, f"data.root={root}", f"run.directory={root}/runs", "strategy.spiking=false"]
    config = compose(None, options)
    (tmp_path / "cell.yaml").write_text(to_yaml(config))
    run_cell(tmp_path / "cell.yaml", Extras())
    rows = read_metrics(run_path(config))
    accuracies = [record["accuracy"] for record in round_records(rows)]
    assert accuracies == [row["client_received_accuracy_weighted"] for row in rows]
    assert all(accuracy is not None for accuracy in accuracies)


@pytest.mark.slow
def test_an_audit_of_it_needs_no_data_of_the_servers(root: Path) -> None:
    for name in ("a", "c"):
        for path in sorted((root / "clients" / name).rglob("*.png"))[3:]:
            path.unlink()
        for folder in (root / "clients" / name).iterdir():
            if folder.is_dir() and not list(folder.iterdir()):
                folder.rmdir()
    lay_arrays(root / "clients" / "b.npz", range(3))
    options = ["model.name=mlp", "model.batch_norm=false", "strategy.spiking=false", "data.minimum_samples=1"]
    options += ["audit.record=true", "audit.ground_truth=true", "run.rounds=1", "training.batch_size=2"]
    chances = []
    for name in ("without", "with"):
        config, _ = play(root, *options, name=name)
        held = setting_of(Workspace(config)).dataset
        assert (len(held.test_labels), len(held.train_labels)) == ((0, 0) if name == "without" else (25, 25))
        found = snnfl.audit(
            run_path(config), attacks=["inverting_gradients"], iterations=20, restarts=1, controls=False, progress=False
        )
        (entry,) = found.entries
        assert entry["value"] > entry["floor"]["psnr"]
        chances.append(entry["chance"])
        lay_pictures(root / "server", range(1400, 1450))
    assert chances == [1 / 2, 1 / (2 + 25)]  # the victim's two pictures alone, and the candidates that the server has


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"partition-id": 1, "num-examples": 3, "test-examples": 2}, None),
        ({"partition-id": 1}, "it named no number of samples of its own"),
        ({"partition-id": 1, "num-examples": 0, "test-examples": 2}, "it named no number of samples"),
        ({"partition-id": 1, "num-examples": 3, "test-examples": 2.5}, "it named no number of samples"),
        ({"partition-id": 1, "num-examples": 10**10, "test-examples": 2}, "it named no number of samples"),
        ({"partition-id": 1, "num-examples": [3], "test-examples": 2}, "it named no number of samples"),
        ({"partition-id": 7, "num-examples": 3, "test-examples": 2}, "it named no partition from 0 to 1"),
    ],
)
def test_what_a_node_says_of_its_data_is_checked(
    said: dict[str, Any], complaint: str | None, scripted: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    good = {"partition-id": 0, "num-examples": 5, "test-examples": 1}

    def answer(message: Message) -> Message:
        content = good if message.metadata.dst_node_id == 5 else said
        return Message(RecordDict({"metrics": MetricRecord(content)}), reply_to=message)

    population = Population(scripted([5, 6], answer))
    with caplog.at_level(logging.WARNING, logger="strategies"):
        population.assemble(2, timeout=9.0, own_data=True)
    held = [Holding(0, 5, 1)]
    if complaint is None:
        assert (population.holdings, caplog.messages) == ([*held, Holding(1, 3, 2)], [])
    else:
        assert population.holdings == held
        assert [complaint in line for line in caplog.messages] == [True]


def test_under_masks_updates_weigh_by_the_samples_that_nodes_hold(root: Path) -> None:
    """Of the most that anybody could claim, 10^9, nothing would be left of a share of a few hundred but rounding."""
    found = []
    for secure in ("false", "true"):
        options = ("strategy.spiking=false", "run.rounds=1", f"strategy.secure_aggregation={secure}")
        config, rows = play(root, *options, name=secure)
        assert rows[-1]["aggregated"]
        found.append(load_file(run_path(config) / ANN_FILE))
    for name, array in found[0].items():
        assert torch.linalg.vector_norm(found[1][name] - array) <= 1e-4 * torch.linalg.vector_norm(array)
