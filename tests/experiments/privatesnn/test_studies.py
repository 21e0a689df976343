"""The studies of this repository are valid, and the README's tables are those of its files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import experiments.privatesnn.readme as readme
from experiments.privatesnn.report import FIELDS, Row, accuracy_rows, as_csv, energy_rows, mean, sentence, variant_rows
from experiments.privatesnn.study import read_private_study
from experiments.study_readme import markers
from snnfl.config import compose
from snnfl.model_attacks import MODEL_ATTACKS

HERE = Path(readme.__file__).parent


@pytest.mark.parametrize("name", ["laptop", "paper", "synthesis", "attacks", "more_attacks", "copies", "locks"])
def test_a_study_is_valid(name: str) -> None:
    study = read_private_study(HERE / f"{name}.yaml")
    assert study.name == f"privatesnn_{name}"
    assert len({setting.published for setting in study.settings}) == len(study.settings)
    for setting in study.settings:
        private = setting.private
        most = max(each.images for each in (private.encryption, *setting.variants))
        assert most <= private.synthesis.images
        assert not setting.variants or private.encryption in setting.variants  # so it is trained once


def test_every_attack_is_measured() -> None:
    studies = [read_private_study(HERE / f"{name}.yaml").settings[0] for name in ("attacks", "more_attacks")]
    measured = [name for setting in studies for name in setting.attack.attacks]
    ours = [name for name, home in MODEL_ATTACKS.homes.items() if home.startswith("snnfl.")]
    assert sorted(measured) == sorted(ours)
    assert studies[0].published.name == studies[1].published.name  # of the same network


def test_the_study_of_clients_is_valid() -> None:
    content = OmegaConf.to_container(OmegaConf.load(HERE / "clients.yaml"))
    assigned = [f"{key}={value}" for key, value in content["options"].items()]
    chosen = [compose(None, [*assigned, f"conversion.data={data}"]) for data in content["matrix"]["conversion.data"]]
    assert [config.conversion.data for config in chosen] == ["private", "synthetic"]


def test_the_readme_is_what_its_command_writes() -> None:
    text = (HERE / "README.md").read_text()
    for name, part in readme.parts_of().items():
        begin, end = markers(name)
        assert f"{begin}\n{part}\n{end}" in text, f"{name}: run python -m experiments.privatesnn.readme"


def rows() -> list[Row]:
    made = []
    for seed, value in ((0, 0.8), (1, 0.9)):
        made += [
            Row("data", seed, "ANN", "accuracy", "", value + 0.05),
            Row("data", seed, "ANN", "test images", "", 450),
            Row("data", seed, "synthetic", "accuracy", "T=8", value),
            Row("data", seed, "real", "accuracy", "T=8", value + 0.01),
            Row("data", seed, "encrypted", "accuracy", "T=8", value + 0.02),
            Row("data", seed, "encrypted", "energy: paper", "T=8", 2.0),
            Row("data", seed, "encrypted", "energy: spikes_per_neuron", "T=8", 4.0),
            Row("data", seed, "encrypted", "weight moved", "fc", 0.25),
            Row("data", seed, "encrypted, m=0", "accuracy", "images=10", value),
        ]
    return made


def test_tables_are_means_over_seeds_and_the_sentence_says_them() -> None:
    assert mean(rows(), "synthetic", "accuracy", "T=8") == pytest.approx((0.85, 0.0707), abs=1e-4)
    assert mean(rows(), "nobody", "accuracy", "T=8") is None
    head, lines = accuracy_rows(rows())
    assert head == ["network", "T=8"]
    assert lines[1] == ["synthetic", "85.00 ± 7.07"]
    assert variant_rows(rows())[1] == [["encrypted, m=0", "85.00 ± 7.07"]]
    assert energy_rows(rows())[1][1][:3] == ["encrypted", "4", "2"]
    assert sentence("data", rows()) == (
        "data, T=8: the ANN has 90.0 %; converted without data 85.0 %, -1.00 points beside training images; encrypted "
        "87.0 %, -3.00 points beside the ANN, with weights moved by 25.0 % on average (900 test "
        "images: each accuracy is known to 2.0 points)"
    )


def test_files_are_copied_with_when_and_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readme, "HERE", tmp_path)
    runs = tmp_path / "runs" / "privatesnn_laptop"
    runs.mkdir(parents=True)
    (runs / "results.csv").write_text(as_csv(rows()))
    readme.collect(tmp_path / "runs")
    with (tmp_path / "laptop.csv").open() as file:
        assert next(csv.reader(file)) == list(FIELDS)
    assert json.loads((tmp_path / "collected.json").read_text())["laptop"]["torch"]
    assert "87.0 %" in readme.parts_of()["measured"]
