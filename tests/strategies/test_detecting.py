"""Detectors in a run: they change nothing unless they exclude, and what they exclude is in no aggregate."""

from __future__ import annotations

import ast
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clients import client_app
from experiments.engines.in_process import run_in_process
from snnfl.config import ConfigError, compose, flatten
from snnfl.detection import Findings, names
from snnfl.detection.registry import register
from snnfl.poisoning import attackers
from snnfl.updates import Plain
from strategies.detecting import Detecting, detection_columns
from strategies.recorder import Row
from strategies.run_directory import ANN_FILE, SNN_FILE, read_metrics
from strategies.server_app import server_app
from strategies.update import Update

ALL = f"detection.detectors=[{','.join(names())}]"
SMALL = ["data.clients=6", "training.epochs=2", "conversion.steps=8", "run.rounds=2", "run.keep_checkpoints=1"]
FEW = ["data.training_images=240", "data.test_images=100", "training.batch_size=32"]
"""For all that doesn't depend on what is learned."""
ENOUGH = ["data.training_images=0", "data.test_images=0"]


def play(directory: Path, *overrides: str) -> tuple[Path, list[Row]]:
    config = compose(None, [f"run.directory={directory}", *SMALL, *FEW, "evaluation.clients=false", *overrides])
    run_in_process(server_app(), client_app.app, run_config=flatten(config), clients=config.data.clients)
    path = directory / config.run.name
    return path, read_metrics(path)


def weights(path: Path) -> dict[str, torch.Tensor]:
    files = [file for file in (path / ANN_FILE, path / SNN_FILE) if file.exists()]
    return {f"{file.name} {name}": array for file in files for name, array in load_file(file).items()}


def assert_equal_bits(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(array, second[name]) for name, array in first.items())


@pytest.mark.parametrize("spiking", [True, False])
def test_judging_and_measuring_change_no_bit(tmp_path: Path, spiking: bool) -> None:
    base = f"strategy.spiking={spiking}"
    detectors = ALL if spiking else "detection.detectors=[norm,cosine,krum,hdbscan]"
    path, plain = play(tmp_path, base, "run.name=plain")
    watched, rows = play(
        tmp_path, base, "run.name=watched", detectors, "poisoning.attack=badnets", "poisoning.attackers=0"
    )
    assert_equal_bits(path, watched)
    assert all(row["detection"] is row["attack_success_ann"] is row["attack_success_snn"] is None for row in plain)
    for row in rows:
        assert len(row["detection"]) == (6 if spiking else 4)
        assert (row["excluded"], row["replies"]) == (0, 6)
        assert 0 <= row["attack_success_ann"] <= 1
        assert (row["attack_success_snn"] is None) != spiking
        for found in row["detection"].values():
            assert list(found["scores"]) == ["0", "1", "2", "3", "4", "5"]
            assert found["true_positive_rate"] is None
            assert found["false_positive_rate"] == len(found["flagged"]) / 6


def test_a_backdoor_works_and_is_recorded(tmp_path: Path) -> None:
    setting = [*ENOUGH, "data.clients=5", "run.rounds=6", "training.batch_size=32", "training.learning_rate=0.1"]
    attack = ["poisoning.attack=badnets", "poisoning.first_round=2", "training.epochs=3"]
    _, clean = play(tmp_path, *setting, *attack, "poisoning.attackers=0", "run.name=clean")
    _, rows = play(tmp_path, *setting, *attack, "poisoning.attackers=2", "run.name=bad", ALL)
    config = compose(None, [*setting, *attack, "poisoning.attackers=2"])
    last, without = rows[-1], clean[-1]
    assert min(last["attack_success_snn"], last["attack_success_ann"]) > 0.9
    assert max(without["attack_success_snn"], without["attack_success_ann"]) < 0.2
    assert last["server_snn_accuracy"] > without["server_snn_accuracy"] - 0.1 > 0.7  # and nobody notices
    assert rows[0]["detection"]["norm"]["true_positive_rate"] is None  # before the first round
    for row in rows[1:]:
        for found in row["detection"].values():
            hits = set(found["flagged"]) & set(attackers(config))
            assert found["true_positive_rate"] == len(hits) / 2
            assert found["false_positive_rate"] == pytest.approx((len(found["flagged"]) - len(hits)) / 3)


@pytest.mark.usefixtures("own_registries")
@pytest.mark.parametrize("spiking", [True, False])
def test_an_excluded_update_is_in_no_aggregate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, spiking: bool
) -> None:
    """The attacker replaces the model; without it the run is that of the other five, in which it fails every time."""
    attack = [f"strategy.spiking={spiking}", "poisoning.attack=model_replacement", "poisoning.scale=20"]
    (guilty,) = attackers(compose(None, [*SMALL, *attack]))

    @register("informer", source="this test")
    def informer(view) -> Findings:
        scores = torch.zeros(6, dtype=torch.float64)
        scores[guilty] = 1
        return Findings(scores=scores, flagged=scores > 0)

    defended, rows = play(
        tmp_path, *attack, "detection.detectors=[informer]", "detection.exclude=informer", "run.name=defended"
    )
    assert [(row["excluded"], row["replies"]) for row in rows] == [(1, 5), (1, 5)]
    lines = [record.getMessage() for record in caplog.records if "excluded" in record.getMessage()]
    assert len(lines) == 2
    assert f"reply of partition {guilty} " in lines[0]
    assert "detector informer" in lines[0]

    from clients.client_app import train

    def absent(message, context):
        if context.node_config["partition-id"] == guilty:
            raise RuntimeError("not here")
        return train(message, context)

    monkeypatch.setattr(client_app, "app", _with_training(absent))
    without, rows = play(tmp_path, f"strategy.spiking={spiking}", "run.name=without")
    assert [(row["failed"], row["replies"]) for row in rows] == [(1, 5), (1, 5)]
    assert_equal_bits(defended, without)
    monkeypatch.undo()
    undefended, _ = play(tmp_path, *attack, "run.name=undefended")
    first, second = weights(undefended), weights(defended)
    assert any(not torch.equal(array, second[name]) for name, array in first.items())


