"""A membership study, from its file to its report: cells, mistakes, going on, other attacks on the same networks."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from experiments.membership.cell import Cell, cells_of, work_through
from experiments.membership.command import study_members, write_results
from experiments.membership.networks import LOCK, WEIGHTS, answers_file, folder_of, trials_of
from experiments.membership.progress import SECONDS_OF_FIGURES, Forecast
from experiments.membership.report import equal_gap_rows, filled_tables, membership_page, sentence
from experiments.membership.study import MembershipStudy, Network, read_membership_study
from snnfl.config import ConfigError
from strategies.lock import locked

ROOT = Path(__file__).parents[3]
STUDY = """
name: small
options: {run.directory: DIRECTORY, data.source: iris, model.name: fcnet, model.batch_norm: false,
          training.optimizer: adam, training.learning_rate: 0.01}
matrix:
  network: {ANN: {}, SNN: {model.neuron: lif, model.time_steps: 3}}
  training.epochs: [1, 6]
networks: 3
attacks: [paper, loss, rmia]
tables:
  - title: AUC
    value: auc
    rows: [network, attack]
    where: {training.epochs: 6}
    paper: {source: nowhere, "ANN, paper": 0.7}
  - {title: gap, value: gap, rows: network, columns: training.epochs}
"""


def written(folder: Path, **changes: str) -> Path:
    text = STUDY.replace("DIRECTORY", str(folder))
    for key, value in changes.items():
        text, count = re.subn(rf"^{key}: .*$", f"{key}: {value}", text, flags=re.MULTILINE)
        text += "" if count else f"\n{key}: {value}\n"
    path = folder / "study.yaml"
    path.write_text(text)
    return path


def read(folder: Path, **changes: str) -> MembershipStudy:
    return read_membership_study(written(folder, **changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> MembershipStudy:
    study = read(tmp_path_factory.mktemp("studies"))
    assert work_through(cells_of(study)) == {}
    return study


def results_of(study: MembershipStudy) -> list[dict[str, Any]]:
    return [json.loads(setting.results.read_text()) for setting in study.settings]


def test_cells_are_targets_and_the_shadows_that_attacks_need(tmp_path: Path) -> None:
    study = read(tmp_path)
    kinds = [cell.network.kind if cell.network else "attacks" for cell in cells_of(study)]
    assert {kind: kinds.count(kind) for kind in kinds} == {"attacks": 4, "network": 12, "overlap": 12}
    fewer = read(tmp_path, deny="[overlap]")
    assert {cell.network.kind for cell in cells_of(fewer) if cell.network} == {"network"}
    more = read(tmp_path, attacks="[svm_logits]")
    assert sum(cell.network is not None and cell.network.kind == "disjoint" for cell in cells_of(more)) == 4


def test_a_finished_study_has_everything(finished: MembershipStudy) -> None:
    console = Console(record=True, quiet=False, file=open(os.devnull, "w"), width=200)  # noqa: SIM115
    write_results(finished, results_of(finished), console)
    names = {path.name for path in finished.directory.iterdir()}
    assert {"report.html", "tables.md", "tables.csv", "tables.tex", "results.json"} <= names
    assert len([name for name in names if name.endswith(".svg")]) == 4
    page = (finished.directory / "report.html").read_text()
    for part in ("In short", "Tables", "At equal gaps", "ROC", "Scorecard", "Can it be believed", "<svg"):
        assert part in page
    shown = console.export_text()
    assert "network=SNN, training.epochs=6: the best attack" in shown
    assert "paper 0.7" in (finished.directory / "tables.md").read_text()
    assert "over 3 targets" in (finished.directory / "tables.md").read_text()


def test_members_are_half_of_the_candidates_and_differ_from_network_to_network(finished: MembershipStudy) -> None:
    trials = trials_of(finished.settings[0])
    members = [network.members for network in trials.networks]
    assert all(int(each.sum()) == 60 for each in members)
    assert len({tuple(each.tolist()) for each in members}) == 3
    assert all(other.members is not None for other in trials.networks)
    overlap = trials.networks[0].overlap
    assert overlap is not None
    assert int(overlap.members.sum()) == 48
    assert not (overlap.members & ~members[0]).any()


def test_what_is_finished_is_not_done_again(finished: MembershipStudy) -> None:
    weights = {path: path.stat().st_mtime_ns for path in finished.directory.rglob(WEIGHTS)}
    answers = finished.settings[0]
    file = answers_file(answers, Network(kind="network", number=1))
    before = file.read_bytes()
    file.unlink()
    assert work_through(cells_of(finished)) == {}
    assert file.read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in finished.directory.rglob(WEIGHTS)} == weights


def test_other_attacks_share_the_networks(finished: MembershipStudy) -> None:
    weights = {path: path.stat().st_mtime_ns for path in finished.directory.rglob(WEIGHTS)}
    study = read(finished.directory.parent, attacks="[lira_online, attack_r]")
    assert work_through(cells_of(study)) == {}
    assert {path: path.stat().st_mtime_ns for path in finished.directory.rglob(WEIGHTS)} == weights
    assert [entry["attack"] for entry in results_of(study)[0]["entries"]] == ["lira_online", "attack_r", "best"]


def test_a_network_is_the_same_whoever_trains_it_and_in_any_order(finished: MembershipStudy, tmp_path: Path) -> None:
    study = read(tmp_path)
    cell = next(cell for cell in reversed(cells_of(study)) if cell.network == Network(kind="network", number=2))
    cell.folder.mkdir(parents=True)
    cell.run()
    other = next(s for s in finished.settings if s.labels == cell.setting.labels)
    assert cell.network is not None
    weights = folder_of(cell.setting, cell.network) / WEIGHTS
    assert weights.read_bytes() == (folder_of(other, cell.network) / WEIGHTS).read_bytes()


def test_a_cell_that_another_process_holds_is_left_to_it(tmp_path: Path) -> None:
    study = read(tmp_path)
    held = cells_of(study)[-1]
    held.folder.mkdir(parents=True)
    done: list[str] = []

    def run(cell: Cell) -> None:
        done.append(cell.name)
        cell.file.parent.mkdir(parents=True, exist_ok=True)
        cell.file.write_text("{}")
        if len(done) == 3:
            held.file.write_text("{}")  # the other process ends

    with pytest.MonkeyPatch.context() as patch, locked(held.folder, LOCK):
        patch.setattr(Cell, "run", run)
        assert work_through(cells_of(study)) == {}
    assert held.name not in done
    assert len(done) == len(cells_of(study)) - 1


def test_a_network_that_cannot_be_trained_stops_no_other(tmp_path: Path) -> None:
    study = read(tmp_path, attacks="[loss]")
    bad = next(cell for cell in cells_of(study) if cell.network is not None)

    def run(cell: Cell) -> None:
        if cell.name == bad.name:
            raise RuntimeError("diverged")
        cell.file.parent.mkdir(parents=True, exist_ok=True)
        cell.file.write_text("{}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cell, "run", run)
        failed = work_through(cells_of(study))
    assert list(failed) == [bad.name]
    assert sum(cell.finished for cell in cells_of(study)) == len(cells_of(study)) - 2  # it, and the attacks on it


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "over/there"}, "name=over/there: expected a plain folder name"),
        ({"networks": "1"}, "networks=1: expected at least 2"),
        ({"attacks": "[rnia]"}, "unknown"),
        ({"attacks": "[]"}, "attacks=[]: name attacks, or leave the key out"),
        ({"attacks": "3"}, "unknown"),
        ({"deny": "[shadows]"}, "did you mean 'shadow_data'"),
        ({"matrix": "{}"}, "matrix is empty"),
        ({"matrix": "{training.epochs: []}"}, "matrix.training.epochs: expected a list of values"),
        (
            {"options": "{data.source: iris, strategy.name: fedprox}"},
            "strategy.name=fedprox: each network is trained by",
        ),
        ({"options": "{data.source: iris, data.clients: 5}"}, "data.clients=5: each network is trained by itself"),
        ({"tables": "[{value: accuracy}]"}, "accuracy is measured of federations"),
        ({"network": "3"}, "unknown key 'network'; did you mean 'networks'"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_trained(
    tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    path = written(tmp_path)
    text = path.read_text()
    for key, value in changes.items():
        text = re.sub(rf"^{key}:(.|\n )*$", "", text, flags=re.MULTILINE)
        if key in ("matrix", "tables", "options"):
            text = re.sub(rf"^{key}:.*?(?=^\w)", "", text + "zz: 0\n", flags=re.MULTILINE | re.DOTALL).replace(
                "zz: 0\n", ""
            )
        text += f"\n{key}: {value}\n"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        read_membership_study(path)
    assert "\n" not in str(error.value)
    assert str(error.value).count(str(path)) <= 1


def test_an_empty_study_is_told_what_one_has(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(ConfigError, match="it is empty; expected the keys of a study, such as matrix and attacks"):
        read_membership_study(tmp_path / "empty.yaml")


def test_forecast_learns_from_what_cells_took(finished: MembershipStudy, tmp_path: Path) -> None:
    """Twice as slow as expected so far: twice as much is left. What a process has spent counts."""
    study = read(tmp_path)
    cells = [cell for cell in cells_of(study) if cell.network is not None]
    forecast = Forecast(cells)
    forecast.expected = {cell.name: 10.0 for cell in cells}
    assert forecast.left(1) == pytest.approx(10 * len(cells))
    assert forecast.left(2) == pytest.approx(5 * len(cells))
    assert forecast.left(2, busy=4.0) == pytest.approx(5 * len(cells) - 2)
    first = cells[0]
    first.folder.mkdir(parents=True)
    first.file.write_text("")
    assert first.network is not None
    (folder_of(first.setting, first.network) / "seconds.json").write_text('{"train": 15, "ask": 5}')
    assert forecast.look() == 1
    assert forecast.left(1) == pytest.approx(20 * (len(cells) - 1))
    assert Forecast(cells_of(finished)).left(2) == 0


def test_forecast_counts_what_cells_take_beside_their_own_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two processes: the first cells come late, which is of the start, and then one every two seconds."""
    cells = [cell for cell in cells_of(read(tmp_path)) if cell.network is not None]
    forecast = Forecast(cells)
    forecast.expected = {cell.name: 1.0 for cell in cells}
    for count, now in ((1, 100.0), (4, 106.0)):
        monkeypatch.setattr("experiments.membership.progress.time.monotonic", lambda now=now: now)
        for cell in cells[:count]:
            assert cell.network is not None
            cell.folder.mkdir(parents=True, exist_ok=True)
            cell.file.write_text("")
            (folder_of(cell.setting, cell.network) / "seconds.json").write_text('{"train": 1}')
        assert forecast.look() == count
        if count == 1:
            assert forecast.left(2) == pytest.approx((len(cells) - 1) / 2)
    assert forecast.left(2) == pytest.approx((len(cells) - 4) * (6 * 2 / 3) / 2)


