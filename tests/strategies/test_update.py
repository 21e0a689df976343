"""The check of what clients send, against hostile updates."""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings

from experiments.engines.in_process import restored_task_identity
from snnfl.updates import ArraySpec
from strategies.update import (
    MAXIMUM_VALUE,
    UpdateRefused,
    UpdateSpec,
    check_update,
    one_line,
)

SPEC = UpdateSpec(
    arrays={
        "conv.weight": ArraySpec(shape=(3, 2, 5)),
        "conv.bias": ArraySpec(shape=(3,)),
        "norm.var": ArraySpec(shape=(3,), values="non-negative"),
        "relu.threshold": ArraySpec(shape=(1,), values="positive"),
    },
    metrics=frozenset({"num-examples", "loss", "accuracy"}),
)
METRICS = {"num-examples": 40, "loss": 0.5, "accuracy": 0.25}

Mutation = Callable[[RecordDict, st.DataObject], None]


def valid() -> RecordDict:
    values = {name: np.linspace(0.5, 2.0, int(np.prod(spec.shape))).reshape(spec.shape) for name, spec in arrays()}
    records = {name: Array(value.astype(np.float32)) for name, value in values.items()}
    return RecordDict({"arrays": ArrayRecord(records), "metrics": MetricRecord({**METRICS})})


def arrays() -> list[tuple[str, ArraySpec]]:
    return list(SPEC.arrays.items())


def message(content: RecordDict | None) -> Message:
    with restored_task_identity():
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        made = Message(RecordDict() if content is None else content, 2, "train")
    made.__dict__["_content"] = content
    return made


def npy(header: str, body: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    text = header.encode("latin1")
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text + body


def header(shape: object, descr: str = "'<f4'", order: bool = False) -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}\n"


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


# Mutations of a valid update. Those of HARMLESS leave a valid one, all others must be refused.


def pick(data: st.DataObject) -> str:
    return data.draw(st.sampled_from(sorted(SPEC.arrays)))


def put(content: RecordDict, name: str, raw: bytes) -> None:
    content["arrays"][name] = Array("float32", SPEC.arrays[name].shape, "numpy.ndarray", raw)


def body(content: RecordDict, name: str) -> bytes:
    return content["arrays"][name].numpy().tobytes()


def drop_array(content: RecordDict, data: st.DataObject) -> None:
    del content["arrays"][pick(data)]


def add_array(content: RecordDict, data: st.DataObject) -> None:
    content["arrays"][data.draw(st.text().filter(lambda name: name not in SPEC.arrays))] = Array(
        np.zeros(1, np.float32)
    )


def rename_array(content: RecordDict, data: st.DataObject) -> None:
    name = pick(data)
    content["arrays"][name + "\x1b[2J"] = content["arrays"].pop(name)


def reshape(content: RecordDict, data: st.DataObject) -> None:
    name = pick(data)
    shape = tuple(
        data.draw(st.lists(st.integers(0, 6), max_size=4).filter(lambda s: tuple(s) != SPEC.arrays[name].shape))
    )
    content["arrays"][name] = Array(np.ones(shape, np.float32))


def retype(content: RecordDict, data: st.DataObject) -> None:
    name = pick(data)
    kinds = ["float64", "float16", "int32", "uint8", "complex64", "bool", ">f4", "S4", "datetime64[s]", "V4"]
    content["arrays"][name] = Array(np.ones(SPEC.arrays[name].shape, data.draw(st.sampled_from(kinds))))


def structured(content: RecordDict, data: st.DataObject) -> None:
    name = pick(data)
    content["arrays"][name] = Array(np.zeros(SPEC.arrays[name].shape, [("a", "f4"), ("b\x1b", "i8")]))


def not_finite(content: RecordDict, data: st.DataObject) -> None:
    name = pick(data)
    values = content["arrays"][name].numpy()
    wrong = [np.nan, np.inf, -np.inf, 3e38, -3e38, 1.01 * MAXIMUM_VALUE]
    values.flat[data.draw(st.integers(0, values.size - 1))] = data.draw(st.sampled_from(wrong))
    content["arrays"][name] = Array(values)


def wrong_threshold(content: RecordDict, data: st.DataObject) -> None:
    content["arrays"]["relu.threshold"] = Array(np.array([data.draw(st.sampled_from([0.0, -0.0, -1.0]))], np.float32))


def wrong_variance(content: RecordDict, data: st.DataObject) -> None:
    content["arrays"]["norm.var"] = Array(np.array([1.0, data.draw(st.sampled_from([-1e-45, -2.0])), 1.0], np.float32))


def truncate(content: RecordDict, data: st.DataObject) -> None:
    name = pick(data)
    raw = content["arrays"][name].data
    put(content, name, raw[: data.draw(st.integers(0, len(raw) - 1))])


def append(content: RecordDict, data: st.DataObject) -> None:
    name = pick(data)
    put(content, name, content["arrays"][name].data + data.draw(st.binary(min_size=1)))


