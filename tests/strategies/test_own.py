"""The average of our own beside Flower's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr import serverapp
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from snnfl.rng import generator
from strategies import own
from strategies.arrays import with_tensors
from strategies.own import FedAvg

SHAPES = {"conv.weight": (4, 3, 5, 5), "conv.bias": (4,), "scale": (1,), "none": (0, 3)}


def replies(examples: list[int], *, known: bool, dtypes: tuple[str, ...] = ("float32",)) -> list[Message]:
    """Return updates with random arrays, as :class:`~strategies.guarded.Guarded` passes them on or as they came."""
    found = []
    for n, count in enumerate(examples):
        draw = generator(0, "arrays", n)
        tensors = {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}
        dtype = dtypes[n % len(dtypes)]
        arrays = ArrayRecord({name: Array(np.asarray(a.numpy(), dtype)) for name, a in tensors.items()})
        metrics = MetricRecord({"num-examples": count, "loss": 1.0 / count})
        message = Message(RecordDict({"arrays": arrays, "metrics": metrics}), dst_node_id=1, message_type="train")
        found.append(with_tensors(message, tensors, SHAPES, count) if known else message)
    return found


def sent(record: ArrayRecord | None) -> list[tuple[str, str, tuple[int, ...], str, bytes]]:
    """Return what would travel of a record."""
    assert record is not None
    return [(name, a.dtype, tuple(a.shape), a.stype, a.data) for name, a in record.items()]


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=6), st.booleans())
def test_equals_flowers_average_to_the_bit(examples: list[int], known: bool) -> None:
    arrays, metrics = FedAvg().aggregate_train(1, replies(examples, known=known))
    expected, expected_metrics = serverapp.strategy.FedAvg().aggregate_train(1, replies(examples, known=known))
    assert sent(arrays) == sent(expected)
    assert metrics == expected_metrics


def test_an_average_in_blocks_is_that_of_whole_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    updates = replies([3, 1, 2], known=True)
    expected = sent(serverapp.strategy.FedAvg().aggregate_train(1, updates)[0])
    for block in (1, 7, 300):
        monkeypatch.setattr(own, "BLOCK", block)
        assert sent(FedAvg().aggregate_train(1, updates)[0]) == expected


def test_factors_of_numpy_widen_a_sum_as_they_do_elsewhere() -> None:
    arrays = [Array(np.full(3, value, np.float32)) for value in (1, 2)]
    found = own.weighted_sum(arrays, [np.float64(0.1), np.float64(0.2)])
    assert found.dtype == np.float64


def test_updates_of_another_type_are_averaged_as_flower_does() -> None:
    """Clipping by the server gives float64 where it clips."""
    for dtypes in (("float64",), ("float64", "float32"), ("float32", "float64")):
        updates = replies([3, 1, 2], known=False, dtypes=dtypes)
        arrays, _ = FedAvg().aggregate_train(1, updates)
        assert sent(arrays) == sent(serverapp.strategy.FedAvg().aggregate_train(1, updates)[0])


def test_leaves_the_updates_as_they_are() -> None:
    updates = replies([1, 2], known=True)
    before = [{name: array.numpy() for name, array in each.content["arrays"].items()} for each in updates]
    FedAvg().aggregate_train(1, updates)
    for update, arrays in zip(updates, before, strict=True):
        for name, array in update.content["arrays"].items():
            np.testing.assert_array_equal(array.numpy(), arrays[name])


def test_without_updates_there_is_no_average() -> None:
    assert FedAvg().aggregate_train(1, []) == (None, None)
