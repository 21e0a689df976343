"""What a valid update looks like follows from the model; and the small parts of the check."""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given

from snnfl.updates import ArraySpec
from strategies.update import (
    UpdateRefused,
    UpdateSpec,
    array_bytes,
    check_metrics,
    check_update,
    one_line,
)


def test_metrics_alone(reply: Callable[..., Message], update_reply: Callable[..., Message]) -> None:
    names, values = frozenset({"num-examples", "accuracy", "loss"}), {"num-examples": 4, "accuracy": 0.5, "loss": 1.0}
    assert check_metrics(reply(RecordDict({"metrics": MetricRecord({**values})})), names) == values
    for content in (RecordDict(), RecordDict({"metrics": ConfigRecord()}), update_reply({}).content):
        with pytest.raises(UpdateRefused, match="expected the record 'metrics', found"):
            check_metrics(reply(content), names)
    with pytest.raises(UpdateRefused, match="expected content, found none"):
        check_metrics(reply(None), names)
    with pytest.raises(UpdateRefused, match=r"'loss' is missing"):
        check_metrics(reply(RecordDict({"metrics": MetricRecord({"num-examples": 1, "accuracy": 0.5})})), names)


def test_array_bytes_are_those_of_all_records() -> None:
    values = Array(np.zeros((3, 4), np.float32))
    raw = Array("int8", (7,), "numpy.ndarray", b"1234567")
    content = RecordDict({"a": ArrayRecord({"v": values, "w": values}), "b": ArrayRecord({"x": raw})})
    assert array_bytes(content) == 2 * (128 + 48) + 7
    assert array_bytes(RecordDict({"metrics": MetricRecord({"a": 1})})) == 0


@given(st.text())
def test_one_line_is_printable_and_short(text: str) -> None:
    line = one_line(text * 50, 40)
    assert line.isprintable()
    assert len(line) <= 40


def test_one_line_removes_terminal_commands_and_keeps_words() -> None:
    assert (
        one_line("ValueError: \x1b[2Jgone\r\n  forged line\t\u202eevil é") == "ValueError: ?[2Jgone forged line ?evil é"
    )


def test_a_large_surplus_is_refused_quickly(update_reply: Callable[..., Message]) -> None:
    metrics = frozenset({"num-examples", "loss", "accuracy", "seconds-train"})
    spec = UpdateSpec(arrays={"w": ArraySpec(shape=(1,))}, metrics=metrics)
    many = update_reply({"w": torch.zeros(1)}, **{f"m{number}": 1.0 for number in range(20_000)})
    long = update_reply({"w": torch.zeros(1), "x" * 10**6: torch.zeros(1)})
    start = time.process_time()
    with pytest.raises(UpdateRefused, match=r"'m0' is unknown \(0 missing, 20000 unknown\)"):
        check_update(many, spec)
    with pytest.raises(UpdateRefused, match=r"is unknown \(0 missing, 1 unknown\)") as refusal:
        check_update(long, spec)
    assert len(str(refusal.value)) < 200
    assert time.process_time() - start < 1


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


def test_flowers_decoding_never_unpickles(tmp_path: Path) -> None:
    executed = tmp_path / "executed"
    raw = pickle.dumps(Payload(executed))
    pickle.loads(raw).close()
    assert executed.exists()  # the payload works
    executed.unlink()
    saved, zipped = io.BytesIO(), io.BytesIO()
    np.save(saved, np.array([Payload(executed)], dtype=object), allow_pickle=True)
    np.savez(zipped, a=np.array([Payload(executed)], dtype=object), allow_pickle=True)
    for data in (raw, saved.getvalue()):
        with pytest.raises(ValueError, match="allow_pickle"):
            Array("object", (1,), "numpy.ndarray", data).numpy()
    Array("object", (1,), "numpy.ndarray", zipped.getvalue()).numpy()  # an archive is opened, not read
    assert not executed.exists()


@pytest.mark.parametrize(
    ("steps", "reason"),
    [(4.0, None), (3.0, "expected 4, as 40 examples give, found 3"), (4.5, "expected 4"), (float("nan"), "one number")],
)
def test_local_steps_are_those_that_the_examples_give(
    update_reply: Callable[..., Message], steps: float, reason: str | None
) -> None:
    names = frozenset({"num-examples", "loss", "accuracy", "seconds-train", "local-steps"})
    spec = UpdateSpec(arrays={"w": ArraySpec(shape=(1,))}, metrics=names, steps=lambda examples: examples // 10)
    reply = update_reply({"w": torch.zeros(1)}, num_examples=40, local_steps=steps)
    if reason is None:
        assert check_update(reply, spec).metrics["local-steps"] == steps
        return
    with pytest.raises(UpdateRefused, match=f"metric local-steps: .*{reason}"):
        check_update(reply, spec)


@pytest.mark.parametrize("steps", [0.0, -1.0, 1.5])
def test_a_number_of_local_steps_is_whole_and_positive(update_reply: Callable[..., Message], steps: float) -> None:
    names = frozenset({"num-examples", "loss", "accuracy", "seconds-train", "local-steps"})
    spec = UpdateSpec(arrays={"w": ArraySpec(shape=(1,))}, metrics=names)
    with pytest.raises(UpdateRefused, match="metric local-steps: expected a whole number from 1"):
        check_update(update_reply({"w": torch.zeros(1)}, local_steps=steps), spec)
