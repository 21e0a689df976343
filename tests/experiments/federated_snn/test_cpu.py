"""CPU seconds per round: half of what three rounds take more than one."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.compare.study import Cell
from experiments.federated_snn import cpu
from snnfl.config import Config, compose

TINY = [
    "data.training_images=40", "data.test_images=20", "data.clients=2", "model.name=mlp", "training.epochs=1",
    "strategy.spiking=false", "evaluation.clients=false",
]  # fmt: skip


def test_what_a_run_takes_before_its_rounds_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []

    def seconds(config: Config, rounds: int) -> float:
        runs.append(rounds)
        return 7.0 + 1.5 * rounds + (20 if len(runs) == 1 else 0)

    monkeypatch.setattr(cpu, "_seconds", seconds)
    assert cpu.seconds_per_round(Config()) == 1.5


def test_a_run_takes_processor_time_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert 0 < cpu._seconds(compose(None, TINY), 1) < 30
    assert not list(tmp_path.iterdir())


def test_the_first_cell_of_each_kind_is_measured() -> None:
    cells = [
        Cell(labels={"kind": kind, "data": data}, seed=seed, config=Config())
        for kind in ("ANN", "SNN")
        for data in ("IID", "Dir(0.5)")
        for seed in (3, 4)
    ]
    found = cpu.first_of_each(cells)
    assert [(tuple(cell.labels.values()), cell.seed) for cell in found] == [(("ANN", "IID"), 3), (("SNN", "IID"), 3)]


def test_the_table_has_a_line_for_each_setting(tmp_path: Path) -> None:
    (tmp_path / "cpu.csv").write_text('setting,seconds\n"ANN, IID",1.2345\n')
    assert cpu.cpu_part(tmp_path / "cpu.csv").splitlines()[-1] == "| ANN, IID | 1.23 |"
