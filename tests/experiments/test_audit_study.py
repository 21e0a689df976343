"""The study behind ``docs/audit*.md``: which runs it has, that it goes on, and what its tables say of given rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from experiments import audit_study
from experiments.audit.tables import BEGIN, BEGIN_SUMMARY, END, END_SUMMARY, SUMMARISED, write_summary, write_tables
from experiments.audit_study import FILES, TABLES, configuration, merge, study, training
from snnfl.attacks import get_attack, names
from snnfl.auditing.scorecard import csv_rows
from snnfl.config import ConfigError

ROOT = Path(__file__).parents[2]

CARD = {
    "table": "lenet", "seed": "0", "accuracy": "", "cpu_s": "9", "run": "lenet_0", "algorithm": "S-FedAvg",
    "attack": "reconverted_initial", "verdict": "leaks", "victims": "10", "floor": "mean_colour", "psnr": "18.04",
    "psnr_low": "17", "psnr_high": "19", "ssim": "0.5", "label_accuracy": "1", "identified": "0.95",
    "floor_psnr": "14.6", "floor_ssim": "0.2",
}  # fmt: skip
BEST = {
    "table": "lenet", "seed": "0", "attack": "reconverted_initial", "value": "18.04", "over_floor": "3.4",
    "over_floor_low": "2", "over_floor_high": "5", "control": "inverting_gradients", "over_control": "-0.6",
    "over_control_low": "-1.4", "over_control_high": "0.3",
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_the_runs_are_valid_and_their_attacks_apply(name: str, tmp_path: Path) -> None:
    table = TABLES[name]
    for seed in (0, 1):
        config = configuration(name, seed, tmp_path)
        assert config.run.seed == seed
        assert config.strategy.spiking
        assert config.audit.record
        assert config.audit.ground_truth
        assert config.run.rounds >= table.server_round
        if table.trained:
            weights, made = training(name, seed, tmp_path)
            assert config.model.weights == str(weights)
            assert (made.run.seed, made.model.name) == (seed, config.model.name)
            assert made.model.batch_norm == config.model.batch_norm
    kinds = [get_attack(attack).against for attack in table.attacks]
    assert any("plain" in kind for kind in kinds)  # something is to be compared with
    assert all({"plain", "converted"} & {*kind} for kind in kinds)


def test_the_tables_say_what_the_rows_say(tmp_path: Path) -> None:
    other = {"seed": "1", "psnr": "16", "psnr_low": "15", "psnr_high": "17", "verdict": "unclear"}
    twin = {**CARD, "run": "lenet_0, plain twins", "algorithm": "FedAvg", "attack": "inverting_gradients"}
    refused = {**CARD, "attack": "closed_form", "psnr": "", "verdict": "refused"}
    cards = [CARD, {**CARD, **other}, twin, {**twin, **other}, refused]
    noise = [{**CARD, "table": "noise", "z": "0.01"}]
    guess = {"table": "lenet", "seed": "0", "guess": "zero", "relative": "0.9"}
    biases = [guess, {**guess, "relative": "0.7"}, {**guess, "seed": "1"}]
    found = {"scorecards.csv": [*cards, *({**row, "table": "noise"} for row in cards)], "best.csv": [BEST],
             "noise.csv": noise, "biases.csv": biases}  # fmt: skip
    document, titles = tmp_path / "audit.md", {"lenet": "LeNet-5", "noise": "Noise", "mlp": "Not made"}
    with pytest.raises(ConfigError, match="put the lines"):
        write_tables(titles, found, document)
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_tables(titles, found, document)
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "Not made" not in text
    assert "Seeds 0 / 1; 10 clients; best guess 14.6 dB and SSIM 0.20; 9 CPU-s of attacks." in text
    tail = "18.0 (17.0 to 19.0) | 16.0 (15.0 to 17.0) | 0.50 | 100% | 95% | leaks / unclear |"
    assert f"| `reconverted_initial` | S-update | {tail}" in text
    assert f"| `inverting_gradients` | plain twin | {tail}" in text
    over = "+3.4 (+2.0 to +5.0) | `inverting_gradients` | -0.6 (-1.4 to +0.3) |"
    assert f"| 0 | `reconverted_initial` | 18.0 | {over}" in text
    assert "Refused: `closed_form` (S-update)." in text
    assert "zero 80% / 90%." in text
    assert "| 0.01 | 18.0 (17.0 to 19.0) | – | 0.50 / – | 95% / – | leaks / – |" in text


def test_a_table_of_one_seed_says_so(tmp_path: Path) -> None:
    document = tmp_path / "audit.md"
    document.write_text(f"{BEGIN}\n{END}\n")
    write_tables({"lenet": "LeNet-5"}, {"scorecards.csv": [CARD], **{file: [] for file in FILES}}, document)
    assert "**One seed alone:** 0; 10 clients" in document.read_text()


def test_the_study_keeps_what_is_finished_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document, made = tmp_path / "audit-measured.md", list[tuple[str, int]]()
    document.write_text(f"{BEGIN}\n{END}\n")
    (tmp_path / "audit.md").write_text(f"{BEGIN_SUMMARY}\n{END_SUMMARY}\n")

    def attacked(name: str, seed: int, runs: Path, figure: Path, console: Console) -> dict[str, list[dict[str, str]]]:
        if (name, seed) == ("lenet", 1) and len(made) == 1:
            made.append(("killed", 0))
            raise KeyboardInterrupt
        made.append((name, seed))
        about = {"table": name, "seed": str(seed)}
        return {"scorecards.csv": [CARD | about], "best.csv": [BEST | about]}

    def go(*, again: bool = False) -> None:
        study(["lenet", "lenet_trained"], [0, 1], tmp_path, tmp_path, document, again=again)

    monkeypatch.setattr(audit_study, "attacked", attacked)
    with pytest.raises(KeyboardInterrupt):
        go()
    go()
    go()
    every = [("lenet", 0), ("lenet", 1), ("lenet_trained", 0), ("lenet_trained", 1)]
    assert made == [("lenet", 0), ("killed", 0), *every[1:]]
    for file in ("scorecards", "best"):
        assert [(row["table"], int(row["seed"])) for row in csv_rows(tmp_path / f"audit_{file}.csv")] == every
    assert "| LeNet-5, trained (seeds 0 / 1) |" in (tmp_path / "audit.md").read_text()
    go(again=True)
    assert made[5:] == every
    assert len(csv_rows(tmp_path / "audit_scorecards.csv")) == 4


def test_rows_are_replaced_and_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    for name, seed, value in (("lenet_bn", 0, "a"), ("lenet", 1, "b"), ("lenet", 0, "c"), ("lenet", 1, "d")):
        merge(path, name, seed, [{"table": name, "seed": str(seed), "value": value}])
    assert [row["value"] for row in csv_rows(path)] == ["c", "d", "a"]


@pytest.mark.parametrize(("page", "write"), [("audit-measured", write_tables), ("audit", write_summary)])
def test_the_committed_tables_are_those_of_the_committed_rows(
    tmp_path: Path, page: str, write: Callable[..., None]
) -> None:
    committed = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
    document = tmp_path / "page.md"
    document.write_text(committed, encoding="utf-8")
    titles = {name: table.title for name, table in TABLES.items()}
    found = {file: csv_rows(ROOT / f"docs/data/audit_{file}") for file in (*FILES, "scorecards.csv")}
    assert found["scorecards.csv"]
    write(titles, found, document)
    assert document.read_text(encoding="utf-8") == committed


def test_the_page_opens_with_a_picture_and_a_table_of_at_most_seven_rows() -> None:
    text = (ROOT / "docs/audit.md").read_text(encoding="utf-8")
    assert text.index("images/audit.png") < text.index(BEGIN_SUMMARY) < text.index("## What to conclude")
    assert (ROOT / "docs/images/audit.png").stat().st_size < 300_000
    assert len(SUMMARISED) <= 7


def test_the_page_says_what_every_attack_does() -> None:
    section = (ROOT / "docs/audit.md").read_text(encoding="utf-8").partition("\n## Attacks")[2].partition("\n## ")[0]
    assert {name for name in names() if f"`{name}`" not in section} == set()


def test_the_summary_says_of_each_table_what_its_best_attacks_find(tmp_path: Path) -> None:
    document = tmp_path / "audit.md"
    document.write_text(f"{BEGIN_SUMMARY}\nold\n{END_SUMMARY}\n")
    twin = {**CARD, "run": "lenet_0, plain twins", "algorithm": "FedAvg", "identified": "0.5"}
    second = {"seed": "1", "floor_psnr": "14.7"}
    found = {
        "scorecards.csv": [twin, CARD, {**CARD, **second}],
        "best.csv": [BEST, {**BEST, "seed": "1", "over_control": ""}],
    }
    write_summary({"lenet": "LeNet-5"}, found, document)
    (row,) = [line for line in document.read_text().splitlines() if line.startswith("| LeNet-5")]
    cells = "`reconverted_initial` | 18.0 | 14.6 / 14.7 | 95% | 100% | -0.6 (-1.4 to +0.3) / – |"
    assert row == f"| LeNet-5 (seeds 0 / 1) | {cells}"
