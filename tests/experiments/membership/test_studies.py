"""The studies under ``experiments/membership/``, at both scales: each can run, and its README says what it found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.membership.differences import activations, differences_part, surrogates, weights
from experiments.membership.federations import federated_part
from experiments.membership.readme import FEDERATED, FOLDERS, HERE, parts_of
from experiments.membership.study import read_membership_study, tables_of
from experiments.study_readme import fill, markers
from snnfl import rng
from snnfl.config import ConfigError, DataConfig
from snnfl.data import Dataset, sources
from snnfl.data.sources import Source

SHAPES = {
    "cifar10": ((3, 32, 32), 10),
    "fashion_mnist": ((1, 28, 28), 10),
    "mnist": ((1, 28, 28), 10),
    "nmnist": ((10, 2, 34, 34), 10),
    "iris": ((4,), 3),
    "breast_cancer": ((30,), 2),
}
STUDIES = [
    path.relative_to(HERE)
    for folder in FOLDERS
    if folder != FEDERATED  # tests/experiments/test_audit_membership.py
    for path in sorted((HERE / folder).glob("*.yaml"))
]


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every data set be there: nothing is trained on them."""

    def stand_in(source: Source, config: DataConfig, root: Path) -> Dataset:
        shape, classes = SHAPES[config.source]
        labels = torch.randint(classes, (10_000,), generator=rng.generator(0, config.source))
        mean = torch.zeros(shape[-3] if len(shape) > 1 else shape[0])
        samples = torch.zeros((1, *shape), dtype=torch.uint8).expand(10_000, *shape)
        return Dataset(
            name=config.source, train_images=samples, train_labels=labels, test_images=samples, test_labels=labels,
            class_names=tuple(map(str, range(classes))), mean=mean, std=mean + 1, sequence=len(shape) == 4,
        )  # fmt: skip

    monkeypatch.setattr(sources, "_load", stand_in)
    monkeypatch.setattr("experiments.membership.study.Workspace.model", None)  # building 60 networks takes a minute


@pytest.mark.slow
@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("path", STUDIES, ids=str)
def test_a_study_can_run(path: Path) -> None:
    device = ["run.device=cpu"] if path.stem == "paper" else []
    study = read_membership_study(HERE / path, device)
    assert study.name == f"membership_{path.parts[0].partition('_')[0]}_{path.stem}"
    assert len({setting.path for setting in study.settings}) == len(study.settings)
    assert study.tables == tables_of(HERE / path)
    for view in study.tables:
        for row, column in view.paper:
            assert row
            assert column


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_readme_holds_what_the_committed_results_give(folder: str) -> None:
    text = (HERE / folder / "README.md").read_text()
    for name, part in parts_of(HERE / folder).items():
        begin, end = markers(name)
        assert text.count(begin) == text.count(end) == 1
        between = text.partition(begin)[2].partition(end)[0]
        assert between.strip() == part.strip(), "python -m experiments.membership.readme"


def test_a_readme_without_markers_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing")
    (tmp_path / "paper.yaml").write_text((HERE / "table3_surrogates" / "paper.yaml").read_text())
    with pytest.raises(ConfigError, match="put the lines"):
        fill(tmp_path / "README.md", parts_of(tmp_path))


HEAD = "kind,seed,round,epsilon,test_accuracy,gap,attack,auc,auc_low,auc_high,tpr_at_1,tpr_at_1_low,tpr_at_1_high,cpu_s"


def of_seed(kind: str, seed: int, server_round: int, auc: float, gap: float, *, attack: str = "best") -> str:
    rate = ",0.05,0.03,0.07" if attack == "best" else ",,,"
    return f"{kind},{seed},{server_round},,0.3,{gap},{attack},{auc},{auc - 0.02},{auc + 0.02}{rate},60"


