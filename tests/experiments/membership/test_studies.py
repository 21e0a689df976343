"""The studies under ``experiments/membership/``, at both scales: each can run, and its README says what it found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.membership.readme import FOLDERS, HERE, parts_of
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
STUDIES = [path.relative_to(HERE) for folder in FOLDERS for path in sorted((HERE / folder).glob("*.yaml"))]


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every data set be there: nothing is trained on them."""

    def stand_in(source: Source, config: DataConfig, root: Path) -> Dataset:
        shape, classes = SHAPES[config.source]
        labels = torch.randint(classes, (4000,), generator=rng.generator(0, config.source))
        mean = torch.zeros(shape[-3] if len(shape) > 1 else shape[0])
        samples = torch.zeros((1, *shape), dtype=torch.uint8).expand(4000, *shape)
        return Dataset(
            name=config.source, train_images=samples, train_labels=labels, test_images=samples, test_labels=labels,
            class_names=tuple(map(str, range(classes))), mean=mean, std=mean + 1,
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
