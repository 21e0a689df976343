"""The state of a strategy: packed, unpacked and put into a new one, it goes on as the old one does."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import math
import random
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, Strategy
from hypothesis import given
from hypothesis.extra import numpy as hnp

from snnfl.config import ConfigError
from strategies.arrays import known
from strategies.server_app import play_round
from strategies.state import pack, restore, unpack

NODES = tuple(range(11, 19))
SHAPES = {"conv.weight": (2, 3), "fc.bias": (4,), "scalar": ()}

SPECIAL: dict[str, dict[str, Any]] = {
    "FedAvgM": {"server_momentum": 0.9, "server_learning_rate": 0.5},
    "FedProx": {"proximal_mu": 0.1},
    "QFedAvg": {"client_learning_rate": 0.1, "train_loss_key": "loss"},
    "Krum": {"num_malicious_nodes": 1},
    "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 3},
    "Bulyan": {"num_malicious_nodes": 1},
    "FedXgbCyclic": {"fraction_evaluate": 0.0},
}
WRAPPERS = {
    name: {"clipping_norm": 0.5} if "Fixed" in name else {"initial_clipping_norm": 0.5}
    for name in flower.__all__
    if name.startswith("DifferentialPrivacy")
}
CONCRETE = [name for name in flower.__all__ if name != "Result" and not inspect.isabstract(getattr(flower, name))]


def build(name: str) -> Strategy:
    kind = getattr(flower, name)
    if name in WRAPPERS:
        return kind(FedAdam(fraction_evaluate=0.0), noise_multiplier=0.1, num_sampled_clients=8, **WRAPPERS[name])
    return kind(**{"fraction_evaluate": 0.0, **SPECIAL.get(name, {})})


def train(message: Message) -> Message:
    """Answer as a client whose training is a function of node, round and what it received."""
    config = message.content["config"]
    draw = np.random.default_rng([message.metadata.dst_node_id, config["server-round"]])
    arrays = {
        name: Array(np.asarray(array.numpy() + draw.normal(size=array.shape), np.float32))
        for name, array in message.content["arrays"].items()
    }
    metrics = {"num-examples": message.metadata.dst_node_id, "loss": float(draw.random() + 0.1)}
    if "clipping_norm" in config:
        metrics["norm_bit"] = int(draw.integers(2))
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord(metrics)}), reply_to=message)


def play(strategy: Strategy, grid: Any, server_round: int, arrays: ArrayRecord) -> ArrayRecord:
    """Play a round; Flower's sampling and noise, which come from global generators, are functions of its number."""
    before = random.getstate(), np.random.get_state()
    random.seed(server_round)
    np.random.seed(server_round)
    try:
        return play_round(strategy, grid, server_round, arrays, ConfigRecord(), timeout=1)
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def through_json(value: Any) -> Any:
    arrays: dict[str, Any] = {}
    packed = json.loads(json.dumps(pack(value, "value", arrays)))
    return unpack(packed, arrays)


