"""A thousand random mutations of a valid update: none crashes the server, none is accepted with another structure."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from hypothesis import HealthCheck, given, settings

from snnfl.config import ConversionConfig
from snnfl.updates import Converted, Packing, ann_specs
from strategies.guarded import Guarded
from strategies.spiking import Spiking
from strategies.update import UpdateSpec

METRICS = frozenset({"num-examples", "loss", "accuracy", "seconds-train"})
NUMBERS = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, 1e-30, 1e12, -1e12, 3e38, np.nan, np.inf, -np.inf])
METRIC_VALUES = st.one_of(
    st.integers(), st.floats(), st.lists(st.floats(), max_size=3), st.sampled_from([0, -1, 10**9 + 1, 10**400, 0.5])
)

HEADER_EDITS = [
    (b"<f4", b"<f8"),
    (b"<f4", b">f4"),
    (b"<f4", b"<i4"),
    (b"<f4", b"|O4"),
    (b"False", b"True "),
    (b"(", b"["),
]
HEADER_EDITS += [(b",)", b"9)"), (b"\x01\x00", b"\x02\x00"), (b"'shape'", b"'shope'"), (b"}", b" "), (b"\n", b"\0")]

Change = Callable[[RecordDict, st.DataObject], None]


def pick(content: RecordDict, data: st.DataObject) -> tuple[ArrayRecord, str]:
    record = content["arrays"]
    return record, data.draw(st.sampled_from(sorted(record)))


def alter(array: Array, **fields: Any) -> Array:
    values = {"dtype": array.dtype, "shape": array.shape, "stype": array.stype, "data": array.data}
    return Array(**{**values, **fields})


def flip_bytes(content: RecordDict, data: st.DataObject) -> None:
    record, name = pick(content, data)
    raw = bytearray(record[name].data)
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    record[name] = alter(record[name], data=bytes(raw))


def edit_header(content: RecordDict, data: st.DataObject) -> None:
    record, name = pick(content, data)
    raw = bytearray(record[name].data)
    old, new = data.draw(st.sampled_from(HEADER_EDITS))
    record[name] = alter(record[name], data=bytes(raw.replace(old, new, 1)))


def cut_or_grow(content: RecordDict, data: st.DataObject) -> None:
    record, name = pick(content, data)
    raw = record[name].data
    cut = raw[: data.draw(st.integers(0, len(raw)))]
    record[name] = alter(record[name], data=data.draw(st.sampled_from([cut, raw + b"\0", raw * 2, b"\0" * 4096, b""])))


def other_values(content: RecordDict, data: st.DataObject) -> None:
    record, name = pick(content, data)
    values = record[name].numpy().copy()
    values.flat[data.draw(st.integers(0, values.size - 1))] = np.float32(data.draw(NUMBERS)).astype(values.dtype)
    factor = np.float32(data.draw(st.sampled_from([1.0, 1.0, -1.0, 0.0, 1e-20, 1e20])))
    record[name] = Array((values * factor).astype(values.dtype))


def other_dtype_or_shape(content: RecordDict, data: st.DataObject) -> None:
    record, name = pick(content, data)
    values = record[name].numpy()
    changed = [values.astype("f8"), values.astype("f2"), values.astype("i4"), values[None], values.ravel(), values[:0]]
    record[name] = Array(data.draw(st.sampled_from(changed)))


def other_declaration(content: RecordDict, data: st.DataObject) -> None:
    record, name = pick(content, data)
    field = data.draw(st.sampled_from([{"dtype": "float64"}, {"dtype": ""}, {"shape": ()}, {"shape": (2**40,)}]))
    stype = data.draw(st.sampled_from(["numpy.ndarray", "pickle", ""]))
    record[name] = alter(record[name], stype=stype, **field)


def other_keys(content: RecordDict, data: st.DataObject) -> None:
    record, name = pick(content, data)
    other = data.draw(st.sampled_from(sorted(record)))
    change = data.draw(st.sampled_from(["drop", "rename", "add", "swap"]))
    if change == "add":
        record[data.draw(st.text())] = record[name]
    elif change == "swap":
        record[name], record[other] = record[other], record[name]
    else:
        moved = record.pop(name)
        if change == "rename":
            record[name + data.draw(st.text())] = moved


def other_metrics(content: RecordDict, data: st.DataObject) -> None:
    record = content["metrics"]
    name = data.draw(st.sampled_from(sorted(record)))
    change = data.draw(st.sampled_from(["value", "value", "value", "drop", "add"]))
    if change == "drop":
        del record[name]
    else:
        record[name if change == "value" else data.draw(st.text())] = data.draw(METRIC_VALUES)


def other_records(content: RecordDict, data: st.DataObject) -> None:
    record = data.draw(st.sampled_from([ArrayRecord(), MetricRecord(), ConfigRecord({"a": b"b"})]))
    content[data.draw(st.sampled_from(["arrays", "metrics", "config", ""]))] = record


CHANGES: list[Change] = [flip_bytes, edit_header, cut_or_grow, other_values, other_dtype_or_shape, other_declaration]
CHANGES += [other_keys, other_metrics, other_records]


@pytest.fixture(params=["plain", "spiking", "spiking, per channel, bias back", "spiking, packed"])
def server(request: pytest.FixtureRequest, federation: Any) -> Iterator[tuple[Callable[[], Guarded], dict[str, Any]]]:
    """Make a strategy of a kind, and an update that is valid for it."""
    base = FedAvg(min_train_nodes=1, min_available_nodes=1)
    per_channel = "channel" in request.param
    state, update = federation.trained(3, per_channel=per_channel)
    if request.param == "plain":
        spec = UpdateSpec(arrays=ann_specs(federation.state), metrics=METRICS, examples=1000)
        yield lambda: Guarded(base, spec, seed=0), state
        return
    conversion = ConversionConfig(thresholds="channel_mmse" if per_channel else "layer_mmse")
    format = Converted(federation.graph, federation.state, conversion, bias_back=per_channel)
    packing = Packing(format, 4) if "packed" in request.param else None
    if packing is not None:
        update, _ = packing.encode(update, federation.state, {}, torch.Generator().manual_seed(0))
    yield lambda: Spiking(base, format, metrics=METRICS, examples=1000, packing=packing), update


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
@pytest.mark.filterwarnings("ignore:Reading `.npy`")  # NumPy's answer to a header of Python 2
def test_a_mutated_update_is_refused_or_has_the_structure(
    server: tuple[Callable[[], Guarded], dict[str, Any]],
    federation: Any,
    scripted: Callable[..., Any],
    update_reply: Callable[..., Message],
    data: st.DataObject,
) -> None:
    make, arrays = server
    strategy = make()
    private = {"conv.bias", "hidden.bias", "head.bias"} if isinstance(strategy, Spiking) else set()
    sent = {name: array for name, array in federation.state.items() if name not in private}
    strategy.configure_train(1, ArrayRecord(sent), ConfigRecord(), scripted([1, 2], lambda m: m))
    good, bad = update_reply(arrays, 1), update_reply(arrays, 2)
    bad.content = copy.deepcopy(bad.content)
    with np.errstate(all="ignore"):  # of the values that the changes make, not of the server's arithmetic
        for change in [*data.draw(st.sampled_from([[], [other_values]])), data.draw(st.sampled_from(CHANGES))]:
            change(bad.content, data)
    result, metrics = strategy.aggregate_train(1, [good, bad])
    report = strategy.report
    assert len(report.updates) + report.refused == 2
    assert report.updates, "the honest client's update is never lost"
    assert report.aggregated
    for update in report.updates:
        assert {name: tuple(array.shape) for name, array in update.arrays.items()} == {
            name: spec.shape for name, spec in strategy.spec.arrays.items()
        }
        assert update.metrics.keys() == METRICS
        assert 1 <= update.examples <= 1000
        assert all(array.dtype == torch.float32 for array in update.arrays.values())
        assert all(bool((update.arrays[name] > 0).all()) for name in update.arrays if name.endswith("threshold"))
    assert all(np.isfinite(array.numpy()).all() for array in result.values())
    assert all(np.isfinite(value) for value in metrics.values())
    if isinstance(strategy, Spiking):
        assert all(bool(array.isfinite().all()) for array in strategy.network.parameters.values())