def test_the_tables_of_federations_are_means_over_seeds_paired_by_seed(tmp_path: Path) -> None:
    rows = [
        of_seed(kind, seed, server_round, base + 0.1 * server_round + 0.02 * seed, 0.1 * server_round)
        for kind, base in (("FedAvg", 0.4), ("S-FedAvg", 0.39), ("SNN", 0.5))
        for seed in (0, 1, 2)
        for server_round in (1, 2)
    ]
    rows += [of_seed("sum", 0, 2, value, 0.0, attack=name) for name, value in (("loss", 0.5), ("cosine", 0.6))]
    data = tmp_path / "laptop.csv"
    data.write_text("\n".join([HEAD, *rows]) + "\n")
    part = federated_part(data)
    assert "| FedAvg | 0.520 [0.470, 0.570] | 0.620 [0.570, 0.670] |" in part  # Student's t: 4.303 * 0.02 / sqrt(3)
    assert "| S-FedAvg − FedAvg | -0.010 [-0.010, -0.010] | -0.010 [-0.010, -0.010] |" in part
    assert (
        "| FedAvg | none | 30.0 % [30.0, 30.0] | 20.0 % [20.0, 20.0] | 0.620 [0.570, 0.670] | 5.0 % [3.8, 6.2] |"
        in part
    )
    assert "| SNN | 15.0 % | 0.670 [0.620, 0.720] |" in part  # half way between the rounds
    assert "| sum | – | 0.600 [0.580, 0.620] |" in part  # one target: no attack can be chosen on others
    assert "19 min of processor time" in part


def test_who_shares_no_gap_with_fedavg_leaves_the_others_compared(tmp_path: Path) -> None:
    data, gaps = tmp_path / "laptop.csv", {"FedAvg": 0.0, "S-FedAvg": 0.05, "SNN": 0.5}
    rows = [
        of_seed(kind, seed, server_round, 0.5 + gap + 0.1 * server_round, gap + 0.1 * server_round)
        for kind, gap in gaps.items()
        for seed in (0, 1)
        for server_round in (1, 2)
    ]
    data.write_text("\n".join([HEAD, *rows]) + "\n")
    equal = federated_part(data).partition("At equal gaps")[2]
    assert "| FedAvg | 17.5 % | 0.675" in equal
    assert "| S-FedAvg | 17.5 % | 0.675" in equal
    assert "SNN" not in equal


def test_differences_are_paired_by_target() -> None:
    table = {
        ("X, Full precision", "ANN"): [0.6, 0.8], ("X, Full precision", "SNN"): [0.5, 0.6],
        ("X, w=8", "ANN"): [0.55, 0.7], ("X, w=8", "SNN"): [0.5, 0.7],
    }  # fmt: skip
    found = weights(table)["X"]
    assert found["SNN − ANN"] == pytest.approx([-0.1, -0.2])
    assert found["SNN − ANN of w=8"] == pytest.approx([-0.05, -0.1])
    assert found["ANN: w=8"] == pytest.approx([-0.05, -0.1])
    assert found["SNN: w=8"] == pytest.approx([0.0, 0.1])
    part = differences_part("table2_weights", {"The best attack": table})
    assert "| SNN − ANN | -0.150 [-0.785, +0.485] |" in part  # 12.706 * 0.0707 / sqrt(2)
    assert "0 of 4 intervals over 2 targets don't hold 0" in part
    assert differences_part("attacks", {"The best attack": table}) == ""


def test_a_surrogate_is_compared_with_the_others_and_potentials_with_whole_ones() -> None:
    found = surrogates({("a", "X"): [0.6], ("b", "X"): [0.5], ("c", "X"): [0.7]})["X"]
    assert found["a"] == pytest.approx([0.0])
    assert found["c"] == pytest.approx([0.15])
    rows = {
        ("ANN full", "X"): [0.6],
        ("ANN 8 bit, 1.0", "X"): [0.5],
        ("SNN full", "X"): [0.3],
        ("SNN 2 bit, 1.0", "X"): [0.4],
    }
    quantised = activations(rows)["X"]
    assert quantised == {"ANN 8 bit, 1.0": pytest.approx([-0.1]), "SNN 2 bit, 1.0": pytest.approx([0.1])}
