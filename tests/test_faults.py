"""One round with every kind of faulty client: the others carry it, and nothing of the faulty ones enters a model."""

from __future__ import annotations

import io
import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients import client_app
from experiments.engines.in_process import FIRST_NODE_ID, run_in_process
from experiments.engines.ray import run_on_ray
from snnfl.config import compose, flatten
from strategies.run_directory import ANN_FILE, SNN_FILE, read_metrics
from strategies.server_app import server_app

CLIENTS = 18
TIMEOUT = 20.0
OVERRIDES = [
    f"data.clients={CLIENTS}",
    f"strategy.timeout={TIMEOUT}",
    "model.name=mlp",
    "run.rounds=2",
    "training.epochs=1",
    "conversion.steps=4",
    "conversion.calibration_images=16",
    "evaluation.images=60",
    "evaluation.clients=false",
]

Fault = Callable[[ArrayRecord, RecordDict], None]


def spoil(arrays: ArrayRecord, suffix: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    name = next(name for name in arrays if name.endswith(suffix))
    arrays[name] = Array(change(arrays[name].numpy().copy()))


def put(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values.flat[0] = value
        return values

    return change


def raises(arrays: ArrayRecord, content: RecordDict) -> None:
    raise LookupError("the disk\nis gone")


def drop(suffix: str) -> Fault:
    return lambda arrays, content: arrays.pop(next(name for name in arrays if name.endswith(suffix))) and None


def claim(examples: int) -> Fault:
    return lambda arrays, content: content["metrics"].update({"num-examples": examples})


def a_gigabyte_of_zeros(arrays: ArrayRecord, content: RecordDict) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (2**28,)})
    arrays["fc1.weight"] = Array("float32", (2**28,), "numpy.ndarray", stream.getvalue() + bytes(2**30))


def hangs(arrays: ArrayRecord, content: RecordDict) -> None:
    try:
        time.sleep(1000)
    except Exception:
        return


NUMBERS = "holds NaN, infinity or a value beyond 1e.12"
FAULTS: dict[int, tuple[Fault, str]] = {
    0: (raises, "failed: LookupError: the disk is gone"),
    1: (lambda a, c: spoil(a, "weight", put(np.nan)), f"refused: .*weight: {NUMBERS}"),
    2: (lambda a, c: spoil(a, "bias", put(-np.inf)), f"refused: .*bias: {NUMBERS}"),
    3: (lambda a, c: spoil(a, "weight", lambda v: v.T), r"refused: .*weight: expected float32\[\d+, 64\], found"),
    4: (lambda a, c: spoil(a, "weight", np.float64), r"refused: .*weight: expected float32\[.*, found float64\["),
    5: (drop("weight"), "refused: array '.*weight' is missing"),
    6: (lambda a, c: a.update({"more": Array(np.zeros(1))}), "refused: array 'more' is unknown"),
    7: (drop("threshold"), "refused: array '.*threshold' is missing"),
    8: (lambda a, c: spoil(a, "threshold", put(-0.5)), "refused: .*threshold: expected positive values, .* is -0.5"),
    9: (lambda a, c: spoil(a, "threshold", put(0.0)), "refused: .*threshold: expected positive values, .* is 0"),
    10: (claim(0), "refused: num-examples: expected a whole number from 1 to 80, found 0"),
    11: (claim(81), "refused: num-examples: expected a whole number from 1 to 80, found 81"),
    12: (a_gigabyte_of_zeros, r"refused: fc1.weight: expected float32\[.*, found float32\[268435456\]"),
    13: (
        lambda a, c: c.pop("metrics") and None,
        "refused: expected the records 'arrays' and 'metrics', found 'arrays'",
    ),
    14: (hangs, f"failed: no reply within {TIMEOUT:g} s"),
}


