"""The studies of SNFL's artifacts have the paper's setting, and cite what it says."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from experiments.compare.views import View
from experiments.study_readme import FOLDERS, HERE, _views

ARTIFACTS = tuple(name for name in FOLDERS if name.startswith("snfl/"))


def content_of(path: Path) -> dict[str, Any]:
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    return dict(content)


@pytest.mark.parametrize("artifact", ARTIFACTS)
def test_the_papers_setting_is_the_papers(artifact: str) -> None:
    content = content_of(HERE / artifact / "paper.yaml")
    base = content_of(HERE / artifact / content["base"])
    assert base["model"]["name"] == "resnet20_snfl"
    assert (base["run"]["rounds"], base["training"]["epochs"], base["conversion"]["steps"]) == (100, 5, 256)
    changed = set(content["options"]) & {"model.name", "run.rounds", "training.epochs", "conversion.steps"}
    assert changed == ({"run.rounds", "training.epochs"} if artifact == "snfl/fig2_inversion" else set())


read_once = functools.cache(_views)


def published(artifact: str, number: int, *place: str) -> float:
    view: View = read_once(HERE / "snfl" / artifact / "paper.yaml")[number]
    return 100 * view.paper[place[0], place[1]]


@pytest.mark.parametrize(
    ("said", "artifact", "table", "column", "algorithm"),
    [
        (13.79, "table1_iid", 1, "Tiny ImageNet / 15", "FedAvg"),  # section 5.2 and the abstract; here with one digit
        (0.71, "table1_iid", 1, "CIFAR-100 / 5", "MOON"),
        (4.46, "table1_iid", 1, "CIFAR-100 / 15", "MOON"),
        (3.91, "table2_noniid", 0, "CIFAR-10, Dir(0.5)", "FedProx"),
        (2.43, "table2_noniid", 0, "CIFAR-10, Dir(0.5)", "MOON"),
        (90.31 - 57.62, "a2_participation", 0, "1.0", "FedAvg"),
    ],
)
def test_cited_numbers_agree_with_the_papers_text(
    said: float, artifact: str, table: int, column: str, algorithm: str
) -> None:
    gain = published(artifact, table, f"S-{algorithm}", column) - published(artifact, table, algorithm, column)
    assert gain == pytest.approx(said, abs=0.06 if artifact == "table1_iid" else 0.006)


def test_cited_numbers_agree_with_each_other() -> None:
    for clients in ("5", "10", "15"):
        for table in (0, 1):
            for algorithm in ("FedAvg", "S-FedAvg", "FedProx", "S-FedProx", "MOON", "S-MOON"):
                short = published("table1_iid", table, algorithm, f"CIFAR-10 / {clients}")
                long = published("a1_clients", table, algorithm, clients)
                assert short == pytest.approx(long, abs=0.0601), (table, algorithm, clients)
    for algorithm in ("S-FedAvg", "S-FedProx", "S-MOON"):
        assert published("a3_steps", 0, algorithm, "256") == published("a1_clients", 0, algorithm, "60")
    for algorithm in ("FedAvg", "S-FedAvg"):
        assert published("a2_participation", 0, algorithm, "1.0") == published("a1_clients", 0, algorithm, "60")