def test_forecast_corrects_a_setting_by_its_own_networks_and_attacks_by_attacks(tmp_path: Path) -> None:
    """One setting is slower than expected, the others aren't; attacks are as slow as networks until one has run."""
    study = read(tmp_path)
    cells = cells_of(study)
    forecast = Forecast(cells)
    forecast.expected = {cell.name: 10.0 for cell in cells}
    slow, fast = ([cell for cell in cells if cell.setting is study.settings[n] and cell.network] for n in (0, 1))
    for cell, taken in ((slow[0], 90), (fast[0], 10)):
        assert cell.network is not None
        cell.file.parent.mkdir(parents=True)
        cell.file.write_text("")
        (folder_of(cell.setting, cell.network) / "seconds.json").write_text(json.dumps({"train": taken}))
    assert forecast.look() == 2
    others, figures = len(cells) - len(slow) - len(fast), len(study.settings) * SECONDS_OF_FIGURES * 5
    assert forecast.left(1) == pytest.approx(90 * (len(slow) - 1) + 10 * (len(fast) - 1) + 50 * others + figures)
    study.settings[2].results.parent.mkdir(parents=True)
    study.settings[2].results.write_text('{"seconds": 20}')
    forecast.look()
    networks = others - len(study.settings)
    expected = 90 * (len(slow) - 1) + 10 * (len(fast) - 1) + 50 * networks + 20 * (len(study.settings) - 1)
    assert forecast.left(1) == pytest.approx(expected + figures)


