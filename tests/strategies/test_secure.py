"""Secure aggregation as a run plays it: the same aggregate, whoever drops out, and nothing else on the wire."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from safetensors.torch import load_file

from clients import client_app
from experiments.engines.in_process import run_in_process
from snnfl.config import ConfigError, compose, flatten
from strategies.combinations import build_checked
from strategies.run_directory import ANN_FILE, SNN_FILE, read_metrics
from strategies.server_app import server_app

CLIENTS = 6
SMALL = [
    f"data.clients={CLIENTS}",
    "data.partition=dirichlet",
    "model.name=mlp",
    "run.rounds=1",
    "run.keep_checkpoints=0",
    "training.epochs=1",
    "conversion.steps=4",
    "conversion.calibration_images=16",
    "evaluation.images=60",
]
SECURE = "strategy.secure_aggregation=true"

Fault = Callable[[Message, Message], Message]
"""``(question, answer) -> answer``."""

Lie = Callable[[int, Message], None]
"""Changes what a client is told to train."""


class Watched(ClientApp):
    """The real client, some of which misbehave at some messages; every message in either direction is kept."""

    def __init__(self, faults: dict[tuple[int, str], Fault] | None = None, lie: Lie | None = None) -> None:
        super().__init__()
        self.faults, self.lie = faults or {}, lie
        self.seen: list[tuple[int, str, RecordDict, RecordDict]] = []

    def __call__(self, message: Message, context: Context) -> Message:
        kind, partition = message.metadata.message_type, int(context.node_config["partition-id"])
        if kind == "train" and self.lie is not None:
            self.lie(partition, message)
        question = RecordDict(dict(message.content))
        reply = client_app.app(message, context)
        if (fault := self.faults.get((partition, kind))) is not None:
            reply = fault(message, reply)
        self.seen.append((partition, kind, question, RecordDict(dict(reply.content))))
        return reply


def play(
    folder: Path, *more: str, faults: dict[tuple[int, str], Fault] | None = None, lie: Lie | None = None
) -> tuple[Path, Watched]:
    config = compose(None, [*SMALL, f"run.directory={folder}", *more])
    app = Watched(faults, lie)
    run_in_process(server_app(), app, run_config=flatten(config), clients=config.data.clients)
    return folder / "run", app


def assert_close(found: Path, expected: Path, tolerance: float = 1e-4) -> None:
    """Each array of each network differs by no more than a part of its norm, or of a unit vector's."""
    names = [name for name in (ANN_FILE, SNN_FILE) if (expected / name).exists()]
    assert names
    for name in names:
        ours, theirs = load_file(found / name), load_file(expected / name)
        assert ours.keys() == theirs.keys()
        for key, array in theirs.items():
            error = torch.linalg.vector_norm(ours[key].double() - array.double())
            assert error <= tolerance * max(1.0, float(torch.linalg.vector_norm(array.double()))), (name, key)


VARIANTS = [
    ["strategy.spiking=false"],
    [],
    ["strategy.weighting=uniform", "strategy.bias_back=true"],
    ["strategy.name=fedadam"],
    ["privacy.mechanism=local", "privacy.noise_multiplier=0", "privacy.clipping_norm=0.2"],
]
LONGER = [
    ["strategy.name=fedprox", "strategy.spiking=false"],
    ["strategy.name=moon"],
    ["strategy.name=fedavgm", "strategy.spiking=false"],
    ["strategy.name=fedyogi"],
    ["strategy.name=fedadagrad"],
    ["strategy.name=fedbn", "strategy.spiking=false"],
    ["strategy.spiking=false", "model.neuron=lif", "model.time_steps=2", "model.learn_beta=true"],
    ["conversion.calibration=time_bias", "conversion.thresholds=channel_mmse"],
]
"""What `make test-deployment` plays, too."""


@pytest.fixture(autouse=True)
def _no_figure(monkeypatch):
    """A figure at the end takes as long as the run."""
    monkeypatch.setattr("strategies.server_app.plot_accuracy", lambda *arguments: None)


