"""Two commands on one folder: the second is told in one line, and changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import in_this_process

from strategies.lock import LOCK_FILE, locked
from strategies.run_directory import read_metrics

OPTIONS = ["data.clients=2", "model.name=mlp", "training.epochs=1", "conversion.steps=2", "data.test_images=20"]
OPTIONS += ["conversion.calibration_images=8", "run.rounds=2"]


pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def run(*arguments: str) -> int:
    return in_this_process("run", "empty.yaml", *OPTIONS, *arguments)


def contents() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file() and path.name != LOCK_FILE}


def assert_refused(capsys: pytest.CaptureFixture[str], status: int, folder: Path) -> None:
    error = capsys.readouterr().err
    assert status == 2
    assert error.startswith(f"snnfl: {folder}: another process of snnfl writes there; "), error
    assert error.count("\n") == 1


def test_a_second_run_of_a_name_begins_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs" / "run"
    folder.mkdir(parents=True)
    with locked(folder):
        before = contents()
        assert_refused(capsys, run(), folder)
        assert contents() == before
    assert run() == 0
    before = contents()
    with locked(folder):
        for again in ([], ["--resume", "run.rounds=3"], ["run.overwrite=true"]):
            capsys.readouterr()
            assert_refused(capsys, run(*again), folder)
        assert_refused(capsys, in_this_process("demo", *OPTIONS, "run.name=run"), folder)
    assert contents() == before
    assert run("--resume", "run.rounds=3") == 0
    assert [row["round"] for row in read_metrics(folder)] == [1, 2, 3]


def test_a_second_audit_of_a_run_and_an_overwriting_run_wait(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("audit.record=true", "strategy.spiking=false") == 0
    audit = Path("runs/run/audit")
    before = contents()
    for arguments, folder in (
        (["audit", "runs/run", "--attack", "closed_form", "--no-controls"], audit),
        (["audit", "runs/run", "--attack", "closed_form", "--no-controls", "--output", "report"], Path("report")),
    ):
        folder.mkdir(exist_ok=True)
        with locked(folder):
            capsys.readouterr()
            assert_refused(capsys, in_this_process(*arguments), folder)
    with locked(audit):
        capsys.readouterr()
        assert_refused(capsys, run("run.overwrite=true"), tmp_path / audit)
    assert contents() == before


def test_a_second_comparison_of_a_study_begins_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ", ".join(option.replace("=", ": ") for option in OPTIONS)
    Path("study.yaml").write_text(f"name: study\noptions: {{{options}}}\nmatrix: {{strategy.spiking: [true]}}\n")
    folder = Path("runs/study")
    folder.mkdir(parents=True)
    with locked(folder):
        before = contents()
        assert_refused(capsys, in_this_process("compare", "study.yaml"), folder)
    assert contents() == before