def claim_a_huge_shape(content: RecordDict, data: st.DataObject) -> None:
    name = pick(data)
    shape = data.draw(st.sampled_from([(2**40,), (2**31,), (2**40, 2**40), (-1,), (2**62, 8), (0, 2**60)]))
    kind = data.draw(st.sampled_from(["'<f4'", "'V0'", "'V2147483647'", "'|S99999999'"]))
    put(content, name, npy(header(shape, kind), body(content, name)))


def crafted_header(content: RecordDict, data: st.DataObject) -> None:
    name = pick(data)
    texts = [
        "(" * 150 + ")" * 150,
        "[" * 9000,
        "-" * 9000 + "1",
        "1+" * 4000 + "1",
        "{**{}}",
        "9**9**9",
        "lambda: 1",
        "",
    ]
    nested = header("(7L,)"), header("(" + "-" * 400 + "1,)"), header((3,), "[" * 90 + "]" * 90), header("None")
    put(content, name, npy(data.draw(st.sampled_from([*texts, *nested])), body(content, name)))


def long_header(content: RecordDict, data: st.DataObject) -> None:
    name = pick(data)
    text = header(SPEC.arrays[name].shape)
    put(content, name, npy(" " * data.draw(st.sampled_from([600, 9000, 60000])) + text, body(content, name)))


def other_version(content: RecordDict, data: st.DataObject) -> None:
    name = pick(data)
    version = data.draw(st.sampled_from([(2, 0), (3, 0), (4, 0), (0, 0)]))
    put(content, name, npy(header(SPEC.arrays[name].shape), body(content, name), version))


def pickled(content: RecordDict, data: st.DataObject) -> None:
    name = pick(data)
    stream = io.BytesIO()
    np.save(stream, np.array([Payload("/nonexistent/executed")] * 3, dtype=object), allow_pickle=True)
    put(content, name, data.draw(st.sampled_from([stream.getvalue(), pickle.dumps(Payload("/nonexistent/executed"))])))


def zipped(content: RecordDict, data: st.DataObject) -> None:
    name, stream = pick(data), io.BytesIO()
    np.savez_compressed(stream, content["arrays"][name].numpy())
    put(content, name, stream.getvalue())


def other_serialisation(content: RecordDict, data: st.DataObject) -> None:
    content["arrays"][pick(data)].stype = data.draw(st.sampled_from(["", "numpy", "pickle", "torch"]))


def lie(content: RecordDict, data: st.DataObject) -> None:
    array = content["arrays"][pick(data)]
    if data.draw(st.booleans()):
        array.dtype = data.draw(st.sampled_from(["float64", "", "float32 "]))
    else:
        array.shape = data.draw(st.sampled_from([(), (2**40,), (3, 2), (-1,)]))


def number_of_examples(content: RecordDict, data: st.DataObject) -> None:
    wrong = [0, -1, 0.5, 1e30, 10**9 + 1, 10**400, -(10**400), float("nan"), float("inf"), [40], [], -0.0]
    content["metrics"]["num-examples"] = data.draw(st.sampled_from(wrong))


def wrong_metric(content: RecordDict, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["loss", "accuracy"]))
    content["metrics"][name] = data.draw(
        st.sampled_from([float("nan"), float("-inf"), [0.5], [], 1e13, -1e300, 10**400, 10**30])
    )


def accuracy_out_of_range(content: RecordDict, data: st.DataObject) -> None:
    content["metrics"]["accuracy"] = data.draw(st.sampled_from([-0.01, 1.01, 1e6, 2]))


def drop_metric(content: RecordDict, data: st.DataObject) -> None:
    del content["metrics"][data.draw(st.sampled_from(sorted(METRICS)))]


def add_metric(content: RecordDict, data: st.DataObject) -> None:
    content["metrics"][data.draw(st.text().filter(lambda name: name not in METRICS))] = 1.0


def surplus_record(content: RecordDict, data: st.DataObject) -> None:
    record = data.draw(st.sampled_from([ArrayRecord(), MetricRecord(), ConfigRecord({"a": b"b"})]))
    content[data.draw(st.text().filter(lambda name: name not in content))] = record


def missing_record(content: RecordDict, data: st.DataObject) -> None:
    del content[data.draw(st.sampled_from(["arrays", "metrics"]))]


def swapped_records(content: RecordDict, data: st.DataObject) -> None:
    content["metrics"], content["arrays"] = content["arrays"], content["metrics"]


def random_bytes(content: RecordDict, data: st.DataObject) -> None:
    put(content, pick(data), data.draw(st.binary(max_size=300)))


def other_values(content: RecordDict, data: st.DataObject) -> None:
    name = pick(data)
    low = {"finite": -(2.0**39), "non-negative": 0.0, "positive": 2.0**-149}[SPEC.arrays[name].values]
    number = st.floats(low, 2.0**39, width=32)
    size = int(np.prod(SPEC.arrays[name].shape))
    values = data.draw(st.lists(number, min_size=size, max_size=size))
    content["arrays"][name] = Array(np.array(values, np.float32).reshape(SPEC.arrays[name].shape))


