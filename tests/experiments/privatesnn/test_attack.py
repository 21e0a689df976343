"""``snnfl privatesnn attack`` on digits: what it writes, what it keeps, and what it refuses."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from experiments.cli import app
from experiments.privatesnn import attacking
from experiments.privatesnn.attack import attack_published
from experiments.privatesnn.study import read_private_study
from experiments.privatesnn.thefts import frontier_of
from snnfl.config import ConfigError
from snnfl.model_attacks import MODEL_ATTACKS

STUDY = """
name: study
options: {data.source: digits, data.training_images: 500, data.test_images: 200, model.name: lenet5,
          training.optimizer: adam, training.learning_rate: 0.003, training.epochs: 8, data.augment: false}
seeds: [0]
synthesis: {images: 30, iterations: 20}
publishing: {steps: 8, images: 20}
encryption: {images: 30, epochs: 1}
attack: {attacks: [scenario_1, scenario_2], starts: 2, iterations: 6, images: 100, judge_images: 400, judge: lenet5,
         judge_epochs: 2}
locks: {few steps: {publishing.steps: 2}}
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


def attack(path: Path, *overrides: str) -> list[dict[str, str]]:
    given = [f"run.directory={path.parent / 'runs'}", *overrides]
    study, lines = attack_published(path, given, console=Console(quiet=True))
    with (study.directory / "attacks.csv").open() as file:
        assert lines == list(csv.DictReader(file))
    return [*lines]


def test_what_it_writes_and_that_it_keeps_it(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = attack(study)
    by_place = {(line["network"], line["attack"]): line for line in lines}
    networks = ("ann", "converted", "encrypted", "random", "few steps")
    assert set(by_place) == {(n, a) for n in networks for a in ("scenario_1", "scenario_2")}
    copy = by_place["ann", "scenario_1"]
    assert copy["seeds"] == "0"
    assert copy["accuracy"] == copy["owner"] == by_place["converted", "scenario_1"]["accuracy"]
    assert float(copy["agreement"]) == 1
    assert float(copy["accuracy"]) > 0.7
    assert float(by_place["random", "scenario_1"]["accuracy"]) < 0.3
    assert "no neurons that fire" in by_place["ann", "scenario_2"]["refused"]
    assert by_place["encrypted", "scenario_2"]["accuracy"] == ""
    assert 0 <= float(copy["recognised_low"]) <= float(copy["recognised"]) <= float(copy["recognised_high"]) <= 1
    assert "lenet5 of 400 other training images" in copy["extractor"]
    folder = study.parent / "runs" / "study"
    assert {point["lock"] for point in frontier_of(lines)} == {"converted", "encrypted", "few steps"}
    for name in ("attacks.md", "data_free.csv", "frontier.csv", "network-frontier.png"):
        assert (folder / name).stat().st_size > 100
    assert (folder / "class_images-network-0.png").stat().st_size > 1000

    def forbidden(*arguments: object, **options: object) -> None:
        raise AssertionError("an attack was tried again")

    monkeypatch.setattr(attacking, "score", forbidden)
    assert attack(study) == lines


@pytest.mark.parametrize(
    ("option", "wanted"),
    [
        ("data.training_images=0", "the owner has all training images"),
        ("data.training_images=1400", "images that the owner of 1400 doesn't"),
        ("attack.judge=vgg16", "attack.judge=vgg16: expected images of at least .* such as attack.judge=resnet20"),
        ("attack.networks=[]", r"attack.networks=\[\]: nothing to attack"),
    ],
)
def test_what_attacks_lack_is_told_before_anything_is_made(study: Path, option: str, wanted: str) -> None:
    study.write_text(STUDY.replace("locks: {few steps: {publishing.steps: 2}}", ""))
    with pytest.raises(ConfigError, match=wanted):
        attack(study, option)
    assert not (study.parent / "runs").exists()


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ("attack.attacks=[scenaro_1]", "did you mean 'scenario_1'"),
        ("attack.deny=[query]", "query"),
        ("attack.networks=[anns]", "networks=anns: expected ann, converted, encrypted, random"),
        ("attack.attacks=scenario_1", "attack: attacks='scenario_1': expected a list of names"),
        ("attack.attacks=[scenario_1", r"override 'attack.attacks=\[scenario_1': not a YAML value"),
        ("attack.attacks=[priors, priors]", r"attack: attacks=\['priors', 'priors'\]: a name is given twice"),
        ("attack=8", "attack=8: expected an option of attack"),
        ("encryption.milestones=0.5", "encryption: milestones=0.5: expected a list of numbers"),
        ("attack.startz=1", "unknown option 'startz'; did you mean 'starts'"),
    ],
)
def test_a_mistake_is_one_line(study: Path, options: str, wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        read_private_study(study, [options])


def test_a_lock_changes_publishing_and_encryption_alone(study: Path) -> None:
    study.write_text(STUDY.replace("publishing.steps: 2", "synthesis.images: 2"))
    with pytest.raises(ConfigError, match=r"locks: few steps: synthesis\.images: expected options of publishing"):
        read_private_study(study)


def test_it_lists_its_attacks() -> None:
    shown = CliRunner().invoke(app, ["privatesnn", "attack", "--list"], env={"COLUMNS": "300"}, terminal_width=300)
    assert shown.exit_code == 0
    assert all(name in shown.output for name in MODEL_ATTACKS.items)


def test_it_needs_a_study() -> None:
    shown = CliRunner().invoke(app, ["privatesnn", "attack"])
    assert shown.exit_code == 2
    assert "name a study or a run" in shown.output