@pytest.mark.parametrize(
    "variant",
    [*VARIANTS, *(pytest.param(variant, marks=pytest.mark.slow) for variant in LONGER)],
    ids=lambda variant: "-".join(variant) or "default",
)
def test_the_aggregate_is_that_of_the_unprotected_run(variant, tmp_path):
    expected, _ = play(tmp_path / "plain", *variant)
    found, _ = play(tmp_path / "secure", *variant, SECURE)
    assert_close(found, expected)
    (row,), (wanted,) = read_metrics(found), read_metrics(expected)
    assert (row["replies"], row["aggregated"], row["failed"]) == (CLIENTS, True, 0)
    names = ["client_ann_accuracy_mean", "server_ann_accuracy", "server_snn_accuracy"]
    if "strategy.weighting=uniform" not in variant:  # then a sum weighs losses as updates
        names.append("train_loss")
    for name in names:
        assert row[name] == (None if wanted[name] is None else pytest.approx(wanted[name], abs=1e-3)), name
    assert row["client_ann_accuracy_std"] is None


def test_stochastic_rounding_stays_within_its_bound_and_is_reproducible(tmp_path):
    expected, _ = play(tmp_path / "plain")
    runs = [play(tmp_path / f"{n}", SECURE, "strategy.secure_rounding=stochastic")[0] for n in range(2)]
    assert_close(runs[0], expected)
    assert (runs[0] / SNN_FILE).read_bytes() == (runs[1] / SNN_FILE).read_bytes()


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    """Nothing of a round's secrets is needed after it, and masks leave nothing in a sum."""

    def run(name: str, *more: str) -> Path:
        config = compose(None, [*SMALL, SECURE, "run.keep_checkpoints=2", f"run.directory={tmp_path / name}", *more])
        node = {"state-directory": str(tmp_path / name / "state")}
        client = Watched({(3, "query.secure_shares"): raises})
        run_in_process(server_app(), client, run_config=flatten(config), clients=CLIENTS, node_config=node)
        return tmp_path / name / "run"

    whole = run("whole", "run.rounds=3")
    run("parts", "run.rounds=1")
    parts = run("parts", "run.rounds=3", "run.resume=true")
    for name in (ANN_FILE, SNN_FILE):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
    assert [row["replies"] for row in read_metrics(parts)] == [CLIENTS - 1] * 3


def raises(question: Message, answer: Message) -> Message:
    raise LookupError("the node is gone")


STAGES = ("query.secure_keys", "query.secure_shares", "train", "query.secure_confirm", "query.secure_unmask")


@pytest.mark.parametrize("stage", STAGES)
def test_who_drops_out_at_a_stage_is_one_line_and_the_others_go_on(stage, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="strategies"):
        found, _ = play(tmp_path / "secure", SECURE, faults={(2, stage): raises})
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("strategies")]
    assert len(lines) == 1
    assert "LookupError: the node is gone" in lines[0]
    assert re.match(r"round 1: reply of partition 2 \(node \d+\) failed: ", lines[0])
    (row,) = read_metrics(found)
    counted = stage in STAGES[:3]
    assert (row["replies"], row["failed"]) == (CLIENTS - counted, counted)
    expected, _ = play(tmp_path / "plain", faults={(2, "train"): raises} if counted else {})
    assert_close(found, expected)


@pytest.mark.parametrize(("stage", "gone"), [(0, 4), (1, 4), (2, 5), (3, 4), (4, 4)])
def test_beyond_the_threshold_nothing_is_learnt_and_the_old_weights_stay(stage, gone, tmp_path, caplog):
    faults = {(partition, STAGES[stage]): raises for partition in range(gone)}
    with caplog.at_level(logging.WARNING, logger="strategies"):
        found, app = play(tmp_path, SECURE, faults=faults)
    (row,) = read_metrics(found)
    assert (row["aggregated"], row["replies"]) == (False, 0)
    lines = [record.getMessage() for record in caplog.records]
    expected = {
        0: "nothing is trained: 2 clients are left",
        1: "nothing is trained: 2 clients are left",
        2: "1 valid replies, 1 are needed|0 valid replies",
        3: "the sum of 6 updates cannot be used: . neighbours of client .* are needed",
        4: "the sum of 6 updates cannot be used: . neighbours of client .* are needed",
    }[stage]
    assert any(re.search(expected, line) for line in lines), lines
    if stage < 2:
        assert not [kind for _, kind, _, _ in app.seen if kind == "train"]


