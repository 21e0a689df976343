"""The READMEs of studies say what the committed results say."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from scipy.stats import ttest_rel

from experiments.compare.best import Entry
from experiments.snfl import cost
from experiments.study_readme import FOLDERS, HERE, _difference, markers, paper_part, parts_of, write_readme
from snnfl.config import ConfigError, compose


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_readme_holds_what_the_committed_results_give(folder: str) -> None:
    text = (HERE / folder / "README.md").read_text()
    made = parts_of(HERE / folder)
    assert "measured" in made
    for name, part in made.items():
        begin, end = markers(name)
        assert text.count(begin) == text.count(end) == 1
        assert text.partition(begin)[2].partition(end)[0].strip() == part.strip(), "python -m experiments.study_readme"


@pytest.mark.parametrize("folder", FOLDERS)
def test_committed_results_have_a_value_for_each_of_three_seeds(folder: str) -> None:
    with (HERE / folder / "laptop.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert all(len(row["values"].split()) >= 3 for row in rows)
    assert (HERE / folder / "laptop.csv").stat().st_size < 50_000


def test_what_stands_around_the_markers_stays(tmp_path: Path) -> None:
    folder = tmp_path / "a2_participation"
    folder.mkdir()
    (folder / "paper.yaml").write_text((HERE / "snfl" / "a2_participation" / "paper.yaml").read_text())
    with pytest.raises(ConfigError, match=r"README.md: put the lines <!-- begin paper"):
        write_readme(folder)
    begin, end = markers("paper")
    (folder / "README.md").write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    write_readme(folder)
    text = (folder / "README.md").read_text()
    assert text == f"before\n{begin}\n{paper_part(folder)}\n{end}\nafter\n"
    assert "| S-FedAvg | 73.29 | 83.53 | 89.87 | 90.13 | 90.31 |" in text


@pytest.mark.parametrize("folder", [name for name in FOLDERS if (HERE / name / "search.yaml").exists()])
def test_learning_rates_are_the_best_ones_of_a_seed_that_is_not_reported(folder: str) -> None:
    search, laptop = (OmegaConf.load(HERE / folder / f"{name}.yaml") for name in ("search", "laptop"))
    assert not set(search.seeds) & set(laptop.seeds)
    assert search.matrix["training.learning_rate"] == sorted(search.matrix["training.learning_rate"])
    with (HERE / folder / "search.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for kind in search.matrix.kind:
        tried = {float(row["column"]): float(row["mean"]) for row in rows if row["row"] == kind}
        assert list(tried) == list(search.matrix["training.learning_rate"])
        chosen = laptop.matrix.kind[kind].get("training.learning_rate", laptop.options.get("training.learning_rate"))
        assert tried[chosen] == max(tried.values()), kind


numbers = st.lists(st.floats(0, 1).map(lambda value: round(value, 3)), min_size=3, max_size=5)


@given(numbers, numbers)
def test_an_interval_excludes_zero_where_the_paired_t_test_says_so(more: list[float], less: list[float]) -> None:
    count = min(len(more), len(less))
    more, less = more[:count], less[:count]
    differences = [round(a - b, 3) for a, b in zip(more, less, strict=True)]
    assume(len(set(differences)) > 1)
    p = ttest_rel(more, less).pvalue
    assume(abs(p - 0.05) > 1e-3)
    ours, theirs = (Entry(row="", column="", values=tuple(values)) for values in (more, less))
    text, clear = _difference(ours, theirs, percent=True)
    assert clear == (p < 0.05)
    assert float(text.partition(" ")[0]) == pytest.approx(100 * sum(differences) / count, abs=0.006)


def test_a_difference_in_words() -> None:
    more = Entry(row="S-FedAvg", column="", values=(0.5, 0.6), paper=0.95)
    less = Entry(row="FedAvg", column="", values=(0.4, 0.4), paper=0.925)
    text, clear = _difference(more, less, percent=True)
    assert text == "+15.00 (-48.53 to +78.53); paper +2.50"  # 12.706 standard errors of 5 on either side
    assert not clear
    assert _difference(more, None, percent=True) == ("–", False)


def test_the_extrapolation_is_units_times_seconds() -> None:
    config = compose(cost.SETTING)
    units = cost.amounts(config, training_images=50_000, test_images=10_000)
    assert units["training"] == 100 * 5 * 50_000
    assert units["conversion"] == 100 * 10 * 128 * 256
    assert units["simulation"] == (99 * 1000 + 10_000) * 256
    rows = [
        {"work": name, "unit": "u", "units": str(3600 * n), "seconds": "2"} for n, name in enumerate(units, start=1)
    ]
    text = cost.cost_part(rows)
    assert "| conversion | u | 7,200 | 2.0000 | 4 |" in text
    assert "S-FedAvg takes 20 CPU-hours" in text
    assert "FedAvg, which trains and tests alone, 10 " in text
