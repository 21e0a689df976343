"""A study, from its file to its table: cells, mistakes, a killed study that goes on, and numbers that are right."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from importlib import metadata
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from experiments.compare.best import Entry
from experiments.compare.cell import LOCK
from experiments.compare.command import check_compared, compare, plan, write_results
from experiments.compare.records import entries
from experiments.compare.scheduler import (
    CELL_SECONDS,
    START_SECONDS,
    places,
    run_cells,
    seconds_left,
    seconds_per_round,
    state_of,
)
from experiments.compare.study import read_study
from experiments.compare.tables import as_csv, as_latex, as_markdown
from experiments.compare.views import SOURCES, View
from snnfl.attacks import register
from snnfl.config import ConfigError, counted
from snnfl.data import test_batches
from snnfl.metrics.energy import count_spikes
from snnfl.plugins import load as run_plugin
from snnfl.spiking import load
from snnfl.workspace import Workspace
from strategies.run_directory import METRICS_FILE, SNN_FILE, read_metrics

STUDY = """
name: small
options: {run.rounds: 3, run.directory: DIRECTORY, data.clients: 3, training.epochs: 1, conversion.steps: 2,
          evaluation.images: 20, evaluation.curve: [1, 2], evaluation.clients: false, conversion.calibration_images: 8}
matrix:
  algorithm:
    FedAvg: {strategy.spiking: false}
    S-FedAvg: {strategy.spiking: true}
seeds: SEEDS
tables:
  - {paper: {source: nowhere, FedAvg: 0.5}}
  - {title: Lengths, value: accuracy_at_T, columns: T}
  - {title: Energy, value: energy, rows: network, where: {algorithm: S-FedAvg}}
figures:
  - {}
  - {title: Traffic, value: bytes_total, x: algorithm}
energy: {images: 4}
"""


def written(folder, text=STUDY, seeds="[0]"):
    path = folder / "study.yaml"
    path.write_text(text.replace("DIRECTORY", str(folder)).replace("SEEDS", seeds))
    return path


def quiet():
    return Console(quiet=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, forked):
    path = written(tmp_path_factory.mktemp("studies"), seeds="[0, 1]")
    console = Console(width=200, record=True, file=io.StringIO())
    with patch.object(sys, "executable", str(forked / "python")):
        check_compared(compare(path, [], jobs=2, console=console))
    assert console.export_text().endswith(f"ran 4 cells; report: {path.parent}/small/report.html\n")
    shutil.copy(path, path.with_name("first.yaml"))  # a test adds a seed to the other
    return path


def test_cells_are_every_combination_with_every_seed(tmp_path):
    text = STUDY.replace("seeds:", "  conversion.steps: [2, 4]\nseeds:")
    study = read_study(written(tmp_path, text, "[3, 5, 8]"))
    assert len(study.cells) == 2 * 2 * 3
    assert len({cell.path for cell in study.cells}) == 12
    assert study.cells[-1].name == "algorithm=S-FedAvg, conversion.steps=4, seed=8"
    assert study.cells[-1].config.conversion.steps == 4
    assert study.cells[-1].config.run.seed == 8


def test_what_every_cell_warns_of_is_said_once(tmp_path, caplog):
    private = ["privacy.mechanism=central", "model.batch_norm=false", "data.partition=iid"]
    study = read_study(written(tmp_path, seeds="[3, 5]"), private)
    assert len(study.cells) == 4
    said = [line for line in caplog.messages if line.startswith("privacy.mechanism=central: epsilon is of")]
    assert len(said) == 1
    caplog.clear()
    read_study(written(tmp_path), private)  # and by the next study again
    assert said[0] in caplog.messages


@settings(max_examples=5, deadline=None)
@given(seeds=st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True), rounds=st.integers(1, 9))
def test_a_cells_folder_follows_from_what_decides_its_result(tmp_path_factory, seeds, rounds):
    path = written(tmp_path_factory.mktemp("s"), seeds=str(seeds))
    study, again, other = read_study(path), read_study(path), read_study(path, [f"run.rounds={rounds + 10}"])
    assert [cell.path for cell in study.cells] == [cell.path for cell in again.cells]
    assert not {cell.path for cell in study.cells} & {cell.path for cell in other.cells}


PLUGIN = """\
from snnfl.attacks import register as attack
from snnfl.detection import register as detector

@detector("of_a_study", source="here")
def of_a_study(view):
    pass

@attack("of_a_study", source="here", needs=(), against="converted")
def attack_of_a_study(views, budget, generator):
    pass
