"""Spiking around Flower's FedAvg: the averaged spiking network and the recovered ANN."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.serverapp.strategy import FedAvg
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from snnfl.config import ConversionConfig
from snnfl.updates import Converted
from strategies.population import Population
from strategies.recorder import client_columns
from strategies.spiking import Spiking

METRICS = frozenset({"num-examples", "loss", "accuracy", "seconds-train"})
EXAMPLES = [10, 30, 25]

UpdateReply = Callable[..., Message]


@pytest.fixture
def build(federation: Any, scripted: Callable[..., Population]) -> Callable[..., Spiking]:
    """Make a strategy that has sent the federation's state in round 1."""

    def make(*, bias_back: bool = False, minimum_replies: int = 1, **conversion: Any) -> Spiking:
        base = FedAvg(min_train_nodes=1, min_available_nodes=1)
        strategy = Spiking(
            base,
            Converted(federation.graph, federation.state, ConversionConfig(**conversion), bias_back=bias_back),
            metrics=METRICS,
            minimum_replies=minimum_replies,
        )
        sent = ArrayRecord(dict(federation.state)) if bias_back else federation.without_biases()
        grid = Population(scripted([7], lambda message: message), partitions={7: 0})
        strategy.configure_train(1, sent, ConfigRecord(), grid)
        return strategy

    return make


def tensors(record: ArrayRecord) -> dict[str, Tensor]:
    return dict(record.to_torch_state_dict())


def failed(node: int) -> Message:
    return Message(Error(0, "no luck"), reply_to=Message(RecordDict(), node, "train"))


def replies_of(federation: Any, update_reply: UpdateReply, **options: Any) -> list[Message]:
    updates = [federation.trained(seed, **options)[1] for seed in range(len(EXAMPLES))]
    return [update_reply(update, node, num_examples=EXAMPLES[node]) for node, update in enumerate(updates)]


def test_the_server_network_is_the_mean_weighted_by_examples(
    federation: Any, update_reply: UpdateReply, build: Callable[..., Spiking]
) -> None:
    strategy = build(initial_potential="half")
    assert strategy.network is None
    strategy.aggregate_train(1, replies_of(federation, update_reply))
    layers = ["conv.weight", "conv.bias", "hidden.weight", "hidden.bias", "head.weight", "head.bias"]
    assert sorted(strategy.network.parameters) == sorted([*layers, "relu.threshold", "relu_hidden.threshold"])
    for name, found in strategy.network.parameters.items():
        expected = torch.zeros_like(found, dtype=torch.float64)
        for seed, examples in enumerate(EXAMPLES):
            expected += examples / 65 * federation.trained(seed)[1][name].double()
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
        assert found.dtype == torch.float32
    assert strategy.network.initial_potential == "half"
    assert strategy.network.graph is federation.graph


@pytest.mark.parametrize("bias_back", [True, False])
def test_the_ann_is_what_fedavg_makes_of_the_clients_anns(
    federation: Any, update_reply: UpdateReply, build: Callable[..., Spiking], bias_back: bool
) -> None:
    result, metrics = build(bias_back=bias_back).aggregate_train(1, replies_of(federation, update_reply))
    names = federation.state.keys() if bias_back else federation.public()
    assert result.keys() == names
    anns = [federation.trained(seed)[0] for seed in range(len(EXAMPLES))]
    plain = [update_reply(ann, node, num_examples=EXAMPLES[node]) for node, ann in enumerate(anns)]
    expected, expected_metrics = FedAvg().aggregate_train(1, plain)
    for name in names:
        np.testing.assert_allclose(result[name].numpy(), expected[name].numpy(), rtol=1e-4, atol=1e-5)
    assert metrics == expected_metrics


def test_the_received_messages_are_not_altered(
    federation: Any, update_reply: UpdateReply, build: Callable[..., Spiking]
) -> None:
    replies = replies_of(federation, update_reply)
    before = [({n: a.data for n, a in r.content["arrays"].items()}, dict(r.content["metrics"])) for r in replies]
    contents = [id(reply.content) for reply in replies]
    strategy = build()
    strategy.aggregate_train(1, replies)
    after = [({n: a.data for n, a in r.content["arrays"].items()}, dict(r.content["metrics"])) for r in replies]
    assert after == before
    assert [id(reply.content) for reply in replies] == contents
    for update, reply in zip(strategy.report.updates, replies, strict=True):
        received = tensors(reply.content["arrays"])
        assert all(torch.equal(update.arrays[name], received[name]) for name in received)


