"""Every file of a run, damaged in every way: a command says so in one line before it trains, or needs no such file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import in_this_process

from strategies.lock import LOCK_FILE
from strategies.run_directory import ANN_FILE, NIR_FILE, SNN_FILE, read_metrics

OPTIONS = [
    "data.clients=2",
    "model.name=mlp",
    "training.epochs=1",
    "conversion.steps=4",
    "conversion.calibration_images=16",
    "data.training_images=120",
    "data.test_images=50",
    "audit.record=true",
    "audit.ground_truth=true",
    "audit.rounds=[1,2]",
    "strategy.name=moon",
]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def cut_at_a_line(file: Path) -> None:
    """Where the rest is what such a file might have been."""
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))


def empty(file: Path) -> None:
    file.write_bytes(b"")


def delete(file: Path) -> None:
    file.unlink()


def garbage(file: Path) -> None:
    file.write_bytes(bytes(range(256)) * 3)


def other_encoding(file: Path) -> None:
    file.write_bytes("{\u00e4: \u00e4}\n".encode("utf-16"))


def directory(file: Path) -> None:
    file.unlink()
    (file / "within").mkdir(parents=True)


def unreadable(file: Path) -> None:
    file.chmod(0)


DAMAGE: list[Callable[[Path], None]] = [cut, cut_at_a_line, empty, delete, garbage, other_encoding, directory]
if os.name == "posix" and os.geteuid() != 0:  # nothing is unreadable for root
    DAMAGE.append(unreadable)

TEXTS = ["config.yaml", "environment.json", "metrics.jsonl"]
FILES = [
    *TEXTS,
    "final_ann.safetensors",
    "final_snn.safetensors",
    "accuracy.png",
    "checkpoints/round-000002.safetensors",
    "checkpoints/round-000001.safetensors",
    "clients/*/1/round-000002.safetensors",
    "clients/*/1/round-000001.safetensors",
    "audit/recording/round-000001/sent.safetensors",
    "audit/recording/round-000001/partition-000001/received.safetensors",
    "audit/truth/round-000001/partition-000001/truth.safetensors",
    LOCK_FILE,
]
FOLDERS = ["checkpoints", "clients", "audit", "tensorboard"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two rounds, ``run``, and what becomes of it if it goes on to a third, ``whole``."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "empty.yaml").write_text("{}\n")
    config = ["run", str(folder / "empty.yaml"), *OPTIONS, f"run.directory={folder}"]
    assert in_this_process(*config, "run.rounds=2") == 0
    shutil.copytree(folder / "run", folder / "whole")
    assert in_this_process(*config, "run.rounds=3", "run.name=whole", "--resume") == 0
    return folder


@pytest.fixture
def run(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that may be damaged."""
    shutil.copytree(runs, tmp_path / "runs", ignore=shutil.ignore_patterns("whole"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "run"


def resume(*arguments: str) -> int:
    return in_this_process("run", "runs/empty.yaml", *OPTIONS, "run.directory=runs", "run.rounds=3", *arguments)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != LOCK_FILE}


def rows(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith("seconds_")} for row in read_metrics(path)]


def assert_one_line(error: str, *words: str) -> None:
    assert error.startswith("snnfl: "), error
    assert error.count("\n") == 1, error
    assert all(word in error for word in words), error


@pytest.mark.parametrize(
    ("name", "damage"),
    [(n, d) for n in FILES for d in DAMAGE if n in TEXTS or d in (cut, empty, delete, directory, unreadable)],
)
def test_a_damaged_run_goes_on_as_it_would_have_or_says_why_not(
    run: Path, runs: Path, name: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = run.glob(name)
    damage(file)
    before = contents(run)
    status = resume("--resume")
    captured = capsys.readouterr()
    if status == 2:
        assert_one_line(captured.err, file.name)
        assert contents(run) == before, "nothing is lost, and nothing was trained"
        assert "round 3/3" not in captured.out
        return
    assert status == 0, captured.err
    lost = "has lost the private state" in captured.out
    same = all((run / file).read_bytes() == (runs / "whole" / file).read_bytes() for file in (ANN_FILE, SNN_FILE))
    assert same != lost, "a run ends otherwise than undisturbed only if it says so"
    assert [row["round"] for row in rows(run)] == [1, 2, 3]
    if lost:
        assert sum(row["states_lost"] for row in rows(run)) == 1
        assert name.startswith("clients")
    else:
        assert rows(run) == rows(runs / "whole")


NEEDED = [(name, damage) for name in TEXTS for damage in DAMAGE]
NEEDED.remove(("environment.json", delete))


@pytest.mark.parametrize(("name", "damage"), NEEDED)
def test_an_audit_says_it_before_its_first_attack(
    run: Path, name: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run / name)
    assert in_this_process("audit", "runs/run") == 2
    captured = capsys.readouterr()
    assert_one_line(captured.err, name)
    assert not captured.out


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["config.yaml", "final_snn.safetensors"])
def test_an_export_writes_nothing_of_a_damaged_run(
    run: Path, name: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run / name)
    if (name, damage) == ("config.yaml", delete):
        pytest.skip("the file of a network may lie anywhere")
    assert in_this_process("export", "runs/run", "--input-shape", "1,8,8") == 2
    assert_one_line(capsys.readouterr().err, name)
    assert not (run / NIR_FILE).exists()


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_overwriting_a_run_deletes_nothing_before_it_knows_that_it_can(
    run: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder where a file belongs, or the reverse, is somebody's."""
    (place,) = [*run.glob(name), *([] if "*" in name or (run / name).exists() else [run / name])]
    if name in FOLDERS:
        shutil.rmtree(place, ignore_errors=True)
        place.write_text("somebody's")
    else:
        directory(place)
    before = contents(run)
    status = resume("run.overwrite=true")
    error = capsys.readouterr().err
    within = name.startswith(("clients/", "audit/"))
    assert status == (0 if within else 2), error
    if status:
        assert_one_line(error, place.name)
        assert contents(run) == before


STUDY = """
name: study
options: {run.directory: DIRECTORY, data.clients: 2, model.name: mlp, training.epochs: 1, run.rounds: 2,
          conversion.steps: 2, data.test_images: 20, conversion.calibration_images: 8}
matrix: {strategy.spiking: [true]}
energy: {images: 4}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.yaml").write_text(STUDY.replace("DIRECTORY", str(folder)))
    assert in_this_process("compare", str(folder / "study.yaml")) == 0
    return folder


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "metrics.jsonl", "extras-*.json", "accuracy.png"])
def test_a_study_says_it_before_its_first_cell(
    study: Path, name: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    (cell,) = (path for path in (study / "study").iterdir() if path.is_dir())
    (file,) = cell.glob(name)
    shutil.copytree(cell, study / "kept")
    damage(file)
    status = in_this_process("compare", str(study / "study.yaml"), "--dry-run")
    error = capsys.readouterr().err
    shutil.rmtree(cell)
    (study / "kept").rename(cell)
    harmless = name == "accuracy.png" and damage is not directory
    absent = damage is delete and name in ("environment.json", "extras-*.json")
    assert status == (0 if harmless or absent else 2), error
    if status:
        assert_one_line(error, file.name)
