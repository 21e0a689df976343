"""A run that ends early and goes on: the same weights and the same metrics as if nothing had been."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import nn

from clients import client_app
from experiments.engines.in_process import run_in_process
from snnfl import plugins
from snnfl.checksummed import round_file, round_files
from snnfl.config import ConfigError, compose, flatten
from snnfl.models import register
from strategies import checkpoint
from strategies.lock import LOCK_FILE
from strategies.population import PopulationError
from strategies.resume import check_run, find_checkpoint
from strategies.run_directory import (
    ANN_FILE,
    CHECKPOINTS,
    CLIENTS,
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    METRICS_FILE,
    SNN_FILE,
    RunDirectory,
    RunFileError,
    read_environment,
    read_metrics,
)
from strategies.server_app import server_app

ROUNDS = 5
SMALL = [
    f"run.rounds={ROUNDS}",
    "data.clients=3",
    "data.training_images=150",
    "data.partition=dirichlet",
    "training.epochs=1",
    "training.learning_rate=0.05",
    "training.milestones=[4]",
    "model.name=mlp",
    "conversion.steps=4",
    "conversion.calibration_images=16",
    "evaluation.images=50",
    "strategy.fraction_train=0.7",
    "strategy.fraction_evaluate=1.0",
]


class Killed(BaseException):
    """Stands for the end of the process."""


class Fragile(ClientApp):
    """The client app; dies in a round when so many clients have been trained in it."""

    def __init__(self, server_round: int, trained: int) -> None:
        super().__init__()
        self.server_round, self.trained = server_round, trained

    def __call__(self, message: Message, context: Context) -> Message:
        kind = message.metadata.message_type
        if kind == "train" and message.content["config"]["server-round"] == self.server_round:
            if not self.trained:
                raise Killed
            self.trained -= 1
        return client_app.app(message, context)


def play(
    directory: Path,
    *overrides: str,
    clients: ClientApp = client_app.app,
    observer: Callable[[dict[str, Any]], None] = lambda row: None,
    durable: bool = True,
) -> Path:
    config = compose(None, [*SMALL, f"run.directory={directory}", *overrides])
    node = {"state-directory": str(directory / "run" / CLIENTS)} if durable else {}
    run_in_process(server_app(observer), clients, run_config=flatten(config), clients=3, node_config=node)
    return directory / "run"


def assert_same(run: Path, expected: Path) -> None:
    for name in (ANN_FILE, SNN_FILE):
        assert (run / name).read_bytes() == (expected / name).read_bytes(), name
    assert rows(run) == rows(expected)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != LOCK_FILE}


def rows(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith("seconds_")} for row in read_metrics(run)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return play(tmp_path_factory.mktemp("uninterrupted"))


def die_at(server_round: int) -> Callable[[dict[str, Any]], None]:
    """Die when a round's row is written and its checkpoint isn't."""

    def observe(row: dict[str, Any]) -> None:
        if row["round"] == server_round:
            raise Killed

    return observe


def test_a_run_that_dies_five_times_ends_as_if_nothing_had_been(tmp_path: Path, uninterrupted: Path) -> None:
    deaths: list[dict[str, Any]] = [
        {"observer": die_at(1)},
        {"clients": Fragile(2, 1)},
        {"clients": Fragile(4, 0)},
        {"clients": Fragile(4, 1)},
        {"observer": die_at(5)},
    ]
    for number, death in enumerate(deaths):
        with pytest.raises(Killed):
            play(tmp_path, f"run.resume={str(number > 0).lower()}", **death)
    run = play(tmp_path, "run.resume=true")
    assert_same(run, uninterrupted)
    facts = json.loads((run / ENVIRONMENT_FILE).read_text())
    assert [each["after_round"] for each in facts["resumed"]] == [1, 3, 3, 4]


@pytest.mark.parametrize(
    ("name", "spiking"),
    [("fedbn", False), *((name, spiking) for name in ("scaffold", "fednova", "fedlec") for spiking in (False, True))],
)
def test_whatever_an_algorithm_keeps_a_run_that_dies_ends_as_if_nothing_had_been(
    tmp_path: Path, name: str, spiking: bool
) -> None:
    options = [f"strategy.name={name}", f"strategy.spiking={str(spiking).lower()}"]
    whole = play(tmp_path / "whole", *options)
    deaths: list[dict[str, Any]] = [{"clients": Fragile(3, 1)}, {"observer": die_at(4)}, {}]
    for number, death in enumerate(deaths):
        with pytest.raises(Killed) if death else nullcontext():
            play(tmp_path / "dying", f"run.resume={str(number > 0).lower()}", *options, **death)
    run = tmp_path / "dying" / "run"
    for file in (ANN_FILE, SNN_FILE):
        assert (run / file).exists() == (whole / file).exists()
        assert not (run / file).exists() or (run / file).read_bytes() == (whole / file).read_bytes()
    assert rows(run) == rows(whole)


def test_private_biases_are_what_is_at_stake(
    tmp_path: Path, uninterrupted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the clients' files a run ends otherwise, and says so; without a folder for them it isn't resumed."""
    with pytest.raises(Killed):
        play(tmp_path, clients=Fragile(4, 1))
    for path in (tmp_path / "run" / CLIENTS).rglob("*.safetensors"):
        path.unlink()
    caplog.clear()
    run = play(tmp_path, "run.resume=true")
    lost = [r.getMessage() for r in caplog.records if r.name == "strategies.attendance"]
    assert lost
    for line in lost:
        assert re.match(
            r"round [45]: partition \d \(node \d\) has lost the private state of round [123]; it trained", line
        )
    assert sum(row["states_lost"] for row in rows(run)) == len(lost)
    assert [row["states_lost"] for row in rows(uninterrupted)] == [0] * ROUNDS
    assert rows(run)[:3] == rows(uninterrupted)[:3]
    assert (run / SNN_FILE).read_bytes() != (uninterrupted / SNN_FILE).read_bytes()
    with pytest.raises(Killed):
        play(tmp_path, "run.overwrite=true", clients=Fragile(4, 1))
    with pytest.raises(PopulationError, match=r"cannot take part: StateLostError: run.resume=true, but this"):
        play(tmp_path, "run.resume=true", durable=False)
    assert_same(play(tmp_path, "run.resume=true"), uninterrupted)