@pytest.mark.parametrize("gamma", [0.0, 1e-9, -1e-9])
def test_dead_channels_fall_back_to_what_was_sent(
    federation: Any, update_reply: UpdateReply, build: Callable[..., Spiking], gamma: float
) -> None:
    # One client's channel 1 is dead: its share of the average is the server's own weight. The other's is alive.
    (alive, update), (_, dying) = federation.trained(0), federation.trained(1)
    scale = gamma / torch.sqrt(dying["norm.var"][1] + 1e-5)
    dying["norm.gamma"][1] = gamma
    dying["conv.weight"][1] = scale * 3.0
    strategy = build()
    result, _ = strategy.aggregate_train(
        1, [update_reply(update, 1, num_examples=10), update_reply(dying, 2, num_examples=30)]
    )
    expected = (10 * alive["conv.weight"][1] + 30 * federation.state["conv.weight"][1]) / 40
    torch.testing.assert_close(tensors(result)["conv.weight"][1], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(strategy._sent["conv.weight"], federation.state["conv.weight"])


def test_thresholds_per_channel(federation: Any, update_reply: UpdateReply, build: Callable[..., Spiking]) -> None:
    strategy = build(thresholds="channel_mmse")
    assert strategy.spec.arrays["relu.threshold"].shape == (2,)
    assert strategy.spec.arrays["relu_hidden.threshold"].shape == (4,)
    strategy.aggregate_train(1, replies_of(federation, update_reply, per_channel=True))
    assert {name: tuple(t.shape) for name, t in strategy.network.thresholds.items()} == {
        "relu": (2,),
        "relu_hidden": (4,),
    }
    one_per_layer = replies_of(federation, update_reply)
    assert strategy.aggregate_train(2, one_per_layer) == (None, None)
    assert strategy.report.refused == 3


def test_a_round_without_valid_replies_leaves_everything_as_it_was(
    federation: Any, update_reply: UpdateReply, build: Callable[..., Spiking]
) -> None:
    strategy = build(minimum_replies=2)
    bad = federation.trained(0)[1] | {"relu.threshold": torch.zeros(1)}
    assert strategy.aggregate_train(1, [update_reply(bad, 1), failed(2)]) == (None, None)
    assert strategy.network is None
    assert (strategy.report.refused, strategy.report.failed) == (1, 1)
    columns = client_columns(strategy)
    assert [columns[key] for key in ("client_ann_accuracy_mean", "client_ann_accuracy_std", "train_loss")] == [None] * 3
    assert columns["replies"] == 0

    strategy.aggregate_train(2, replies_of(federation, update_reply))
    network = strategy.network
    assert strategy.aggregate_train(3, replies_of(federation, update_reply)[:1]) == (None, None)
    assert strategy.network is network


def test_an_ann_update_is_refused(federation: Any, update_reply: UpdateReply, build: Callable[..., Spiking]) -> None:
    # A client that forgets to convert would publish its biases; its update enters nothing.
    strategy = build()
    strategy.aggregate_train(1, [update_reply(federation.trained(0)[0], 1)])
    assert (strategy.network, strategy.report.refused) == (None, 1)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_accepted_leaves_finite_weights(
    federation: Any, update_reply: UpdateReply, build: Callable[..., Spiking], data: st.DataObject
) -> None:
    extreme = st.sampled_from([0.0, 1.0, -1.0, 1e-45, 1e-30, 2e-6, -2e-6, 1e12, -1e12, 1e11, 3e38])
    replies = []
    for node in range(data.draw(st.integers(1, 3))):
        update = federation.trained(node)[1]
        for name in data.draw(st.lists(st.sampled_from(sorted(update)), max_size=5)):
            update[name] = torch.full_like(update[name], data.draw(extreme))
        replies.append(update_reply(update, node, num_examples=data.draw(st.sampled_from([1, 10**9]))))
    for bias_back in (True, False):
        strategy = build(bias_back=bias_back)
        result, _ = strategy.aggregate_train(1, replies)
        assert strategy.report.refused + len(strategy.report.updates) == len(replies)
        if result is not None:
            assert all(np.isfinite(array.numpy()).all() for array in result.values())
            assert all(bool(torch.isfinite(array).all()) for array in strategy.network.parameters.values())
        json.dumps(client_columns(strategy), allow_nan=False)


def test_hostile_replies_beside_valid_ones_change_nothing(
    federation: Any, update_reply: UpdateReply, reply: Callable[..., Message], build: Callable[..., Spiking]
) -> None:
    valid = replies_of(federation, update_reply)
    alone = build()
    expected, _ = alone.aggregate_train(1, valid)
    hostile = [failed(8), reply(None, 9), reply(RecordDict(), 10)]
    for name, array in federation.trained(4)[1].items():
        wrong = update_reply(federation.trained(4)[1], 20)
        wrong.content["arrays"][name] = Array(array.double().numpy())
        hostile.append(wrong)
    beside = build()
    result, _ = beside.aggregate_train(1, [*hostile, *valid])
    assert all(torch.equal(tensors(result)[name], tensors(expected)[name]) for name in expected)
    for name, array in alone.network.parameters.items():
        assert torch.equal(beside.network.parameters[name], array)
    assert (beside.report.refused, beside.report.failed) == (len(hostile) - 1, 1)