class Faulty(ClientApp):
    """The real client, some of which misbehave in the first round."""

    def __init__(self, faults: dict[int, Fault]) -> None:
        super().__init__()
        self.faults = faults

    def __call__(self, message: Message, context: Context) -> Message:
        reply = client_app.app(message, context)
        fault = self.faults.get(int(context.node_config["partition-id"]))
        asked_to_train = message.metadata.message_type == "train"
        if fault is not None and asked_to_train and message.content["config"]["server-round"] == 1:
            fault(reply.content["arrays"], reply.content)
        return reply


def run(folder: Path, faults: dict[int, Fault], *overrides: str) -> tuple[list[dict[str, object]], Path]:
    config = compose(None, [*OVERRIDES, f"run.directory={folder}", *overrides])
    run_in_process(server_app(), Faulty(faults), run_config=flatten(config), clients=config.data.clients)
    return read_metrics(folder / "run"), folder / "run"


@pytest.mark.slow
def test_the_others_carry_a_round_of_faults(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="strategies"):
        (first, second), faulty = run(tmp_path / "faulty", {number: fault for number, (fault, _) in FAULTS.items()})
    counts = ("replies", "refused", "failed", "aggregated")
    assert [first[key] for key in counts] == [CLIENTS - len(FAULTS), len(FAULTS) - 2, 2, True]
    assert [second[key] for key in counts] == [CLIENTS, 0, 0, True]
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("strategies")]
    assert len(lines) == len(FAULTS)
    for line, (partition, (_, reason)) in zip(lines, sorted(FAULTS.items()), strict=True):
        node = FIRST_NODE_ID + partition
        assert re.match(rf"round 1: reply of partition {partition} \(node {node}\) {reason}", line), line

    # The same weights as if all had sent NaN; those that raise or are interrupted keep their former private biases.
    same = {number: FAULTS[0 if number in (0, 14) else 1][0] for number in FAULTS}
    _, expected = run(tmp_path / "expected", same)
    for name in (ANN_FILE, SNN_FILE):
        assert (faulty / name).read_bytes() == (expected / name).read_bytes()


def exits_hard(arrays: ArrayRecord, content: RecordDict) -> None:
    os._exit(3)


@pytest.mark.ray
@pytest.mark.slow
def test_on_ray_a_client_that_exits_hard_costs_its_own_reply(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    faults: dict[int, Fault] = {0: raises, 1: exits_hard, 3: FAULTS[1][0]}
    few = ("data.clients=6", "strategy.timeout=300")
    config = compose(None, [*OVERRIDES, f"run.directory={tmp_path / 'ray'}", *few, "engine.name=ray"])
    with caplog.at_level(logging.WARNING, logger="strategies"):
        run_on_ray(server_app(), Faulty(faults), run_config=flatten(config), clients=6)
    first, second = read_metrics(tmp_path / "ray" / "run")
    counts = ("replies", "refused", "failed", "aggregated")
    assert [[row[key] for key in counts] for row in (first, second)] == [[3, 1, 2, True], [6, 0, 0, True]]
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("strategies")]
    reasons = ("failed: LookupError", r"failed: its process died \(ActorDiedError\)", f"refused: .*weight: {NUMBERS}")
    for line, partition, reason in zip(lines, faults, reasons, strict=True):
        assert re.match(rf"round 1: reply of partition {partition} \(node \d+\) {reason}", line), line

    _, expected = run(tmp_path / "in_process", {**faults, 1: raises}, *few)
    for name in (ANN_FILE, SNN_FILE):
        assert (tmp_path / "ray" / "run" / name).read_bytes() == (expected / name).read_bytes()


def test_too_few_valid_replies_keep_the_old_weights_and_say_so(tmp_path: Path) -> None:
    most = dict.fromkeys(range(CLIENTS - 3), raises)
    (first, second), _ = run(tmp_path, most, "strategy.minimum_replies=4")
    assert (first["aggregated"], first["failed"], first["server_snn_accuracy"]) == (False, CLIENTS - 3, None)
    assert (second["aggregated"], second["replies"]) == (True, CLIENTS)