def test_networks_are_compared_at_equal_gaps() -> None:
    def result(source: str, network: str, epochs: int, gap: float, value: float) -> dict[str, Any]:
        labels = {"data.source": source, "network": network, "training.epochs": str(epochs)}
        return {
            "labels": labels,
            "gaps": {"values": {"gap": [gap, gap + 0.01]}},
            "entries": [{"attack": "best", "values": {"auc": [value, value]}}],
        }

    rows = equal_gap_rows(
        [
            result("iris", "ANN", 1, 0.0, 0.5), result("iris", "ANN", 9, 0.2, 0.7),
            result("iris", "SNN", 1, 0.0, 0.5), result("iris", "SNN", 9, 0.1, 0.6),
        ]
    )  # fmt: skip
    assert [row[0] for row in rows] == ["iris, ANN", "iris, SNN"]
    assert [row[2][:5] for row in rows] == ["0.550", "0.550"]  # type: ignore[index]
    assert rows[0][1] == rows[1][1] == "5.5 %"


def test_a_sentence_says_when_members_differ_from_others_without_any_network(finished: MembershipStudy) -> None:
    found = results_of(finished)[0]
    assert "Not believable" not in sentence(found)
    entries = [{**entry, "verdict": "unclear"} for entry in found["entries"]]
    by_name = {entry["attack"]: entry for entry in entries}
    high = by_name["best"]["auc"]["high"]
    assert f"that may be chance, and an AUC of up to {high:.3f} isn't excluded." in sentence(
        {**found, "entries": entries}
    )
    assert "Not believable" in sentence({**found, "blind": {"value": 0.8, "low": 0.7, "high": 0.9}})
    assert "Scorecard" in membership_page("title", [found], filled_tables(finished.tables, [found]))