def test_a_model_without_private_biases_loses_none(tmp_path: Path, own_registries: None, caplog: Any) -> None:
    @register("unbiased")
    def unbiased(config: Any, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        first, last = nn.Linear(math.prod(input_shape), 8, bias=False), nn.Linear(8, classes, bias=False)
        return nn.Sequential(nn.Flatten(), first, nn.ReLU(), last)

    run = play(tmp_path, "model.name=unbiased")
    assert [row["states_lost"] for row in rows(run)] == [0] * ROUNDS
    assert not [record for record in caplog.records if record.name == "strategies.attendance"]


def test_a_damaged_checkpoint_costs_a_round_and_nothing_else(tmp_path: Path, uninterrupted: Path, caplog: Any) -> None:
    with pytest.raises(Killed):
        play(tmp_path, clients=Fragile(5, 1))
    path = round_file(tmp_path / "run" / CHECKPOINTS, 4)
    path.write_bytes(path.read_bytes()[:-1])
    run = play(tmp_path, "run.resume=true")
    assert_same(run, uninterrupted)
    lines = [record.getMessage() for record in caplog.records if record.name == "strategies.checkpoint"]
    assert len(lines) == 1
    assert str(path) in lines[0]


@pytest.mark.parametrize("tail", ["lost", "zeros", "torn"])
def test_a_power_cut_that_takes_rows_costs_their_rounds_and_nothing_else(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch, tail: str
) -> None:
    """Rounds 2 to 4 weren't waited for, and the disk took their checkpoints before their rows."""
    monkeypatch.setattr(checkpoint, "SYNC_SECONDS", 1e9)
    with pytest.raises(Killed):
        play(tmp_path, clients=Fragile(5, 1))
    run = tmp_path / "run"
    assert sorted(round_files(run / CHECKPOINTS)) == [1, 3, 4]
    whole = (run / METRICS_FILE).read_bytes()
    sure = len(whole.split(b"\n")[0]) + 1
    rest = {"lost": b"", "zeros": bytes(len(whole) - sure), "torn": whole[sure : sure + 40]}[tail]
    (run / METRICS_FILE).write_bytes(whole[:sure] + rest)
    check_run(run)
    assert_same(play(tmp_path, "run.resume=true"), uninterrupted)


def test_rows_that_were_on_the_disk_are_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SYNC_SECONDS", 0.0)
    with pytest.raises(Killed):
        play(tmp_path, clients=Fragile(5, 1))
    file = tmp_path / "run" / METRICS_FILE
    file.write_bytes(file.read_bytes().split(b"\n")[0] + b"\n")
    for read in (lambda: check_run(file.parent), lambda: play(tmp_path, "run.resume=true")):
        with pytest.raises(RunFileError, match="it holds 1 round, but 4 are complete"):
            read()


def test_a_finished_run_goes_on_to_more_rounds(tmp_path: Path, uninterrupted: Path) -> None:
    run = play(tmp_path, "run.rounds=3")
    play(tmp_path, "run.resume=true")
    assert (run / ANN_FILE).read_bytes() == (uninterrupted / ANN_FILE).read_bytes()
    assert (run / SNN_FILE).read_bytes() == (uninterrupted / SNN_FILE).read_bytes()
    assert rows(run)[3:] == rows(uninterrupted)[3:]
    assert [row["test_images"] for row in rows(run)] == [50, 50, 360, 50, 360]  # the third was the last one once


def test_there_may_be_nothing_to_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = play(tmp_path, "run.rounds=2")
    before = contents(run)
    (run / ANN_FILE).unlink()  # as if it had been killed just before it was written
    for rounds in (2, 1):
        caplog.clear()
        play(tmp_path, f"run.rounds={rounds}", "run.resume=true", clients=Fragile(3, 0))
        lines = [r.getMessage() for r in caplog.records if r.name == "strategies.server_app"]
        assert lines == [f"nothing to do: {run} has 2 complete rounds, and run.rounds={rounds}"]
    after = contents(run)
    figures = {run / "accuracy.svg", run / "accuracy.png"}
    assert {p for p in before.keys() | after.keys() if before.get(p) != after.get(p)} <= figures


def test_without_a_complete_round_it_starts_anew(tmp_path: Path, uninterrupted: Path, caplog: Any) -> None:
    def said() -> list[str]:
        lines = [r.getMessage() for r in caplog.records if r.name == "strategies.resume"]
        caplog.clear()
        return lines

    with pytest.raises(Killed):
        play(tmp_path, clients=Fragile(1, 1))
    (token,) = (path.name for path in (tmp_path / "run" / CLIENTS).iterdir())
    with pytest.raises(Killed):
        play(tmp_path, "run.resume=true", observer=die_at(1))
    assert said() == [f"run.resume=true: no round of {tmp_path / 'run'} has an intact checkpoint; the run starts anew"]
    assert token not in {path.name for path in (tmp_path / "run" / CLIENTS).iterdir()}
    assert_same(play(tmp_path, "run.resume=true"), uninterrupted)


def test_a_new_run_forgets_the_old_one(tmp_path: Path) -> None:
    run = play(tmp_path, "run.rounds=2")
    tokens = set((run / CLIENTS).iterdir())
    play(tmp_path, "run.rounds=1", "run.overwrite=true", "run.seed=1")
    assert list(round_files(run / CHECKPOINTS)) == [1]
    assert not tokens & set((run / CLIENTS).iterdir())
    play(tmp_path, "run.rounds=1", "run.overwrite=true", "run.keep_checkpoints=0")
    assert not (run / CHECKPOINTS).exists()
    assert not (run / CLIENTS).exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("run.seed=4", "run.seed=4, but the run was started with run.seed=0"),
        ("training.milestones=[3]", r"training.milestones=\(3,\), but .* training.milestones=\(4,\)"),
        ("run.threads=2", "run.threads=2, but"),
        ("strategy.spiking=false", "strategy.spiking=False, but"),
    ],
)
def test_another_configuration_is_refused(tmp_path: Path, override: str, words: str) -> None:
    RunDirectory.create(compose(None, [*SMALL, f"run.directory={tmp_path}"]))
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=words):
        play(tmp_path, "run.resume=true", override)
    assert contents(tmp_path) == before


