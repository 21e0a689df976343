"""Cells in forks of a warm process: the same results as in fresh ones, and nothing passes from one to the next."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from experiments.compare.processes import Fresh, Warm, processes
from experiments.compare.scheduler import run_cells, state_of
from experiments.compare.study import read_study
from strategies.run_directory import METRICS_FILE, read_metrics

STUDY = """
name: few
plugins: [note.py]
options: {run.rounds: 2, run.directory: DIRECTORY, data.clients: 3, training.epochs: 1, conversion.steps: 2,
          evaluation.images: 20, evaluation.clients: false, conversion.calibration_images: 8,
          data.training_images: 300, model.name: mlp,
          detection.detectors: [spoils]}
matrix:
  what:
    first: {}
    dies: {detection.detectors: [dies]}
    plain: {strategy.spiking: false}
    second: {run.keep_checkpoints: 3}
    threads: {run.threads: 2}
"""

NOTE = """
import json, os, random, signal, sys
import numpy, torch
from snnfl.detection import register
from snnfl.registry import registered

seen = []

@register("dies", source="here")
def dies(view):
    os.kill(os.getpid(), signal.SIGKILL)

@register("spoils", source="here")
def spoils(view):
    if not seen:
        state = {
            "environment": os.environ.get("SPOILED"), "threads": torch.get_num_threads(),
            "omp": os.environ["OMP_NUM_THREADS"], "type": str(torch.get_default_dtype()),
            "spoiled": sorted(name for kind, name, home in registered() if name == "of_one_cell"),
            "modules": "of_one_cell" in sys.modules, "arguments": sys.argv[1:-1], "input": sys.stdin.read(),
        }
        state["draws"] = [random.random(), float(numpy.random.random()), torch.initial_seed()]
        print("NOTE", json.dumps(state), flush=True)
    seen.append(view)
    os.environ["SPOILED"] = "1"
    random.seed(0), numpy.random.seed(0), torch.manual_seed(0), torch.set_num_threads(7)
    torch.set_default_dtype(torch.float64 if len(seen) > 1 else torch.float32)
    sys.modules["of_one_cell"] = sys
    if len(seen) == 1:
        register("of_one_cell", source="here")(lambda view: None)
    return {}
"""


def written(folder: Path) -> Path:
    folder.mkdir()
    (folder / "note.py").write_text(NOTE)
    path = folder / "study.yaml"
    path.write_text(STUDY.replace("DIRECTORY", str(folder)))
    return path


def chosen(folder, *labels):
    return [cell for cell in read_study(written(folder)).cells if cell.labels["what"] in labels]


def measured(cell):
    """Return what a cell found when it started, and what it has made, times and places aside."""
    notes = [line[5:] for line in (cell.path / "cell.log").read_text().splitlines() if line.startswith("NOTE ")]
    rows = [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in read_metrics(cell.path)]
    weights = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(cell.path.glob("final_*"))}
    note = json.loads(notes[0])
    draws = note.pop("draws")
    note["arguments"] = [Path(argument).name for argument in note["arguments"]]
    return note, draws, rows, weights


@pytest.mark.slow
@pytest.mark.usefixtures("own_registries")
@pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")
def test_a_fork_is_a_fresh_process_and_one_that_is_killed_ends_alone(tmp_path):
    assert isinstance(processes(), Warm)
    warm = read_study(written(tmp_path / "warm")).cells
    failed = run_cells(warm, 1, started=Warm)
    dead = [cell for cell in warm if cell.labels["what"] == "dies"]
    assert failed == {dead[0].name: "SIGKILL ended its process after 0 rounds"}
    alive = [cell for cell in warm if cell not in dead]
    assert all(state_of(cell).finished for cell in alive)
    found = [measured(cell) for cell in alive]
    for cell, (note, _, _, _) in zip(alive, found, strict=True):
        assert note["threads"] == cell.config.run.threads
        assert note["omp"] == str(cell.config.run.threads)
        assert (note["environment"], note["spoiled"], note["modules"], note["input"]) == (None, [], False, "")
        assert note["type"] == "torch.float32"
    for kind in range(3):
        assert len({draws[kind] for _, draws, _, _ in found}) == len(found)  # as of processes of their own
    assert found[0][2:] == found[2][2:]  # whatever the first one left behind
    fresh = [
        cell for cell in read_study(written(tmp_path / "fresh")).cells if cell.labels["what"] in ("plain", "second")
    ]
    assert run_cells(fresh, 1, started=Fresh) == {}
    theirs = [measured(cell) for cell in fresh]
    assert [(note, *made) for note, _, *made in theirs] == [(note, *made) for note, _, *made in found[1:3]]


class Killing(Warm):
    """Kills the warm process when its second cell has started."""

    killed = False

    def start(self, cell, place):
        super().start(cell, place)
        [server] = self._servers.values()
        if len(server._running) == 2 and not self.killed:
            self.killed = True
            os.kill(server._process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.usefixtures("own_registries")
@pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")
def test_the_death_of_the_warm_process_costs_no_study(tmp_path):
    cells = [
        cell
        for cell in read_study(written(tmp_path / "s")).cells
        if cell.labels["what"] in ("first", "plain", "second")
    ]
    failed = run_cells(cells, 2, started=Killing)
    assert failed == {cell.name: "SIGKILL ended its process after 0 rounds" for cell in cells[:2]}
    assert state_of(cells[2]).finished
    assert run_cells(cells, 2) == {}
    assert all((cell.path / METRICS_FILE).exists() for cell in cells)


@pytest.mark.usefixtures("own_registries")
def test_a_warm_process_that_fails_is_the_reason_of_all_cells_that_waited_for_it(tmp_path, monkeypatch):
    fails = [sys.executable, "-c", "import sys; sys.stdin.readline(); sys.exit('MemoryError: no fork')"]
    monkeypatch.setattr("experiments.compare.processes._command", lambda module: fails)
    cells = chosen(tmp_path / "s", "first", "second")
    failed = run_cells(cells, 2, started=Warm)
    assert list(failed) == [cell.name for cell in cells]
    assert failed[cells[0].name].startswith("MemoryError: no fork (all of it: ")
    told = f"the process that cells are forked from has ended: {cells[0].path / 'cell.log'} says why"
    assert failed[cells[1].name].startswith(f"{told} (")
