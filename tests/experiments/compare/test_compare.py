"""A study, from its file to its table: cells, mistakes, a killed study that goes on, and numbers that are right."""

from __future__ import annotations

import fcntl
import os
import signal
import statistics
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from experiments.compare.cell import LOCK
from experiments.compare.command import compare
from experiments.compare.scheduler import run_cells, seconds_left, state_of
from experiments.compare.study import read_study
from experiments.compare.tables import Entry, as_csv, as_latex, as_markdown, entries
from snnfl.config import ConfigError
from strategies.run_directory import METRICS_FILE, read_metrics

STUDY = """
name: small
options: {run.rounds: 3, run.directory: DIRECTORY, data.clients: 3, training.epochs: 1, conversion.steps: 2,
          evaluation.images: 20, evaluation.clients: false, conversion.calibration_images: 8}
matrix:
  algorithm:
    FedAvg: {strategy.spiking: false}
    S-FedAvg: {strategy.spiking: true}
seeds: SEEDS
table: {rows: algorithm, value: accuracy}
paper: {source: nowhere, FedAvg: 0.5}
"""


def written(folder, text=STUDY, seeds="[0]"):
    path = folder / "study.yaml"
    path.write_text(text.replace("DIRECTORY", str(folder)).replace("SEEDS", seeds))
    return path


def quiet():
    return Console(quiet=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = written(tmp_path_factory.mktemp("studies"), seeds="[0, 1]")
    compare(path, [], dry_run=False, jobs=2, console=quiet())
    return path


def test_cells_are_every_combination_with_every_seed(tmp_path):
    text = STUDY.replace("seeds:", "  conversion.steps: [2, 4]\nseeds:")
    study = read_study(written(tmp_path, text, "[3, 5, 8]"))
    assert len(study.cells) == 2 * 2 * 3
    assert len({cell.path for cell in study.cells}) == 12
    assert study.cells[-1].name == "algorithm=S-FedAvg, conversion.steps=4, seed=8"
    assert study.cells[-1].config.conversion.steps == 4
    assert study.cells[-1].config.run.seed == 8


@settings(max_examples=5, deadline=None)
@given(seeds=st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True), rounds=st.integers(1, 9))
def test_a_cells_folder_follows_from_what_decides_its_result(tmp_path_factory, seeds, rounds):
    path = written(tmp_path_factory.mktemp("s"), seeds=str(seeds))
    study, again, other = read_study(path), read_study(path), read_study(path, [f"run.rounds={rounds + 10}"])
    assert [cell.path for cell in study.cells] == [cell.path for cell in again.cells]
    assert not {cell.path for cell in study.cells} & {cell.path for cell in other.cells}


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        (
            "strategy.spiking: false",
            "strategy.q: 3",
            ["cell algorithm=FedAvg, seed=0", "q=3"],
        ),
        ("strategy.spiking: true", "conversion.stepz: 3", ["cell algorithm=S-FedAvg", "did you mean 'steps'"]),
        ("rows: algorithm", "rows: algoritm", ["'algoritm' is no axis", "did you mean 'algorithm'"]),
        ("seeds: [0]", "seeds: 0", ["seeds=0", "a list of whole numbers"]),
        ("matrix:", "matrix_:", ["unknown key 'matrix_'", "did you mean 'matrix'"]),
    ],
)
def test_a_mistake_is_named_before_anything_runs(tmp_path, old, new, parts):
    path = written(tmp_path)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ConfigError) as error:
        read_study(path)
    assert all(part in str(error.value) for part in parts), error.value
    assert len(str(error.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_the_table_holds_what_the_runs_measured(finished):
    study = read_study(finished)
    found = {entry.row: entry for entry in entries(study, study.cells)}
    for name, column in (("FedAvg", "server_ann_accuracy"), ("S-FedAvg", "server_snn_accuracy")):
        values = [read_metrics(c.path)[-1][column] for c in study.cells if c.labels["algorithm"] == name]
        assert found[name].values == tuple(values)
        assert found[name].mean == pytest.approx(statistics.fmean(values))
    text = (study.directory / "table.md").read_text()
    assert "**" in text
    assert "paper 50.00 (" in text
    assert "http" not in (study.directory / "report.html").read_text().replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", "")


def test_literal_tables():
    study = type("Study", (), {"rows": "algorithm", "columns": "T", "value": "accuracy", "name": "s"})()
    table = [
        Entry(row="A_1", column="8", values=(0.5, 0.7), paper=0.65, best=True),
        Entry(row="B", column="8", values=(0.25,), paper=None),
    ]
    assert as_markdown(study, table).splitlines() == [
        "| algorithm | 8 |",
        "| --- | --- |",
        "| A_1 | **60.00 ± 14.14**; paper 65.00 (-5.00) |",
        "| B | 25.00 |",
    ]
    assert r"A\_1 & $\mathbf{60.00 \pm 14.14}$ \\" in as_latex(study, table)
    assert as_csv(study, table).splitlines()[2] == "B,8,accuracy,0.25,,1,0.25,"


def test_more_seeds_run_only_those(finished, monkeypatch):
    study = read_study(finished)
    before = {cell.path: (cell.path / METRICS_FILE).stat().st_mtime_ns for cell in study.cells}
    assert run_cells(study.cells, 1) == {}
    assert before == {path: (path / METRICS_FILE).stat().st_mtime_ns for path in before}
    finished.write_text(finished.read_text().replace("[0, 1]", "[0, 1, 2]"))
    more = read_study(finished)
    assert [state_of(cell).finished for cell in more.cells] == [True, True, False] * 2
    assert seconds_left(more.cells) > 0


def test_a_killed_study_goes_on_to_the_same_table(finished, tmp_path):
    slow = STUDY.replace("run.rounds: 3", "run.rounds: 6")
    reference, broken = tmp_path / "a", tmp_path / "b"
    for folder in (reference, broken):
        folder.mkdir()
    compare(written(reference, slow), [], dry_run=False, jobs=2, console=quiet())
    path = written(broken, slow)
    command = [sys.executable, "-c", "from experiments.cli import main; main()", "compare", str(path), "--jobs", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    study, deadline = read_study(path), time.monotonic() + 120
    while not any(state_of(cell).rounds for cell in study.cells):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not all(state_of(cell).finished for cell in study.cells)
    time.sleep(2.5)  # the orphaned cells notice
    compare(path, [], dry_run=False, jobs=2, console=quiet())
    ours, theirs = ((read_study(f / "study.yaml").directory / "table.csv").read_text() for f in (reference, broken))
    assert ours == theirs


def test_a_failed_cell_is_named_and_the_others_go_on(tmp_path):
    study = read_study(written(tmp_path))
    first, second = study.cells
    first.path.mkdir(parents=True)
    with (first.path / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        failed = run_cells(study.cells, 2)
    assert list(failed) == [first.name]
    assert "another process runs this cell" in failed[first.name]
    assert state_of(second).finished
    assert run_cells(study.cells, 1) == {}
    assert state_of(first).finished


def test_a_dry_run_runs_nothing(tmp_path, capsys):
    path = written(tmp_path)
    compare(path, [], dry_run=True, jobs=None, console=Console(width=200))
    said = capsys.readouterr().out
    assert "algorithm=S-FedAvg, seed=0" in said
    assert "unknown until a round is measured" in said
    assert list(tmp_path.iterdir()) == [path]