def fortran_order(content: RecordDict, data: st.DataObject) -> None:
    content["arrays"]["conv.weight"] = Array(np.asfortranarray(content["arrays"]["conv.weight"].numpy()))
    assert b"'fortran_order': True" in content["arrays"]["conv.weight"].data


def other_metrics(content: RecordDict, data: st.DataObject) -> None:
    content["metrics"]["num-examples"] = data.draw(st.sampled_from([1, 1.0, 10**9]))
    content["metrics"]["accuracy"] = data.draw(st.sampled_from([0, 1, 1.0, 0.3]))
    content["metrics"]["loss"] = data.draw(st.floats(-1e12, 1e12))


HARMLESS: list[Mutation] = [other_values, fortran_order, other_metrics]
HOSTILE: list[Mutation] = [
    drop_array,
    add_array,
    rename_array,
    reshape,
    retype,
    structured,
    not_finite,
    wrong_threshold,
    wrong_variance,
    truncate,
    append,
    claim_a_huge_shape,
    crafted_header,
    long_header,
    other_version,
    pickled,
    zipped,
    other_serialisation,
    lie,
    number_of_examples,
    wrong_metric,
    accuracy_out_of_range,
    drop_metric,
    add_metric,
    surplus_record,
    missing_record,
    swapped_records,
    random_bytes,
]


@pytest.mark.parametrize("mutation", [*HOSTILE, *HARMLESS], ids=lambda mutation: mutation.__name__)
@pytest.mark.filterwarnings("ignore:Reading `.npy`")  # NumPy's answer to the header of Python 2
@settings(max_examples=60)
@given(data=st.data())
def test_a_mutated_update_is_refused_or_valid(mutation: Mutation, data: st.DataObject) -> None:
    content = valid()
    if data.draw(st.booleans()):
        data.draw(st.sampled_from(HARMLESS))(content, data)
    mutation(content, data)
    if mutation in HOSTILE:
        with pytest.raises(UpdateRefused) as refusal:  # anything else would end the run
            check_update(message(content), SPEC)
        assert len(one_line(str(refusal.value))) > 10
        return
    update = check_update(message(content), SPEC)
    assert list(update.arrays) == list(SPEC.arrays)
    for name, spec in SPEC.arrays.items():
        array = update.arrays[name]
        assert (tuple(array.shape), array.dtype) == (spec.shape, torch.float32)
        assert array.is_contiguous()
        assert array.abs().max() <= MAXIMUM_VALUE
        np.testing.assert_array_equal(array.numpy(), content["arrays"][name].numpy())  # as the base strategy reads it
    assert update.metrics == dict(content["metrics"])
    assert all(type(value) is float for value in update.metrics.values())
    assert type(update.examples) is int
    assert 1 <= update.examples <= 10**9


@settings(max_examples=300)
@given(name=st.sampled_from(sorted(SPEC.arrays)), data=st.data())
@pytest.mark.filterwarnings("ignore")  # what NumPy says to a header of another time
def test_flipped_bytes_never_change_the_structure(name: str, data: st.DataObject) -> None:
    content = valid()
    raw = bytearray(content["arrays"][name].data)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    put(content, name, bytes(raw))
    try:
        update = check_update(message(content), SPEC)
    except UpdateRefused:
        return
    assert tuple(update.arrays[name].shape) == SPEC.arrays[name].shape
    np.testing.assert_array_equal(update.arrays[name].numpy(), content["arrays"][name].numpy())


def test_a_message_without_content_is_refused() -> None:
    with pytest.raises(UpdateRefused, match="expected content, found none"):
        check_update(message(None), SPEC)


@pytest.mark.parametrize("elements", [2**27, 2**31, 2**40])
def test_a_header_that_claims_much_allocates_nothing(elements: int) -> None:
    content = valid()
    put(content, "conv.bias", npy(header((elements,)), b"\0" * 12))
    tracemalloc.start()
    try:
        with pytest.raises(UpdateRefused, match=f"found float32\\[{elements}\\]"):
            check_update(message(content), SPEC)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


def test_refusals_say_what_was_expected_and_found() -> None:
    content = valid()
    content["arrays"]["conv.bias"] = Array(np.zeros((2, 3)))
    with pytest.raises(UpdateRefused, match=r"^conv.bias: expected float32\[3\], found float64\[2, 3\]$"):
        check_update(message(content), SPEC)
    content = valid()
    content["metrics"]["num-examples"] = 0.5
    with pytest.raises(UpdateRefused, match=r"^num-examples: expected a whole number from 1 to 1000000000, found 0.5$"):
        check_update(message(content), SPEC)
    content = valid()
    del content["metrics"]
    with pytest.raises(UpdateRefused, match=r"^expected the records 'arrays' and 'metrics', found 'arrays'$"):
        check_update(message(content), SPEC)
    content = valid()
    content["metrics"]["loss"] = float("nan")
    with pytest.raises(
        UpdateRefused, match=r"^metric loss: expected one number within ±1e\+12, found nan; .* training has diverged$"
    ):
        check_update(message(content), SPEC)
