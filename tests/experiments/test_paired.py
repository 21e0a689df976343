"""Differences of a study's rows, paired by seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.paired import paired
from snnfl.config import ConfigError

HEAD = "table,row,column,values"


def test_differences_are_paired_by_seed_and_of_the_first_table_alone(tmp_path: Path) -> None:
    file = tmp_path / "tables.csv"
    file.write_text(f"{HEAD}\naccuracy,none,15,0.5 0.7\naccuracy,noise,15,0.4 0.5\nepsilon,noise,15,8 8\n")
    assert paired(file, "none") == ["noise, 15: -15.0 (-78.5 to 48.5)"]  # 12.706 * 7.07 / sqrt(2)
    file.write_text(f"{HEAD}\naccuracy,a,none,0.5\naccuracy,a,noise,0.4\n")
    assert paired(file, "none") == ["a, noise: -10.0"]


def test_a_reference_that_is_not_there_is_named(tmp_path: Path) -> None:
    file = tmp_path / "tables.csv"
    file.write_text(f"{HEAD}\naccuracy,none,15,0.5\n")
    with pytest.raises(ConfigError, match="accuracy has no row or column 'nothing'"):
        paired(file, "nothing")
    with pytest.raises(ConfigError, match="no table there"):
        paired(tmp_path / "missing.csv", "none")