def other_weights(partition: int, message: Message) -> None:
    """Send each client weights of its own, by which its update would stand out of a sum."""
    arrays = message.content["arrays"]
    name = next(iter(arrays))
    arrays[name] = Array((1 + partition / 100) * arrays[name].numpy())


def other_settings(partition: int, message: Message) -> None:
    message.content["config"]["told"] = partition


@pytest.mark.parametrize("lie", [other_weights, other_settings])
def test_clients_that_are_told_different_things_give_no_sum(lie, tmp_path, caplog):
    run, app = play(tmp_path, SECURE, lie=lie)
    (row,) = read_metrics(run)
    assert (row["aggregated"], row["replies"]) == (False, 0)
    assert "(besides 4 that were told something else, or lie)" in caplog.text
    assert "the sum of 6 updates cannot be used" in caplog.text
    told = [answer for _, kind, _, answer in app.seen if kind == "query.secure_unmask"]
    assert not any(len(answer) for answer in told)


def test_with_fewer_than_are_needed_nothing_is_begun(tmp_path, caplog):
    """Clients would refuse: they count on so many."""
    faults = {(0, STAGES[0]): raises}
    with caplog.at_level(logging.WARNING, logger="strategies"):
        _, app = play(tmp_path, SECURE, f"strategy.minimum_replies={CLIENTS}", faults=faults)
    assert any(f"{CLIENTS - 1} clients are left, {CLIENTS} are needed" in line for line in caplog.messages)
    assert {kind for _, kind, _, _ in app.seen} == {STAGES[0]}


def spoiled(change: Callable[[np.ndarray], np.ndarray]) -> Fault:
    def fault(question: Message, answer: Message) -> Message:
        record = answer.content["arrays"]
        assert isinstance(record, ArrayRecord)
        answer.content["arrays"] = ArrayRecord({"masked": Array(change(record["masked"].numpy().copy()))})
        return answer

    return fault


def test_garbage_of_one_client_is_noticed_and_spoils_no_weights(tmp_path, caplog):
    garbage = spoiled(lambda v: np.random.default_rng(0).integers(0, 2**32, v.shape, dtype=np.uint32))
    with caplog.at_level(logging.WARNING, logger="strategies"):
        found, _ = play(tmp_path, SECURE, faults={(1, "train"): garbage})
    (row,) = read_metrics(found)
    assert row["aggregated"] is False
    assert any("cannot be used" in r.getMessage() and "has sent what is no" in r.getMessage() for r in caplog.records)


def test_a_lie_within_the_field_moves_a_mean_by_no_more_than_its_range(tmp_path):
    """What masks cannot prevent: the limit that the documentation states."""
    expected, _ = play(tmp_path / "plain", SECURE, "strategy.spiking=false", "strategy.update_bound=null")
    levels = 2**30 // CLIENTS

    def push(vector: np.ndarray) -> np.ndarray:
        vector[10:20] += np.uint32(levels // 10)
        return vector

    found, _ = play(
        tmp_path / "lie", SECURE, "strategy.spiking=false", "strategy.update_bound=null",
        faults={(1, "train"): spoiled(push)},
    )  # fmt: skip
    (row,) = read_metrics(found)
    assert row["aggregated"] is True
    ours, theirs = load_file(found / ANN_FILE), load_file(expected / ANN_FILE)
    moved = torch.cat([(ours[key] - theirs[key]).flatten() for key in ours])
    assert 0 < int((moved.abs() > 1e-3).sum()) <= 10
    assert float(moved.abs().max()) <= 64.0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: r.content.pop("arrays"), "expected the records"),
        (lambda r: r.content["metrics"].update({"loss": 1.0}), "expected the array 'masked' and the metrics"),
        (lambda r: r.content["metrics"].update({"state-round": 1.5}), "metric state-round: expected a round"),
        (lambda r: r.content["arrays"].update({"x": Array(np.zeros(1))}), "expected the array"),
        (lambda r: r.content.update({"arrays": ArrayRecord({"masked": Array(np.zeros(3, np.uint32))})}), "masked: "),
    ],
)
def test_a_masked_reply_is_checked_as_hostile_input(change, reason, tmp_path, caplog):
    def fault(question: Message, answer: Message) -> Message:
        change(answer)
        return answer

    with caplog.at_level(logging.WARNING, logger="strategies"):
        found, _ = play(tmp_path, SECURE, faults={(1, "train"): fault})
    (row,) = read_metrics(found)
    assert (row["refused"], row["replies"]) == (1, CLIENTS - 1)
    assert any("refused: " + reason in record.getMessage() for record in caplog.records)