@pytest.mark.slow
def test_a_killed_study_goes_on_and_its_processes_end_with_it(
    tmp_path: Path, forked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is killed has started alone, what goes on is forked."""
    path = written(tmp_path, networks="5")
    command = [sys.executable, "-m", "snnfl", "membership", str(path), "--jobs", "2"]
    killed = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("answers*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    time.sleep(2.5)  # a process looks every second whether its parent lives
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob(WEIGHTS)}
    assert before
    time.sleep(1.0)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob(WEIGHTS)} == before
    monkeypatch.setattr(sys, "executable", str(forked / "python"))
    study_members(path, jobs=2, console=Console(quiet=True))
    after = {file: file.stat().st_mtime_ns for file in tmp_path.rglob(WEIGHTS)}
    assert len(after) > len(before)
    assert {file: after[file] for file in before} == before
    assert (tmp_path / "small" / "report.html").exists()


def test_converted_networks_are_asked_beside_those_that_they_were_made_of(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        STUDY.replace("DIRECTORY", str(tmp_path))
        .replace("SNN: {model.neuron: lif, model.time_steps: 3}", "S: {strategy.spiking: true, conversion.steps: 4}")
        .replace("[paper, loss, rmia]", "[loss, svm_counts]")
        .replace("ANN, paper", "ANN, loss")
    )
    study = read_membership_study(file)
    assert not work_through([cell for cell in cells_of(study) if cell.network])
    ordinary, converted = study.settings[1], study.settings[3]
    assert (ordinary.labels["network"], converted.labels["network"]) == ("ANN", "S")
    weights = [load_file(folder_of(setting, setting.cells[0]) / WEIGHTS) for setting in (ordinary, converted)]
    assert all(torch.equal(array, weights[1][name]) for name, array in weights[0].items())
    asked = [trials_of(setting).networks[0].signals for setting in (ordinary, converted)]
    assert asked[0].counts is None
    assert asked[1].counts is not None
    assert not torch.allclose(asked[0].logits, asked[1].logits)


def test_an_option_of_conversion_without_conversion_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"conversion.steps=4: each network is trained by itself; leave it out"):
        read(tmp_path, options="{data.source: iris, model.name: fcnet, conversion.steps: 4,")
