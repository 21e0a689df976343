"""The studies under ``experiments/``, at both scales: each can run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from experiments.compare.study import read_study
from experiments.study_readme import FOLDERS, HERE
from snnfl import rng
from snnfl.config import DataConfig
from snnfl.data import Dataset, sources
from snnfl.data.sources import Source

SHAPES = {
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
    "digits": ((1, 8, 8), 10),
    "fashion_mnist": ((1, 28, 28), 10),
    "mnist": ((1, 28, 28), 10),
    "tiny_imagenet": ((3, 64, 64), 200),
}
SEQUENCES = {
    "nmnist": ((10, 2, 17, 17), 10),
    "watch": ((100, 6), 7),
    "japanese_vowels": ((25, 12), 9),
    "audio_folder": ((50, 40), 5),
    "speech_commands": ((50, 40), 35),
}
SAMPLES = 6000
"""Of each data set: what the largest study asks for."""
SCALES = [
    (folder, scale)
    for folder in FOLDERS
    for scale in ("laptop", "search", "paper")
    if (HERE / folder / f"{scale}.yaml").exists()
]
SMALL = {"resnet20": "lenet5", "vgg16": "lenet5", "resnet20_snfl": "lenet5"}
"""What stands in for networks that take long to build."""


def labelled_options(axis: Any) -> list[dict[str, Any]]:
    return [options for options in axis.values() if isinstance(options, dict)] if isinstance(axis, dict) else []


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let every data set be there, with as many samples as the studies ask for: nothing is trained on them."""

    def stand_in(source: Source, config: DataConfig, root: Path) -> Dataset:
        name = config.source
        shape, classes = (SHAPES | SEQUENCES)[name]
        if name in SEQUENCES and config.time_bins is not None:
            shape = (config.time_bins, *shape[1:])
        labels = torch.randint(classes, (SAMPLES,), generator=rng.generator(0, name))
        samples = torch.zeros(SAMPLES, *shape, dtype=torch.uint8)
        mean = torch.zeros(shape[1 if name in SEQUENCES else 0])
        return Dataset(
            name=name, train_images=samples, train_labels=labels, test_images=samples, test_labels=labels,
            class_names=tuple(map(str, range(classes))), mean=mean, std=mean + 1, sequence=name in SEQUENCES,
            users=torch.arange(SAMPLES) % 100 if name in SEQUENCES else None,
        )  # fmt: skip

    monkeypatch.setattr(sources, "_load", stand_in)
    sources._part.cache_clear()
    yield
    sources._part.cache_clear()


@pytest.mark.parametrize(("folder", "scale"), SCALES)
@pytest.mark.usefixtures("stand_ins")
def test_each_study_can_run(folder: str, scale: str, tmp_path: Path) -> None:
    file = HERE / folder / f"{scale}.yaml"
    content: Any = OmegaConf.to_container(OmegaConf.load(file))
    assert content["name"] in (f"{file.parent.name}_{scale}", folder.replace("/", "_"))
    assert len(content["seeds"]) >= 3 or scale != "laptop"
    content["seeds"] = content["seeds"][:1]
    if "base" in content:
        content["base"] = str((file.parent / content["base"]).resolve())
    path = tmp_path / "study.yaml"
    OmegaConf.save(OmegaConf.create(content), path)
    name = content["options"].get("model.name", "resnet20_snfl" if "base" in content else "")
    of_matrix = any("model.name" in label for axis in content["matrix"].values() for label in labelled_options(axis))
    small = [f"model.name={SMALL[name]}"] if name in SMALL and not of_matrix else []
    small += ["run.device=cpu"] if scale == "paper" else []
    study = read_study(path, small)
    assert study.cells
    for cell in study.cells:
        assert cell.config.run.device == "cpu"