def test_what_changes_no_weight_may_differ(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    overrides = ["run.rounds=9", "run.keep_checkpoints=1", "run.overwrite=true", "run.resume=true", "data.root=/else"]
    RunDirectory.create(compose(None, [*SMALL, f"run.directory={tmp_path}"]))
    assert find_checkpoint(compose(None, [*SMALL, f"run.directory={tmp_path}/link", *overrides])) is None


def test_a_finished_run_without_checkpoints_is_not_repeated_unasked(tmp_path: Path) -> None:
    directory = RunDirectory.create(compose(None, [*SMALL, f"run.directory={tmp_path}", "run.keep_checkpoints=0"]))
    directory.write_text(ANN_FILE, "results")
    again = [*SMALL, f"run.directory={tmp_path}", "run.resume=true"]
    with pytest.raises(ConfigError, match=r"is finished and left no checkpoint; set run.overwrite=true"):
        find_checkpoint(compose(None, again))
    assert find_checkpoint(compose(None, [*again, "run.overwrite=true"])) is None


def test_resuming_needs_checkpoints() -> None:
    with pytest.raises(ConfigError, match=r"run.keep_checkpoints=0: expected at least 1 with run.resume=true"):
        compose(None, ["run.resume=true", "run.keep_checkpoints=0"])


def test_half_a_row_is_forgotten_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    config = compose(None, [*SMALL, f"run.directory={tmp_path}"])
    directory = RunDirectory.create(config)
    for n in (1, 2):
        directory.append_metrics({"round": n})
    with (directory.path / METRICS_FILE).open("a") as file:
        file.write('{"round": 3, "lo')
    assert read_metrics(RunDirectory.reopen(config, 2).path) == [{"round": 1}, {"round": 2}]
    with pytest.raises(RunFileError, match=r"metrics.jsonl: it holds 2 rounds, but 3 are complete"):
        RunDirectory.reopen(config, 3)
    (directory.path / METRICS_FILE).unlink()
    with pytest.raises(RunFileError, match=r"metrics.jsonl: cannot be read \(No such file or directory\)"):
        RunDirectory.reopen(config, 2)


def test_a_resume_of_nothing_is_an_error_that_lists_near_names(tmp_path: Path) -> None:
    for name in ("s_fedavg", "fedavg", "else"):
        RunDirectory.create(compose(None, [f"run.directory={tmp_path}", f"run.name={name}"]))
    (tmp_path / "fedavgs").mkdir()
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"there is no run fedavgs in .*; there are fedavg, s_fedavg and others;"):
        play(tmp_path, "run.resume=true", "run.name=fedavgs")
    with pytest.raises(ConfigError, match=r"there is no run run in .*/none; without --resume it begins"):
        play(tmp_path / "none", "run.resume=true")
    assert contents(tmp_path) == before
    assert not list((tmp_path / "fedavgs").iterdir())
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("damage", ["cut", "delete"])
def test_complete_rounds_are_thrown_away_on_request_alone(tmp_path: Path, uninterrupted: Path, damage: str) -> None:
    """Without an intact checkpoint a run of several rounds is not silently trained from the start."""
    with pytest.raises(Killed):
        play(tmp_path, clients=Fragile(4, 1))
    for path in round_files(tmp_path / "run" / CHECKPOINTS).values():
        path.write_bytes(path.read_bytes()[:100]) if damage == "cut" else path.unlink()
    before = contents(tmp_path)
    words = "completed 3 rounds, but no checkpoint is intact" if damage == "cut" else "played 3 rounds and left no"
    with pytest.raises(ConfigError, match=f"{words}.*; set run.overwrite=true to repeat it"):
        play(tmp_path, "run.resume=true")
    assert contents(tmp_path) == before
    assert_same(play(tmp_path, "run.resume=true", "run.overwrite=true"), uninterrupted)