HOSTILE = {
    "unknown field": lambda record: record.update({"more": 1}),
    "wrong type": lambda record: record.update({next(iter(record)): 1.5}),
}


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "train"])
@pytest.mark.parametrize("kind", ["unknown field", pytest.param("wrong type", marks=pytest.mark.slow)])
def test_answers_to_the_questions_are_checked_as_hostile_input(stage, kind, tmp_path, caplog):
    def fault(question: Message, answer: Message) -> Message:
        record = answer.content["secure"]
        assert isinstance(record, ConfigRecord)
        HOSTILE[kind](record)
        return answer

    with caplog.at_level(logging.WARNING, logger="strategies"):
        found, _ = play(tmp_path, SECURE, faults={(1, stage): fault})
    (row,) = read_metrics(found)
    assert row["aggregated"] is True
    assert any(f"refused: {stage.removeprefix('query.')}: field" in r.getMessage() for r in caplog.records)


def test_a_client_is_told_all_keys_and_its_neighbours_signatures(tmp_path):
    """Of each client longer than its keys; nobody checks the others', whose length a hostile client may choose."""

    def signed(question: Message, answer: Message) -> Message:
        record = answer.content["secure"]
        assert isinstance(record, ConfigRecord)
        record["signature"] = bytes(96)
        return answer

    _, app = play(tmp_path, SECURE, faults={(client, "query.secure_keys"): signed for client in range(CLIENTS)})
    told = [question["secure"] for _, kind, question, _ in app.seen if kind == "query.secure_shares"]
    answers = [answer["secure"] for _, kind, _, answer in app.seen if kind == "query.secure_shares"]
    assert len(told) == CLIENTS
    for record, answer in zip(told, answers, strict=True):
        assert record["clients"] == list(range(CLIENTS))
        checked = [client for client, signature in enumerate(record["signatures"]) if signature]
        assert checked == answer["clients"]
        assert len(checked) == 4


REFUSED = {
    "strategy.name=fedmedian": "compares the updates with each other",
    "strategy.name=krum": "compares the updates with each other",
    "strategy.name=scaffold": "control variates travel beside the updates",
    "strategy.name=fednova": "divides each update by its client's number of steps",
    "strategy.name=qfedavg": "weighs each update by its loss",
    "strategy.name=solo": "send no update to hide",
    "quantization.uploads=4": "codes with scales of their own don't add up",
    "detection.detectors=[krum_score]": "detectors judge each update",
    "audit.clients=[1]": "no client's update is recorded by itself",
    "privacy.mechanism=central": "the server cannot clip",
    "strategy.fraction_evaluate=0.5": "depends on arrays that never leave it",
    "strategy.fraction_train=0.3": "hides nothing of fewer than 3",
}


@pytest.mark.parametrize("option", REFUSED)
def test_what_needs_each_update_is_refused_with_the_reason(option):
    config = compose(None, [*SMALL, SECURE, "data.clients=8", option])
    with pytest.raises(ConfigError, match=re.escape(REFUSED[option])) as refused:
        build_checked(config)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("option", ["range=8", "rounding=stochastic", "tolerance=0.2"])
def test_its_options_are_refused_without_it(option):
    with pytest.raises(ConfigError, match=r"only strategy\.secure_aggregation=true uses it"):
        compose(None, [f"strategy.secure_{option}"])
