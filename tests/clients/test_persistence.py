"""A client's state on disk: a function of partition and round, whatever happened in between."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context, Error, Message, MetricRecord, RecordDict

from clients.persistence import StateLostError, persistent_state
from snnfl.checksummed import round_file, round_files
from snnfl.config import Config

TOKEN, OTHER = "0123456789abcdef" * 2, "f" * 32


class Client:
    """A client that notes the rounds it has trained in, in a process that may die between any two messages."""

    def __init__(
        self, config: Config, context_of: Callable[..., Context], ask: Callable[..., Message], node: Path | None
    ):
        self.config, self.context_of, self.ask, self.node = config, context_of, ask, node
        self.context = self.new_process()
        self.metrics = MetricRecord()

    def new_process(self) -> Context:
        self.context = self.context_of(self.config, 3)
        if self.node is not None:
            self.context.node_config["state-directory"] = str(self.node)
        return self.context

    def message(self, kind: str, server_round: int, token: str = TOKEN) -> list[int]:
        """Send a message; return the rounds that the client remembers when it answers."""
        message = self.ask(kind, {}, server_round)
        message.content["config"]["run-token"] = token
        message.content["config"]["oldest-round"] = max(0, server_round - self.config.run.keep_checkpoints)
        seen: list[int] = []
        self.metrics = MetricRecord()

        def work(message: Message, context: Context) -> Message:
            if "past" in context.state:
                seen.extend(int(n) for n in context.state["past"]["rounds"].numpy())
            if kind.startswith("train"):
                context.state["past"] = ArrayRecord({"rounds": torch.tensor([*seen, server_round])})
            return Message(RecordDict({"metrics": self.metrics}), reply_to=message)

        persistent_state(message, self.context, work)
        return seen

    @property
    def folder(self) -> Path:
        return self.node / TOKEN / "3" if self.node is not None else Path()


@pytest.fixture
def client(configure: Any, context_of: Any, ask: Any, tmp_path: Path) -> Callable[..., Client]:
    def make(*overrides: str, node: Path | None = tmp_path / "node") -> Client:
        return Client(configure(*overrides), context_of, ask, node)

    return make


def test_a_new_process_remembers(client: Callable[..., Client]) -> None:
    one = client()
    for n in (1, 2, 3):
        assert one.message("train", n) == list(range(1, n))
        one.new_process()
        assert one.message("evaluate", n) == list(range(1, n + 1)), "evaluation comes after training"
        one.new_process()


def test_a_state_and_every_folder_made_for_it_is_its_owners_alone(
    client: Callable[..., Client], tmp_path: Path
) -> None:
    before = os.umask(0)
    try:
        one = client(node=tmp_path / "var" / "lib" / "snnfl")
        one.message("train", 1)
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes.pop(round_file(one.folder, 1)) == 0o600
    assert len(modes) == 5
    assert set(modes.values()) == {0o700}


def test_a_repeated_round_starts_from_the_same_state(client: Callable[..., Client]) -> None:
    one = client()
    for n in (1, 2, 3):
        one.message("train", n)
    assert one.message("train", 3) == [1, 2], "not 3, whether or not the process lived on"
    one.new_process()
    assert one.message("train.default", 3) == [1, 2]
    assert one.message("train", 2) == [1]
    one.new_process()
    assert one.message("train", 3) == [1, 2]


def test_another_run_sees_nothing(client: Callable[..., Client]) -> None:
    one = client()
    one.message("train", 1)
    assert one.message("train", 2, token=OTHER) == []
    assert one.message("train", 2) == [1]
    assert sorted(os.listdir(one.node)) == [TOKEN, OTHER]


@pytest.mark.parametrize(
    ("keep", "rounds", "left"),
    [
        (1, (1, 2, 3, 4), [3, 4]),
        (2, (1, 2, 3, 4, 5), [3, 4, 5]),
        (2, (1, 2, 9), [2, 9]),  # the checkpoints 7 and 8 still need what the client held since round 2
        (2, (1, 2, 9, 10), [2, 9, 10]),  # 8 needs 2, 9 needs 9
        (2, (1, 2, 9, 10, 11), [9, 10, 11]),
    ],
)
def test_enough_is_kept_for_the_oldest_checkpoint(
    client: Callable[..., Client], keep: int, rounds: tuple[int, ...], left: list[int]
) -> None:
    one = client(f"run.keep_checkpoints={keep}")
    trained: list[int] = []
    for n in rounds:
        one.message("train", n)
        trained.append(n)
        assert one.message("evaluate", n) == trained
        for checkpoint in range(max(0, n - keep), n):  # what the server may have while round n is under way
            expected = [each for each in trained if each <= checkpoint]
            assert one.message("evaluate", checkpoint) == expected, f"to go on after {checkpoint}"
    assert list(round_files(one.folder)) == left


def test_a_client_that_keeps_nothing_writes_nothing(configure: Any, context_of: Any, ask: Any, tmp_path: Path) -> None:
    context, message = context_of(configure(), 0), ask("train", {})
    context.node_config["state-directory"] = str(tmp_path / "node")
    message.content["config"]["run-token"] = TOKEN
    message.content["config"]["oldest-round"] = 0
    content = RecordDict({"metrics": MetricRecord()})
    persistent_state(message, context, lambda message, context: Message(content, reply_to=message))
    assert not (tmp_path / "node").exists()


@pytest.mark.parametrize("reply", ["error", "raise"])
def test_what_a_failed_training_left_is_not_kept(client: Callable[..., Client], reply: str) -> None:
    one = client()
    one.message("train", 1)
    message = one.ask("train", {}, 2)
    message.content["config"]["run-token"] = TOKEN
    message.content["config"]["oldest-round"] = 0

    def fail(message: Message, context: Context) -> Message:
        context.state["past"] = ArrayRecord({"rounds": torch.tensor([666])})
        if reply == "raise":
            raise RuntimeError("no luck")
        return Message(Error(0, "no luck"), reply_to=message)

    if reply == "raise":
        with pytest.raises(RuntimeError, match="no luck"):
            persistent_state(message, one.context, fail)
    else:
        persistent_state(message, one.context, fail)
    assert one.message("train", 3) == [1]


def test_without_a_folder_the_state_stays_in_the_process(client: Callable[..., Client]) -> None:
    one = client(node=None)
    assert one.message("train", 1) == []
    assert one.message("train", 2) == [1]


def test_without_a_folder_a_run_is_not_resumed(client: Callable[..., Client]) -> None:
    """At the question who it is, before a round is spent; and should it keep what nobody foresaw, after training."""
    one = client("run.resume=true", "strategy.bias_back=true", node=None)
    assert persistent_state(one.ask("query"), one.context, lambda message, context: message)
    with pytest.raises(StateLostError, match=r"does not name the folder .*--node-config \"state-directory="):
        one.message("train", 3)
    one = client("run.resume=true", node=None)
    with pytest.raises(StateLostError):
        persistent_state(one.ask("query"), one.context, lambda message, context: message)


def test_a_run_without_checkpoints_writes_nothing(client: Callable[..., Client]) -> None:
    one = client("run.keep_checkpoints=0")
    assert one.message("train", 1) == []
    assert one.message("train", 2) == [1]
    assert not one.node.exists()


def test_a_damaged_version_is_skipped_with_a_warning(client: Callable[..., Client], caplog: Any) -> None:
    one = client()
    for n in (1, 2):
        one.message("train", n)
    path = round_file(one.folder, 2)
    path.write_bytes(path.read_bytes()[:-1])
    assert one.message("train", 3) == [1]
    (record,) = caplog.records
    assert str(path) in record.getMessage()
    path.unlink()
    round_file(one.folder, 1).write_bytes(b"")
    one.new_process()
    assert one.message("train", 2) == []


def test_a_client_says_from_which_rounds_state_it_has_trained(client: Callable[..., Client]) -> None:
    """The newest intact one that it may use, whether it lies on a disk or in the process."""
    for node in ({}, {"node": None}):
        one, told = client(**node), []
        for n in (1, 2, 5):
            one.message("train", n)
            told.append(one.metrics["state-round"])
            one.message("evaluate", n)
            assert "state-round" not in one.metrics
        assert told == [0, 1, 2]
    one = client()
    for path, expected in ((round_file(one.folder, 5), 2), (round_file(one.folder, 2), 0)):
        path.unlink()
        one.new_process()
        one.message("train", 9)
        assert one.metrics["state-round"] == expected
        round_file(one.folder, 9).unlink()
    one = client(node=None)
    one.message("train", 1)
    one.new_process()
    one.message("train", 2)
    assert one.metrics["state-round"] == 0
    one = client("strategy.spiking=false", node=None)
    one.message("train", 1)
    assert not one.metrics, "clients of a plain run keep nothing"


@pytest.mark.parametrize("token", ["../../etc", "", "0" * 31, "A" * 32, "0" * 32 + "\n", "/" + "0" * 31])
def test_a_token_that_is_no_plain_name_is_refused(client: Callable[..., Client], token: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run-token"):
        client().message("train", 1, token=token)
    assert not list(tmp_path.iterdir())


def test_only_arrays_are_kept(client: Callable[..., Client]) -> None:
    one = client()
    message = one.ask("train", {})
    message.content["config"]["run-token"] = TOKEN
    message.content["config"]["oldest-round"] = 0

    def work(message: Message, context: Context) -> Message:
        context.state["count"] = MetricRecord({"n": 1})
        return Message(RecordDict(), reply_to=message)

    with pytest.raises(TypeError, match=r"context.state\['count'\] is a MetricRecord"):
        persistent_state(message, one.context, work)
