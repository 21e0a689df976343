"""What an audit of a cell leaves, beside the audit's own files and the recording."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from experiments.compare.cell import run_cell
from experiments.compare.extras import AuditPlan, Extras
from experiments.compare.records import entries
from experiments.compare.scheduler import state_of
from experiments.compare.study import read_study
from snnfl.auditing.bias_errors import bias_errors
from snnfl.auditing.recording import read_recording
from snnfl.auditing.victims import setting_of, victims_of
from snnfl.config import compose, to_yaml
from snnfl.workspace import Workspace
from strategies.run_directory import AUDIT

STUDY = """
name: audited
options: {run.rounds: 1, run.directory: DIRECTORY, data.clients: 2, training.epochs: 1, training.batch_size: 256,
          conversion.steps: 2, evaluation.images: 20, evaluation.clients: false, conversion.calibration_images: 8,
          audit.record: true, audit.ground_truth: true, audit.clients: [0]}
matrix: {algorithm: {S-FedAvg: {}}}
tables:
  - {value: psnr, rows: attack, columns: iterations}
  - {value: psnr, rows: attack}
  - {value: threshold, rows: layer}
  - {value: bias_distance, rows: guess}
figures: [{value: psnr, x: iterations, lines: attack}]
audit: {attacks: snn_naive, iterations: [2, 1]}
"""


def test_a_study_shows_what_an_audit_of_its_cells_found(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.replace("DIRECTORY", str(tmp_path)))
    study = read_study(path)
    [cell] = study.cells
    file = tmp_path / "cell.yaml"
    file.write_text(to_yaml(cell.config))
    run_cell(file, cell.extras)
    assert state_of(cell).finished
    budgets, largest, thresholds, biases = (entries(view, study.cells) for view in study.tables)
    assert [(entry.row, entry.column) for entry in budgets] == [("snn_naive", "1"), ("snn_naive", "2")]
    [score] = json.loads((cell.path / AUDIT / "scorecard.json").read_text())
    assert largest[0].values == (score["value"],) == budgets[1].values
    assert not any(entry.best for entry in largest)  # for the attacker or for the client?
    [received] = read_recording(cell.path / AUDIT)
    arrays = received.exchange.received
    expected = sorted(float(arrays[name].mean()) for name in arrays if name.endswith(".threshold"))
    assert sorted(entry.mean for entry in thresholds) == expected
    found = {entry.row: entry.mean for entry in biases}
    victims = victims_of(setting_of(Workspace(cell.config)), cell.path / AUDIT, AuditPlan().scopes[0])
    for guess, mean in found.items():
        errors = [error.distance for error in bias_errors(victims) if error.source == guess]
        assert mean == pytest.approx(sum(errors) / len(errors))
    assert found["inferred"] > 0
    stamp = (cell.path / cell.extras.file).stat().st_mtime_ns
    run_cell(file, cell.extras)
    assert (cell.path / cell.extras.file).stat().st_mtime_ns == stamp


def test_what_is_asked_survives_its_file():
    asked = Extras(energy_images=3, audit=AuditPlan(attacks=("dlg",), rounds=(1,), iterations=(5, 9), labels=True))
    assert Extras.from_json(asked.to_json()) == asked
    assert "colluding" not in asked.to_json()  # what was measured before there were any is found again
    colluding = replace(asked, audit=replace(asked.audit, colluding=(0, 4)))
    assert Extras.from_json(colluding.to_json()) == colluding
    assert colluding.of(compose(None, ["audit.record=true"])).audit == asked.audit
    secure = compose(None, ["audit.record=true", "strategy.secure_aggregation=true"])
    assert colluding.of(secure).audit == colluding.audit
    assert "differences" not in colluding.to_json()
    compared = replace(asked, audit=replace(asked.audit, differences=True))
    assert Extras.from_json(compared.to_json()) == compared
    assert compared.of(compose(None, ["audit.record=true"])).audit == asked.audit
    assert [scope.differences for scope in compared.of(secure).audit.scopes] == [False, True]
    assert asked.file != Extras(energy_images=4, audit=asked.audit).file