def same(one: Any, other: Any) -> bool:
    """Compare values and types, NaN being itself."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray | np.generic):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, torch.Tensor):
        return same(one.numpy(), other.numpy())
    if isinstance(one, Array):
        return same(one.numpy(), other.numpy())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict | ArrayRecord | MetricRecord | ConfigRecord):
        return list(one) == list(other) and all(same(value, other[key]) for key, value in one.items())
    return (
        math.isnan(other) if isinstance(one, float) and math.isnan(one) else one == other and repr(one) == repr(other)
    )


@pytest.mark.parametrize("name", [name for name in CONCRETE if "Xgb" not in name])
def test_every_strategy_goes_on_as_if_nothing_had_been(
    name: str, scripted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gc.collect", lambda: 0)  # QFedAvg and Bulyan call it for each reply, at 0.15 s
    draw = np.random.default_rng(0)
    arrays = ArrayRecord({key: Array(np.asarray(draw.normal(size=s), np.float32)) for key, s in SHAPES.items()})
    strategy, grid = build(name), scripted(NODES, train)
    for n in (1, 2):
        arrays = play(strategy, grid, n, arrays)
    resumed = build(name)
    restore(resumed, through_json(strategy))
    results = []
    for each in (strategy, resumed):
        latest = arrays
        for n in (3, 4):
            latest = play(each, grid, n, latest)
        results.append(latest)
    assert not same(results[0], arrays), "the rounds changed nothing"
    assert same(results[0], results[1])


@pytest.mark.parametrize(
    "name", ["FedAvgM", "FedAdam", "FedYogi", "FedAdagrad", *(n for n in WRAPPERS if "Adaptive" in n)]
)
def test_without_its_state_a_strategy_goes_another_way(name: str, scripted: Callable[..., Any]) -> None:
    """So that the test above cannot pass for strategies that have nothing to lose."""
    arrays = ArrayRecord({key: Array(np.ones(s, np.float32)) for key, s in SHAPES.items()})
    strategy, grid = build(name), scripted(NODES, train)
    for n in (1, 2):
        arrays = play(strategy, grid, n, arrays)
    results = [play(each, grid, 3, arrays) for each in (strategy, build(name))]
    assert not same(results[0], results[1])


@pytest.mark.parametrize("name", CONCRETE)
def test_a_fresh_strategy_is_equal_to_itself(name: str) -> None:
    strategy, other = build(name), build(name)
    restore(other, through_json(strategy))
    for key, value in vars(strategy).items():
        assert isinstance(value, Strategy) or same(value, vars(other)[key]) or callable(value), key


def test_trees_and_turns_of_the_boosting_strategies_are_kept() -> None:
    bagging, cyclic = build("FedXgbBagging"), build("FedXgbCyclic")
    bagging.current_bst, cyclic.registered_nodes = b"\x00{}\xff", {2**60: 1, 7: 2}
    for strategy in (bagging, cyclic):
        resumed = build(type(strategy).__name__)
        restore(resumed, through_json(strategy))
        assert vars(resumed) == vars(strategy)


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(max_size=8),
    hnp.arrays(st.sampled_from([np.float64, np.float32, np.int64, np.bool_, np.uint8]), hnp.array_shapes(min_dims=0)),
    st.floats(width=32).map(np.float32),
    st.floats().map(np.float64),
    st.lists(st.floats(width=32), max_size=3).map(torch.tensor),
    hnp.arrays(np.float32, hnp.array_shapes()).map(Array),
    st.dictionaries(st.text(max_size=3), hnp.arrays(np.float32, 2).map(Array), max_size=3).map(ArrayRecord),
    st.dictionaries(st.text(max_size=3), st.floats() | st.integers(), max_size=3).map(MetricRecord),
    st.dictionaries(st.text(max_size=3), st.text() | st.binary(), max_size=3).map(ConfigRecord),
)
keys = st.text(max_size=3) | st.integers() | st.tuples(st.integers(), st.booleans())
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=8,
)


@given(values)
def test_whatever_a_strategy_may_hold_comes_back(value: Any) -> None:
    before = copy.deepcopy(value)
    assert same(through_json(value), value)
    assert same(value, before), "packing changed the value"


def test_names_that_meet_are_told_apart() -> None:
    value = {"a": {"b": np.zeros(1)}, "a.b": np.ones(1)}
    assert same(through_json(value), value)


class Unknown:
    """Holds who knows what."""


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Unknown(), "value is a Unknown"),
        ({"x": [1, {2}]}, r"value\.x\.1 is a set"),
        (functools.partial(print), "is a partial"),
        (np.array(["text"]), "ndarray of <U4"),
        (np.zeros(1, ">f4"), "ndarray of >f4"),
        (np.array([Unknown()]), "ndarray of object"),
        (np.random.default_rng(0), "is a Generator"),
        (torch.zeros(1, requires_grad=True), "is a Tensor"),
        (torch.zeros(1, device="meta"), "is a Tensor"),
        (torch.nn.Parameter(torch.zeros(1)), "is a Parameter"),
    ],
)
def test_an_unknown_type_is_an_error_that_says_where_it_stands(value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=f"{words}.*run.keep_checkpoints=0"):
        pack(value, "value", {})


def test_an_attribute_deep_in_a_wrapper_is_named() -> None:
    strategy = build("DifferentialPrivacyServerSideFixedClipping")
    strategy.strategy.extra = Unknown()
    with pytest.raises(ConfigError, match=r"strategy\.strategy\.extra is a Unknown"):
        pack(strategy, "strategy", {})


def test_the_state_of_another_strategy_is_refused() -> None:
    with pytest.raises(ConfigError, match="holds the state of FedAvgM, the run builds FedAvg"):
        restore(FedAvg(), through_json(FedAvgM()))


def test_a_replys_array_that_a_strategy_keeps_is_packed_as_what_it_is() -> None:
    kept = through_json({"previous": ArrayRecord({"w": known(torch.tensor([[1.0, -2.0]]))})})["previous"]["w"]
    assert type(kept) is Array
    assert kept.numpy().tolist() == [[1.0, -2.0]]
