"""``snnfl.privatesnn``: a study, and a finished run, from Python."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import snnfl
from snnfl.private_snn import load

STUDY = """
name: mine
options: {data.source: digits, data.training_images: 300, data.test_images: 100, model.name: mlp,
          training.optimizer: adam, training.learning_rate: 0.003, training.epochs: 3}
synthesis: {images: 20, iterations: 5}
publishing: {steps: 6}
encryption: {images: 20, epochs: 1}
attack: {networks: [encrypted], attacks: [scenario_1, priors_statistics], starts: 1, iterations: 2, images: 50,
         judge_images: 50, judge: mlp, judge_epochs: 1}
"""


def test_it_returns_what_the_commands_write(tmp_path: Path) -> None:
    path, runs = tmp_path / "mine.yaml", {"directory": str(tmp_path / "runs")}
    path.write_text(STUDY)
    made = snnfl.privatesnn(path, attacks=True, progress=False, run=runs)
    with (made.path / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["quantity"] == "accuracy"]
    assert [(row["network"], row["at"], float(row["value"])) for row in rows] == [
        (row["network"], f"T={row['steps']}" if row["steps"] else "", row["accuracy"]) for row in made.accuracies
    ]
    assert {row["network"] for row in made.accuracies} > {"ANN", "synthetic", "encrypted"}
    copy, refused = made.attacks
    assert (copy["attack"], type(copy["accuracy"]), copy["refused"]) == ("scenario_1", float, "")
    assert refused["accuracy"] is None
    assert "nobody tells what batch normalisation knew" in refused["refused"]
    assert repr(made) == f"<Published {made.path}: 1 network, 2 results of attacks>"
    before = {file: file.stat().st_mtime_ns for file in made.path.rglob("*.safetensors")}
    fewer = snnfl.privatesnn(path, progress=False, run=runs, publishing={"steps": 3})
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert [load(each.networks["seed=0"]).steps for each in (made, fewer)] == [6, 3]
    assert fewer.attacks == []


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(STUDY)
    with pytest.raises(snnfl.ConfigError, match=r"publishing: .*unknown option 'stepz'; did you mean 'steps'") as error:
        snnfl.privatesnn(tmp_path / "mine.yaml", publishing={"stepz": 3})
    assert "\n" not in str(error.value)


def test_what_attacks_lack_is_told_before_networks_are_made(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(STUDY)
    runs = {"directory": str(tmp_path / "runs")}
    with pytest.raises(snnfl.ConfigError, match="the owner has all training images"):
        snnfl.privatesnn(tmp_path / "mine.yaml", attacks=True, run=runs, data={"training_images": 0})
    assert not (tmp_path / "runs").exists()
