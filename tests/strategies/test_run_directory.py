"""The folder of a run."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snnfl.config import Config, ConfigError, compose
from strategies.environment import _commit, environment
from strategies.run_directory import (
    ANN_FILE,
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    FIGURE_FILES,
    METRICS_FILE,
    NIR_FILE,
    SNN_FILE,
    RunDirectory,
    RunFileError,
    read_config,
    read_metrics,
)

WRITTEN = (CONFIG_FILE, ENVIRONMENT_FILE, METRICS_FILE, ANN_FILE, SNN_FILE, NIR_FILE, *FIGURE_FILES)


def config_of(directory: Path | str, name: str = "one", *overrides: str) -> Config:
    return compose(None, [f"run.directory={directory}", f"run.name={name}", *overrides])


def test_a_new_folder_holds_the_configuration_and_the_environment(tmp_path: Path) -> None:
    config = config_of(tmp_path / "deep" / "er", "one", "training.milestones=[3,4]", "data.root=null", "run.seed=9")
    run = RunDirectory.create(config)
    assert run.path == (tmp_path / "deep" / "er" / "one").resolve()
    assert sorted(os.listdir(run.path)) == [CONFIG_FILE, ENVIRONMENT_FILE]
    assert compose(run.path / CONFIG_FILE) == config
    facts = json.loads((run.path / ENVIRONMENT_FILE).read_text(encoding="utf-8"))
    assert facts["packages"]["torch"] == torch.__version__
    assert set(facts) == set(environment(config))


def test_an_earlier_run_is_not_overwritten(tmp_path: Path) -> None:
    run = RunDirectory.create(config_of(tmp_path))
    run.append_metrics({"round": 1})
    before = {name: (run.path / name).read_bytes() for name in os.listdir(run.path)}
    with pytest.raises(ConfigError, match=r"run.name=one: .* holds an earlier run; .* run.overwrite=true"):
        RunDirectory.create(config_of(tmp_path, "one", "run.seed=1"))
    assert {name: (run.path / name).read_bytes() for name in os.listdir(run.path)} == before
    RunDirectory.create(config_of(tmp_path, "two"))


def test_overwriting_removes_what_a_run_writes_and_nothing_else(tmp_path: Path) -> None:
    run = RunDirectory.create(config_of(tmp_path))
    for name in (*WRITTEN, "notes.txt", "metrics.jsonl.bak"):
        (run.path / name).write_text("old")
    (run.path / "figures").mkdir()
    (run.path / "figures" / METRICS_FILE).write_text("old")
    (tmp_path / "elsewhere.yaml").write_text("old")
    (run.path / CONFIG_FILE).unlink()
    (run.path / CONFIG_FILE).symlink_to(tmp_path / "elsewhere.yaml")
    RunDirectory.create(config_of(tmp_path, "one", "run.overwrite=true", "run.seed=3"))
    kept = ["figures", "metrics.jsonl.bak", "notes.txt"]
    assert sorted(os.listdir(run.path)) == sorted([CONFIG_FILE, ENVIRONMENT_FILE, *kept])
    assert (run.path / "figures" / METRICS_FILE).read_text() == "old"
    assert (tmp_path / "elsewhere.yaml").read_text() == "old"  # the link was removed, not followed
    assert compose(run.path / CONFIG_FILE).run.seed == 3


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "/etc", "a/..", "a/"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"run.name=.*(plain folder name|text that isn't empty)"):
        config_of(tmp_path, f"'{name}'")


def test_a_folder_that_cannot_be_written_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run.directory=.*: cannot write .* \(Not a directory\)"):
        RunDirectory.create(config_of(tmp_path / "file"))
    (tmp_path / "one").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write .*one \(File exists\)"):
        RunDirectory.create(config_of(tmp_path))
    with pytest.raises(ConfigError, match=r"cannot write .* \(File name too long\)"):
        RunDirectory.create(config_of(tmp_path, "x" * 300))
    (tmp_path / "two" / METRICS_FILE / "sub").mkdir(parents=True)
    with pytest.raises(RunFileError, match=r"two/metrics.jsonl is a folder, where a file of the run belongs"):
        RunDirectory.create(config_of(tmp_path, "two", "run.overwrite=true"))
    with pytest.raises(ConfigError, match=r"run.directory=/proc/none: cannot write"):
        RunDirectory.create(config_of("/proc/none"))


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunDirectory.create(config_of("~/runs")).path == (tmp_path / "runs" / "one").resolve()


def test_a_killed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory.create(config_of(tmp_path))
    run.write_text("a.txt", "old")

    def die(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        run.write_text("a.txt", "new")
    assert (run.path / "a.txt").read_text() == "old"


def test_metrics_are_one_json_object_per_line(tmp_path: Path) -> None:
    run = RunDirectory.create(config_of(tmp_path))
    rows = [{"round": 1, "loss": 0.25, "note": "é\n"}, {"round": 2, "loss": None}]
    for number, row in enumerate(rows, start=1):
        run.append_metrics(row)
        assert read_metrics(run.path) == rows[:number]  # readable while the run goes on
    assert len((run.path / METRICS_FILE).read_text(encoding="utf-8").splitlines()) == 2
    with pytest.raises(ValueError, match="JSON compliant"):
        run.append_metrics({"loss": float("nan")})
    assert read_metrics(run.path) == rows


@pytest.mark.parametrize(
    ("rounds", "words"),
    [
        ([1, 1, 2, 3, 4], "line 2 is the row of round 1"),  # as two processes left it
        ([1, 3], "line 2 is the row of round 3"),
        ([2], "line 1 is the row of round 2"),
        ([1, True], "line 2 is damaged .it isn't the row of a round."),
        ([1, 2.0], "line 2 is damaged"),
        ([1, None], "line 2 is damaged"),
    ],
)
def test_metrics_that_are_not_the_rounds_in_order_are_refused(tmp_path: Path, rounds: list[object], words: str) -> None:
    run = RunDirectory.create(config_of(tmp_path))
    for server_round in rounds:
        run.append_metrics({"round": server_round})
    with pytest.raises(RunFileError, match=rf"^\S+/metrics.jsonl: {words}[^\n]*$"):
        read_metrics(run.path)
    assert read_metrics(run.path, 0) == []


@given(content=st.binary(max_size=60) | st.lists(st.integers(0, 3)).map(lambda rounds: b"".join(map(_line, rounds))))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_metrics_are_the_rounds_in_order_or_an_error_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / METRICS_FILE).write_bytes(content)
    rows, refused = [], ""
    try:
        rows = read_metrics(tmp_path)
    except RunFileError as error:
        refused = str(error)
    if refused:
        assert re.fullmatch(r"\S+/metrics.jsonl: line \d+ is [^\n]+", refused)
    else:
        assert [row["round"] for row in rows] == list(range(1, len(rows) + 1))
        assert content.count(b"\n") in (len(rows), len(rows) - 1)


def _line(server_round: int) -> bytes:
    return f'{{"round": {server_round}}}\n'.encode()


def test_an_unfinished_last_line_is_nothing_while_somebody_writes(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_bytes(_line(1) + _line(2)[:-2])
    assert read_metrics(tmp_path, growing=True) == [{"round": 1}]
    assert read_metrics(tmp_path, 1) == [{"round": 1}]
    with pytest.raises(RunFileError, match="line 2 is damaged"):
        read_metrics(tmp_path)


def test_a_configuration_that_is_cut_anywhere_is_noticed(tmp_path: Path) -> None:
    run = RunDirectory.create(config_of(tmp_path, "one", "run.seed=4"))
    whole = (run.path / CONFIG_FILE).read_bytes()
    assert read_config(run.path) == config_of(tmp_path, "one", "run.seed=4")
    for length in range(0, len(whole), 7):
        (run.path / CONFIG_FILE).write_bytes(whole[:length])
        with pytest.raises(RunFileError, match=r"config.yaml: damaged [^\n]+$"):
            read_config(run.path)
    (run.path / CONFIG_FILE).write_bytes(whole.partition(b"\n")[2])  # as earlier versions wrote it
    assert read_config(run.path).run.seed == 4


def test_the_environment_names_the_commit_only_inside_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no git here
    _commit.cache_clear()
    assert environment(Config())["commit"] is None
    _commit.cache_clear()
