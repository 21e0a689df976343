"""The study of section 5.4: which runs it has, how a verdict is counted, and what its tables say of given rows."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import backdoor_study
from experiments.backdoor_study import DETECTORS, MORE_SEEDS, MORE_SETTINGS, SETTINGS, _counted, cases, study
from experiments.backdoor_tables import BEGIN, END, write_tables
from snnfl.auditing.scorecard import csv_rows
from snnfl.config import ConfigError
from snnfl.metrics.images import wilson

ROOT = Path(__file__).parents[2]


def test_the_cases_are_valid_runs() -> None:
    listed = list(cases(2))
    assert len({case.key for case in listed}) == len(listed) == 2 * len(SETTINGS + MORE_SETTINGS) == 40
    for case in listed:
        config = case.config("somewhere", None)
        assert config.poisoning.attackers == case.attackers
        assert config.run.seed == case.seed
        assert config.poisoning.forge_thresholds == (case.attack == "forging")
        assert config.poisoning.scale_ann == (case.attack == "replacement")
        assert (config.data.partition, config.data.beta) == {
            "iid": ("iid", 0.5),
            "dirichlet": ("dirichlet", 0.5),
            "dirichlet_0.1": ("dirichlet", 0.1),
        }[case.partition]
        assert config.detection.detectors == DETECTORS


def test_a_verdict_is_counted_by_the_ground_truth() -> None:
    found = {"scores": {"0": 1.0, "1": 5.0, "2": 3.0, "3": 3.0}, "flagged": [1, 0]}
    counted = _counted(found, (1, 2))
    assert (counted["attacking"], counted["found"], counted["honest"], counted["false_alarms"]) == (2, 1, 2, 1)
    assert float(counted["auc"]) == (1 + 1 + 1 + 0.5) / 4
    assert (float(counted["smallest_guilty"]), float(counted["largest_honest"])) == (3, 3)
    clean = _counted(found, ())
    assert (clean["attacking"], clean["auc"], clean["smallest_guilty"], clean["false_alarms"]) == (0, "", "", 2)


def test_the_tables_say_what_the_rows_say(tmp_path: Path) -> None:
    def row(attack: str, attackers: int, seed: int, found: int, false: int) -> dict[str, str]:
        verdict = {"attacking": attackers, "found": found, "honest": 10 - attackers, "false_alarms": false}
        scores = {"auc": "0.5", "smallest_guilty": "2", "largest_honest": "1"} if attackers else {"largest_honest": "1"}
        values = {"server_snn_accuracy": 0.5 + seed / 10, "server_ann_accuracy": 0.5, "round": 1, "detector": "norm"}
        success = {"attack_success_snn": 0.25, "attack_success_ann": 0.75}
        case = {"attack": attack, "partition": "iid", "attackers": attackers, "seed": seed}
        return {key: str(value) for key, value in {**case, **values, **success, **verdict, **scores}.items()}

    rows = [row("clean", 0, seed, 0, seed) for seed in (0, 1)] + [row("badnets", 2, seed, seed, 0) for seed in (0, 1)]
    quiet = {"round": "0", "attacking": "0", "found": "0", "attack_success_snn": "0.01"}  # before the attack
    rows += [{**row("badnets", 2, seed, 0, 0), **quiet} for seed in (0, 1)]
    document = tmp_path / "backdoor.md"
    with pytest.raises(ConfigError, match="put the lines"):
        write_tables(rows, document)
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_tables(rows, document)
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    average = "0.55 (0.50 to 0.60) | 0.50 (0.50 to 0.50) | 0.25 (0.25 to 0.25) | 0.75 (0.75 to 0.75)"
    assert f"| badnets | IID | 2 | 2 | {average} | 0.01 (0.01 to 0.01) |" in text
    assert f"| clean | IID | 0 | 2 | {average} | – |" in text
    assert "| badnets | IID | 2 | 0.25 / 0.00 / 0.50 |" in text
    alarms, found = wilson(1, 20), wilson(1, 4)
    assert f"| IID | 0.05 ({alarms.low:.2f} to {alarms.high:.2f}) |" in text
    assert f"| badnets | norm | 0.25 ({found.low:.2f} to {found.high:.2f}) |" in text
    assert "| 2 of 2 | 2 (2 to 2) | 1 (1 to 1) |" in text


def test_a_study_keeps_what_is_finished_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, document = tmp_path / "rows.csv", tmp_path / "backdoor.md"
    document.write_text(f"{BEGIN}\n{END}\n")
    example = csv_rows(ROOT / "docs/data/backdoor.csv")
    of = {
        key: [row for row in example if (row["attack"], row["partition"], row["attackers"], row["seed"]) == key]
        for key in (case.key for case in cases(1))
    }
    played: list[tuple[str, ...]] = []

    def play(case: backdoor_study.Case, root: str | None) -> list[dict[str, str]]:
        if len(played) == 3 and not path.with_suffix(".killed").exists():
            path.with_suffix(".killed").touch()
            raise KeyboardInterrupt
        played.append(case.key)
        return of[case.key]

    monkeypatch.setattr(backdoor_study, "play", play)
    with pytest.raises(KeyboardInterrupt):
        study(1, path, document)
    kept = path.read_text()
    study(1, path, document)
    assert played == [case.key for case in cases(1)]  # each once
    assert path.read_text().startswith(kept)
    assert csv_rows(path) == [row for rows in of.values() for row in rows]
    study(1, path, document)
    assert len(played) == len(list(cases(1)))


def test_further_settings_have_fewer_seeds() -> None:
    further = {case.seed for case in cases(5) if (case.attack, case.partition, case.attackers) in MORE_SETTINGS}
    assert further == set(range(MORE_SEEDS))


def test_the_committed_tables_are_those_of_the_committed_rows(tmp_path: Path) -> None:
    committed = (ROOT / "docs/backdoor.md").read_text(encoding="utf-8")
    rows = csv_rows(ROOT / "docs/data/backdoor.csv")
    assert {(r["attack"], r["partition"], r["attackers"], r["seed"]) for r in rows} == {c.key for c in cases(5)}
    document = tmp_path / "backdoor.md"
    document.write_text(committed, encoding="utf-8")
    write_tables(rows, document)
    assert document.read_text(encoding="utf-8") == committed


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    assert csv_rows(path) == []
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=["a", "b"])
        writer.writeheader()
        writer.writerow({"a": 1, "b": ""})
    assert csv_rows(path) == [{"a": "1", "b": ""}]


def test_a_missing_data_set_is_an_error_of_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.backdoor_study", "--seeds", "1", "--csv", str(tmp_path / "rows.csv")]
    environment = {**os.environ, "SNNFL_DATA": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: data.source=")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