def test_a_run_whose_configuration_is_missing_is_not_replaced_unasked(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        play(tmp_path, clients=Fragile(2, 0))
    (tmp_path / "run" / CONFIG_FILE).unlink()
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="holds an earlier run"):
        play(tmp_path)
    with pytest.raises(RunFileError, match=r"config.yaml is missing; put it back, or set run.overwrite=true"):
        play(tmp_path, "run.resume=true")
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("own_registries")
def test_a_run_goes_on_with_the_plugins_that_it_began_with(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from snnfl.models import register\n\nregister('mine_of_a_run')(lambda *arguments: None)\n")
    with patch.dict("sys.modules"):
        config = plugins.resolve(None, [f"run.directory={tmp_path}", "run.name=run", "run.resume=true"], [file])
    (plugin,) = plugins.loaded()
    RunDirectory.create(config)
    assert find_checkpoint(config) is None
    plugins._loaded["snnfl_plugin_mine"] = replace(plugin, version="0" * 64)
    with pytest.raises(
        ConfigError, match=r"run\.resume=true: .*: it was started with another version of the plug-in mine"
    ):
        find_checkpoint(config)
    assert plugins.resolve(config) == config  # another call of the process, that doesn't name it
    with pytest.raises(ConfigError, match=r"it was started with the plug-in mine\.py; say --plugin mine\.py"):
        find_checkpoint(config)
    assert RunDirectory.reopen(config, 0)
    facts = read_environment(tmp_path / "run")
    assert [len(each["plugins"]) for each in (facts, *facts["resumed"])] == [1, 0]