def _with_training(function):
    from flwr.clientapp import ClientApp

    made = ClientApp(
        mods=[
            client_app.persistent_state,
            client_app.solo_mod,
            client_app.poisoning_mod,
            client_app.spiking_mod,
            client_app.scaling_mod,
        ]
    )
    made.train()(function)
    made.query()(client_app.who)
    return made


def test_too_few_updates_left_keep_the_old_weights(tmp_path: Path) -> None:
    _, rows = play(
        tmp_path,
        "poisoning.attack=badnets",
        "poisoning.attackers=2",
        "detection.detectors=[hdbscan]",
        "detection.exclude=hdbscan",
        "strategy.minimum_replies=6",
    )
    assert all(row["aggregated"] == (row["excluded"] == 0) for row in rows)
    assert any(row["excluded"] for row in rows)


def test_the_rates_are_counted_by_the_ground_truth() -> None:
    update = {"w": torch.zeros(3)}
    moved = [{"w": torch.tensor(row)} for row in ([1.0, 1, 1], [1, 1, 1.1], [9, 9, 9], [1, 1.1, 1], [1.1, 1, 1])]
    detecting = Detecting(["norm"], Plain(update))
    detecting.sent = update
    metrics = {"num-examples": 5.0}
    screening = detecting.screen([Update(arrays=each, metrics=metrics) for each in moved], [4, 0, 2, 1, 7])
    assert bool(screening.kept.all())
    columns = detection_columns(screening, (2, 7, 9))["norm"]
    assert columns["flagged"] == [2]
    assert (columns["true_positive_rate"], columns["false_positive_rate"]) == (0.5, 0.0)
    assert columns["scores"]["2"] == pytest.approx(9 * 3**0.5)
    assert detection_columns(None, ()) is None


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["detection.detectors=[norms]"], "detector 'norms' is unknown; did you mean 'norm'"),
        (["detection.detectors=[thresholds]", "strategy.spiking=false"], "these updates hold no thresholds"),
        (["poisoning.attack=distributed"], "poisoning.trigger_size=4"),
        (["poisoning.attack=label_flip", "poisoning.target=10"], "has labels 0 to 9"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(
    tmp_path: Path, overrides: list[str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        play(tmp_path, *overrides)
    assert not list(tmp_path.iterdir())


def test_detectors_cannot_know_who_attacks() -> None:
    """No module of the detectors imports the configuration of a run, or who attacks in it."""
    modules = sorted((Path(__file__).parents[2] / "snnfl/detection").glob("*.py"))
    assert len(modules) >= 5
    imported = {
        f"{node.module}.{alias.name}"
        for path in modules
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert "snnfl.config.ConfigError" in imported
    assert not [
        name for name in imported if name == "snnfl.config.Config" or "poisoning" in name or "workspace" in name
    ]


def test_excluding_is_logged_as_what_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        play(tmp_path, "detection.detectors=[norm]", "detection.exclude=norm", "run.rounds=1")
    assert "detection.exclude=norm: a defence" in caplog.text


@pytest.mark.usefixtures("own_registries")
@pytest.mark.parametrize("exclude", [True, False])
def test_a_detector_that_fails_ends_no_run_and_lets_nothing_pass_that_it_should_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, exclude: bool
) -> None:
    judged = []

    @register("fragile", source="this test")
    def fragile(view) -> Findings:
        judged.append(view)
        if len(judged) == 2:
            raise ZeroDivisionError("a client found the way")
        return Findings(scores=torch.zeros(6), flagged=torch.zeros(6, dtype=torch.bool))

    defence = ["detection.exclude=fragile"] if exclude else []
    path, rows = play(tmp_path, "detection.detectors=[norm,fragile]", "run.rounds=3", *defence)
    reason = "fragile: ZeroDivisionError: a client found the way"
    assert [row["detection"]["fragile"].get("failed") for row in rows] == [None, reason, None]
    assert [len(row["detection"]["norm"]["scores"]) for row in rows] == [6, 6, 6]
    assert [row["aggregated"] for row in rows] == [True, not exclude, True]
    assert [row["excluded"] for row in rows] == [0, 6 if exclude else 0, 0]
    assert f"round 2: detector failed: {reason}" in caplog.text
    assert ("detector fragile failed, so nothing enters" in caplog.text) == exclude
    if not exclude:
        without, _ = play(tmp_path, "run.rounds=3", "run.name=without")
        assert_equal_bits(path, without)