"""


@pytest.mark.usefixtures("own_registries")
def test_a_cell_has_the_plugins_that_its_study_lists_or_names_things_of(tmp_path):
    path, file = written(tmp_path), tmp_path / "det.py"
    file.write_text(PLUGIN)
    text = path.read_text()

    def cells(more="", overrides=(), plugins=()):
        path.write_text(text + more)
        cells = read_study(path, overrides, plugins).cells
        return [(cell.path, [plugin.name for plugin in cell.plugins]) for cell in cells]

    before = cells()
    assert all(not plugins for _, plugins in before)
    run_plugin(file)  # as another call of this process may have done
    assert cells() == before
    named = cells(plugins=[file])
    assert all(plugins == ["det.py"] for _, plugins in named)
    assert not {folder for folder, _ in named} & {folder for folder, _ in before}
    assert cells("plugins: [det.py]\n") == named
    assert cells() == before
    assert all(plugins == ["det.py"] for _, plugins in cells("", ["detection.detectors=[of_a_study]"]))
    audited = cells("audit: {attacks: [of_a_study]}\n", ["audit.record=true"])
    assert all(plugins == ["det.py"] for _, plugins in audited)


@pytest.mark.usefixtures("own_registries")
def test_an_installed_attack_counts_where_a_cell_is_audited_by_all(tmp_path, monkeypatch):
    """A finished cell is another one when there is one attack more; of a session's other plug-ins none takes part."""
    path = written(tmp_path)
    path.write_text(f"{path.read_text()}audit: {{}}\n")

    class Entry:
        value, dist = "their.attack", SimpleNamespace(name="theirs", version="1.2")

        def load(self):
            @register("of_theirs", source="here", needs=(), against="converted")
            def of_theirs(views, budget, generator):
                pass

    def cells():
        return {cell.name: cell for cell in read_study(path, ["audit.record=true"]).cells}

    before = cells()
    (tmp_path / "det.py").write_text(PLUGIN)
    run_plugin(tmp_path / "det.py")
    assert [cell.path for cell in cells().values()] == [cell.path for cell in before.values()]
    monkeypatch.setattr(metadata, "entry_points", lambda group: [Entry()])
    after = cells()
    for name, cell in after.items():
        spiking = cell.config.strategy.spiking
        assert [plugin.name for plugin in cell.plugins] == (["their.attack"] if spiking else [])
        assert (cell.path != before[name].path) == spiking
    assert {cell.config.strategy.spiking for cell in after.values()} == {True, False}


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        (
            "strategy.spiking: false",
            "strategy.q: 3",
            ["cell algorithm=FedAvg, seed=0", "q=3"],
        ),
        ("strategy.spiking: true", "conversion.stepz: 3", ["cell algorithm=S-FedAvg", "did you mean 'steps'"]),
        ("columns: T", "columns: tee", ["tables[1].columns", "'tee' is no axis", "algorithm"]),
        ("columns: T", "rows: algorithm", ["tables[1]: the axis 'T' is not shown"]),
        ("x: algorithm", "x: round, lines: round", ["figures[1]: the axis 'algorithm' is not shown", "where"]),
        ("FedAvg: 0.5", "FedAvgg: 0.5", ["tables[0].paper", "did you mean 'FedAvg'"]),
        ("value: bytes_total", "value: byte_total", ["figures[1].value=byte_total", "did you mean 'bytes_total'"]),
        ("title: Traffic, value", "title: accuracy by round, value", ["figures[1].title", "another figure has it"]),
        ("energy: {images: 4}", "", ["Energy: no cell measures energy; set the key energy"]),
        ("energy: {images: 4}", "energy: {images: 4}\naudit: {}", ["audit.record: true"]),
        ("energy: {images: 4}", "audit: {attacks: [dgl]}", ["attack 'dgl' is unknown", "dlg"]),
        ("energy: {images: 4}", "audit: {attacks: []}", ["audit.attacks=[]", "leave the key out for all"]),
        ("energy: {images: 4}", "audit: {iterations: 0}", ["audit.iterations=0", "a whole number"]),
        ("run.rounds: 3", "run.keep_checkpoints: 0", ["cell algorithm=FedAvg, seed=0", "run.keep_checkpoints=0"]),
        ("seeds: [0]", "seeds: 0", ["seeds=0", "a list of whole numbers"]),
        ("seeds: [0]", "seeds: [true]", ["seeds=[True]", "a list of whole numbers"]),
        ("seeds: [0]", "seeds: [1, 0, 1]", ["seeds: 1 is given twice"]),
        ("seeds: [0]", "  data.clients: [3, 4, 3]\nseeds: [0]", ["matrix.data.clients: 3 is given twice"]),
        (
            "seeds: [0]",
            "  n:\n    1: {data.clients: 3}\n    '1': {data.clients: 4}",
            ["study.yaml: Conflicting integer and string keys: 1 and '1'"],
        ),
        ("seeds: [0]", "  run.seed: [0, 1]", ["run.seed is the study's own", "key seeds"]),
        ("seeds: [0]", "  dataset: [digits]", ["matrix.dataset: 'dataset' is no option", "options by label"]),
        ("seeds: [0]", "  data.client: [3]", ["matrix.data.client", "did you mean 'data.clients'"]),
        ("seeds: [0]", "  data.clients: 3", ["matrix.data.clients: expected a list of values, or options by label"]),
        ("run.rounds: 3", "run.seed: 3", ["run.seed is the study's own", "key seeds"]),
        ("run.rounds: 3", "run.name: x", ["run.name is the study's own", "the key name"]),
        (
            "strategy.spiking: false",
            "",
            ["algorithm=FedAvg, seed=0 and algorithm=S-FedAvg, seed=0 are one and the same run"],
        ),
        ("matrix:\n", "matrix:\n\t", ["study.yaml, line 6: a tab"]),
        ("    S-FedAvg:", "    FedAvg:", ["study.yaml, line 8: the key 'FedAvg' is given twice"]),
        ("name: small", "base: nowhere.yaml", ["cell algorithm=FedAvg, seed=0: ", "nowhere.yaml: no such file"]),
        ("name: small", "data: {clients: 3}", ["unknown key 'data'; a configuration is run by: snnfl run "]),
        ("matrix:", "matrix_:", ["unknown key 'matrix_'", "did you mean 'matrix'"]),
    ],
)
def test_a_mistake_is_named_before_anything_runs(tmp_path, old, new, parts):
    path = written(tmp_path)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ConfigError) as error:
        read_study(path)
    assert all(part in str(error.value) for part in parts), error.value
    assert len(str(error.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("options", "said"), [("[a, b]", "found ['a', 'b']"), ("text", "found text")])
def test_options_that_are_no_mapping_are_a_mistake(tmp_path, options, said):
    path = tmp_path / "study.yaml"
    path.write_text(f"options: {options}\nmatrix: {{data.clients: [3]}}\n")
    with pytest.raises(ConfigError) as error:
        read_study(path)
    assert str(error.value) == f"{path}: options: expected options such as {{run.rounds: 5}}, {said}"


@pytest.mark.parametrize(("name", "said"), [("a/b", "name=a/b"), ("..", "name=.."), ("null", "name=None")])
def test_the_name_of_a_study_is_that_of_its_folder(tmp_path, name, said):
    path = written(tmp_path, STUDY.replace("name: small", f"name: {name}"))
    with pytest.raises(ConfigError, match=f"{said}: expected a plain folder name, without '/'$"):
        read_study(path)


def test_what_the_matrix_sets_is_no_override(tmp_path):
    with pytest.raises(ConfigError, match=r"strategy\.spiking=true: the matrix sets this option; change it there$"):
        read_study(written(tmp_path), ["strategy.spiking=true"])


def test_what_every_cell_has_is_no_override(tmp_path):
    with pytest.raises(
        ConfigError, match=r"run\.seed is the study's own in every cell; list seeds under the key seeds$"
    ):
        read_study(written(tmp_path), ["run.seed=3"])


@pytest.mark.slow
def test_the_tables_hold_what_the_runs_measured(finished):
    study = read_study(finished)
    accuracy, lengths, energy = (entries(view, study.cells) for view in study.tables)
    found = {entry.row: entry for entry in accuracy}
    for name, column in (("FedAvg", "server_ann_accuracy"), ("S-FedAvg", "server_snn_accuracy")):
        values = [read_metrics(c.path)[-1][column] for c in study.cells if c.labels["algorithm"] == name]
        assert found[name].values == tuple(values)
        assert found[name].mean == pytest.approx(statistics.fmean(values))
        assert found[name].seeds == (0, 1)
    assert [(entry.row, entry.column) for entry in lengths] == [("S-FedAvg", "1"), ("S-FedAvg", "2")]
    assert lengths[1].values == found["S-FedAvg"].values  # conversion.steps=2
    assert [entry.row for entry in energy] == ["SNN", "ANN"]
    network = load(study.cells[2].path / SNN_FILE)
    [(images, _)] = test_batches(Workspace(study.cells[2].config).dataset, 4, 4)
    assert energy[0].values[0] == pytest.approx(count_spikes(network, images, steps=2).energy.compute / 1e3)


@pytest.mark.slow
def test_all_formats_hold_the_same_numbers(finished):
    study = read_study(finished)
    texts = {suffix: (study.directory / f"tables.{suffix}").read_text() for suffix in ("md", "tex", "csv")}
    [entry] = [entry for entry in entries(study.tables[0], study.cells) if entry.row == "FedAvg"]
    number, difference = f"{100 * entry.mean:.2f}", f"50.00 ({100 * (entry.mean - 0.5):+.2f})"
    assert f"{number} ± " in texts["md"]
    assert f"paper {difference}" in texts["md"]
    assert rf"{number} \pm " in texts["tex"]
    assert difference in texts["tex"]
    [line] = [line for line in csv.DictReader(texts["csv"].splitlines()) if line["row"] == "FedAvg"]
    assert float(line["mean"]) == entry.mean
    assert float(line["paper_difference"]) == entry.mean - 0.5
    assert line["pairs"] == "2"
    console = Console(width=160, record=True, quiet=False, file=io.StringIO())
    write_results(study, study.cells, console)
    said = console.export_text()
    assert f"{number} ± " in said
    assert f"paper {difference}" in said
    page = (study.directory / "report.html").read_text()
    assert f"paper {difference}" in page
    for name in ("accuracy_by_round", "traffic"):
        assert (study.directory / f"{name}.svg").read_text().count("<svg") == 1
        assert (study.directory / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    for schema in ("http://www.w3.org", "http://purl.org", "http://creativecommons.org"):
        page = page.replace(schema, "")
    assert "http" not in page
    assert "<script" not in page


def test_literal_tables():
    view = View(title="s", value="accuracy", source="rounds", down=("algorithm",), across=("T",), cited="x",
                paper={("A_1", "8"): 0.65})  # fmt: skip
    table = [
        Entry(row="A_1", column="8", values=(0.5, 0.7), paper=0.65, best=True),
        Entry(row="B", column="8", values=(0.25,), paper=None),
    ]
    assert as_markdown([(view, table)]).splitlines()[2:] == [
        "| algorithm / T | 8 |",
        "| --- | --- |",
        "| A_1 | **60.00 ± 14.14**; paper 65.00 (-5.00) |",
        "| B | 25.00 |",
    ]
    latex = as_latex([(view, table)])
    assert r"A\_1 & $\mathbf{60.00 \pm 14.14}$ \\" in latex
    assert r"\quad paper & 65.00 (-5.00) \\" in latex
    assert as_csv([(view, table)]).splitlines()[2] == "s,B,8,accuracy,0.25,,1,0.25,,,,,,,,,"


@pytest.mark.slow
def test_the_best_is_the_smallest_where_less_is_better(finished):
    study = read_study(finished)
    down = replace(study.figures[1], down=("algorithm",), across=())
    less, more = sorted(entries(down, study.cells), key=lambda entry: entry.mean)
    assert (less.best, more.best) == (True, False)  # the same whatever the seed
    assert less.difference.mean == less.mean - more.mean < 0


@pytest.mark.slow
def test_a_last_round_without_a_number_shows_none(finished, tmp_path):
    study = read_study(finished)
    cell = study.cells[0]
    copied = replace(cell, config=replace(cell.config, run=replace(cell.config.run, directory=str(tmp_path))))
    copied.path.mkdir()
    rows = read_metrics(cell.path)
    rows[-1]["train_loss"] = None
    (copied.path / METRICS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    loss = replace(study.tables[0], value="train_loss")
    assert len(entries(loss, [cell])) == 1
    assert entries(loss, [copied]) == []
    assert len(entries(replace(loss, across=("round",)), [copied])) == 2


@pytest.mark.slow
def test_every_column_of_the_metrics_can_be_shown(finished):
    row = read_metrics(read_study(finished).cells[0].path)[-1]
    shown = {*SOURCES["rounds"].values, "server_snn_accuracy_at", "detection"}
    counts = {"round", "aggregated", "asked", "faults", "absent", "test_images"}
    settings = {"learning_rate", "noise_multiplier", "clipping_norm"}
    assert set(row) - shown == {*counts, *settings, "firing_rates"}


@pytest.mark.slow
def test_more_seeds_run_only_those(finished, monkeypatch):
    study = read_study(finished)
    before = {cell.path: (cell.path / METRICS_FILE).stat().st_mtime_ns for cell in study.cells}
    assert run_cells(study.cells, 1) == {}
    assert before == {path: (path / METRICS_FILE).stat().st_mtime_ns for path in before}
    finished.write_text(finished.read_text().replace("[0, 1]", "[0, 1, 2]"))
    more = read_study(finished)
    assert [state_of(cell).finished for cell in more.cells] == [True, True, False] * 2
    states = {cell.name: state_of(cell) for cell in more.cells}
    rounds = seconds_per_round(more.cells, states)
    new = more.cells[2].name
    assert rounds[new] == pytest.approx(statistics.fmean(states[cell.name].seconds for cell in more.cells[:2]))
    left = [3 * rounds[more.cells[n].name] + CELL_SECONDS for n in (2, 5)]
    assert seconds_left(more.cells, states, rounds, 2) == pytest.approx(max(sum(left) / 2, *left) + START_SECONDS)
    assert seconds_left(more.cells, states, rounds, 1) == pytest.approx(sum(left) + START_SECONDS)
    states[new] = replace(states[new], rounds=1, seconds=rounds[new])  # what is imported is
    begun = sum(left) - rounds[new] - CELL_SECONDS
    assert seconds_left(more.cells, states, rounds, 1) == pytest.approx(begun)
    assert seconds_left(study.cells, states, rounds, 1) == 0.0


def start(path, python):
    command = [python, "-c", "from snnfl.commands import main; main()", "compare", str(path), "--jobs", "2"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def wait_for(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_locked(cell):
    try:
        with (cell.path / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill the group", "kill the study", "terminate"])
def test_a_study_that_ends_half_way_goes_on_to_the_same_table(finished, tmp_path, how, forked, monkeypatch):
    """One starts alone: what is forked has a group of its own. What goes on is forked."""
    path = written(tmp_path, seeds="[0, 1]")
    process, study = start(path, sys.executable if how == "kill the group" else forked / "python"), read_study(path)
    monkeypatch.setattr(sys, "executable", str(forked / "python"))
    wait_for(lambda: any(state_of(cell).rounds for cell in study.cells))
    if how == "kill the group":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.send_signal(signal.SIGKILL if how == "kill the study" else signal.SIGTERM)
    process.wait()
    assert not all(state_of(cell).finished for cell in study.cells)
    wait_for(lambda: not any(is_locked(cell) for cell in study.cells), seconds=60)  # nobody is left
    rounds = {cell.name: state_of(cell).rounds for cell in study.cells}
    assert any(rounds.values())
    done = {cell.name: state_of(cell).finished for cell in study.cells}
    console = Console(width=200, record=True, file=io.StringIO())
    check_compared(compare(path, [], jobs=2, console=console))
    counts = {
        "ran": sum(not count for count in rounds.values()),
        "went on with": sum(bool(count) and not done[name] for name, count in rounds.items()),
        "reused": sum(done.values()),
    }
    said = ", ".join(f"{what} {counted(count, 'cell')}" for what, count in counts.items() if count)
    assert console.export_text().splitlines()[-1] == f"{said}; report: {study.directory}/report.html"
    ours, theirs = (rows_of(read_study(f).directory) for f in (path, finished.with_name("first.yaml")))
    assert ours == theirs


def rows_of(folder):
    return (folder / "tables.csv").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("python_is_forked")
def test_a_failed_cell_is_named_and_the_others_go_on(tmp_path):
    study = read_study(written(tmp_path))
    first, second = study.cells
    first.path.mkdir(parents=True)
    with (first.path / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        failed = run_cells(study.cells, 2)
    assert list(failed) == [first.name]
    assert f"{first.path}: another process of snnfl writes there" in failed[first.name]
    assert state_of(second).finished
    assert run_cells(study.cells, 1) == {}
    assert state_of(first).finished


def test_a_dry_run_runs_nothing(tmp_path, capsys):
    path = written(tmp_path)
    plan(path, [], jobs=None, console=Console(width=200))
    said = capsys.readouterr().out
    assert "algorithm=S-FedAvg, seed=0" in said
    assert "estimated" in said
    assert "0 of 3 rounds" in said
    assert list(tmp_path.iterdir()) == [path]


def test_a_gpu_has_one_cell(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    cells = read_study(written(tmp_path)).cells
    on = [
        replace(c, config=replace(c.config, run=replace(c.config.run, device=d)))
        for c, d in zip(cells, ("cuda", "cpu"), strict=True)
    ]
    assert places(on, None)["cuda"] == [{"CUDA_VISIBLE_DEVICES": "2"}, {"CUDA_VISIBLE_DEVICES": "5"}]
    assert places(on, 1) == {"cuda": [{"CUDA_VISIBLE_DEVICES": "2"}], "cpu": [{}]}
    wide = [replace(c, config=replace(c.config, run=replace(c.config.run, threads=10**6))) for c in cells]
    assert places(wide, None) == {"cpu": [{}]}
