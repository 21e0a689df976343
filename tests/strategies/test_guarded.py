"""Guarded around Flower's FedAvg: what is refused, what is counted, what is aggregated."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedMedian, Strategy
from hypothesis import HealthCheck, given, settings

from snnfl.updates import ArraySpec
from strategies.guarded import Guarded
from strategies.population import Population
from strategies.recorder import client_columns
from strategies.update import UpdateSpec

METRICS = frozenset({"num-examples", "loss", "accuracy", "seconds-train"})
SPEC = UpdateSpec(arrays={"w": ArraySpec(shape=(2, 3)), "b": ArraySpec(shape=(2,))}, metrics=METRICS)
NODES = {901: 2, 17: 0, 404: 1, 3: 3}  # node: partition


def averaging() -> FedAvg:
    return FedAvg(fraction_evaluate=0.5, min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)


def guarded(minimum: int = 1, seed: int = 0, base: Strategy | None = None, participation: float = 1.0) -> Guarded:
    return Guarded(base or averaging(), SPEC, seed=seed, minimum_replies=minimum, participation=participation)


def arrays(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.arange(6.0).view(2, 3) * value, "b": torch.tensor([value, -value])}


def failed(node: int, reason: str | None = "no luck") -> Message:
    return Message(Error(0, reason), reply_to=Message(RecordDict(), node, "train"))


@pytest.fixture
def population(scripted: Callable[..., Population]) -> Population:
    return Population(scripted(list(NODES), lambda message: message), partitions=dict(NODES))


def test_the_average_weighs_by_examples(update_reply: Callable[..., Message]) -> None:
    replies = [update_reply(arrays(1.0), 1, num_examples=10), update_reply(arrays(4.0), 2, num_examples=30)]
    strategy = guarded()
    result, metrics = strategy.aggregate_train(1, replies)
    for name, array in arrays(1.0).items():
        expected = (10 * array + 30 * 4 * array) / 40
        np.testing.assert_allclose(result[name].numpy(), expected, rtol=1e-6)
    assert metrics["loss"] == 0.5
    assert (strategy.report.refused, strategy.report.failed) == (0, 0)
    assert [update.examples for update in strategy.report.updates] == [10, 30]
    assert strategy.report.seconds > 0


def test_the_base_strategy_gets_the_arrays_in_one_order_and_the_received_messages_stay(
    update_reply: Callable[..., Message],
) -> None:
    class Base(FedAvg):
        def aggregate_train(self, server_round: int, replies: list[Message]) -> tuple[None, None]:
            self.got = [(reply.metadata, dict(reply.content)) for reply in replies]
            self.arrays = [{name: array.data for name, array in reply.content["arrays"].items()} for reply in replies]
            for reply in replies:
                reply.content["arrays"].clear()  # as FedMedian does, array by array
            return None, None

    swapped = dict(reversed(arrays(2.0).items()))
    replies = [update_reply(arrays(1.0), 1), failed(2), update_reply(swapped, 3)]
    before = [dict(reply.content["arrays"]) for reply in (replies[0], replies[2])]
    base = Base()
    Guarded(base, SPEC, seed=0).aggregate_train(1, replies)
    assert [metadata for metadata, _ in base.got] == [replies[0].metadata, replies[2].metadata]
    assert [content["metrics"] for _, content in base.got] == [r.content["metrics"] for r in (replies[0], replies[2])]
    assert base.arrays == [{name: array.data for name, array in arrays.items()} for arrays in before]
    assert [list(found) for found in base.arrays] == [["w", "b"], ["w", "b"]]
    assert [dict(reply.content["arrays"]) for reply in (replies[0], replies[2])] == before


def test_an_order_of_arrays_that_a_client_makes_up_changes_nothing(update_reply: Callable[..., Message]) -> None:
    for order in (1, -1):
        replies = [update_reply(dict(list(arrays(v).items())[::order]), n) for n, v in enumerate((1.0, 2.0, 9.0))]
        result, _ = guarded(base=FedMedian()).aggregate_train(1, replies)
        assert list(result) == ["w", "b"]
        np.testing.assert_array_equal(result["w"].numpy(), arrays(2.0)["w"])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_an_aggregate_that_is_no_number_is_not_sent(
    update_reply: Callable[..., Message], caplog: pytest.LogCaptureFixture, value: float
) -> None:
    class Broken(FedAvg):
        def aggregate_train(self, server_round: int, replies: list[Message]) -> tuple[ArrayRecord, None]:
            return ArrayRecord({"w": Array(np.full((2, 3), value)), "b": Array(np.zeros(2))}), None

    with caplog.at_level(logging.WARNING, logger="strategies"):
        result, _ = guarded(base=Broken()).aggregate_train(3, [update_reply(arrays(1.0), 1)])
    assert result is None
    assert caplog.messages[-1] == "round 3: the aggregate of w isn't finite; the old weights are kept"


def test_an_aggregate_is_sent_as_float32_and_without_negative_variances_which_is_said(
    update_reply: Callable[..., Message], caplog: pytest.LogCaptureFixture
) -> None:
    variances = {"n.running_var": [-0.5, 0.25], "m.running_var": [0.0, 1.0], "o.running_var": [-1.0, -1e-9]}
    shapes = dict.fromkeys([*variances, "w"], ArraySpec(shape=(2,)))

    class Double(FedAvg):
        def aggregate_train(self, server_round: int, replies: list[Message]) -> tuple[ArrayRecord, None]:
            values = {**variances, "w": [-0.5, 0.25]}
            return ArrayRecord({name: Array(np.array(value)) for name, value in values.items()}), None

    reply = update_reply({name: torch.ones(2) for name in shapes}, 1)
    with caplog.at_level(logging.WARNING, logger="strategies"):
        result, _ = Guarded(Double(), UpdateSpec(arrays=shapes, metrics=METRICS), seed=0).aggregate_train(4, [reply])
    assert {array.dtype for array in result.values()} == {"float32"}
    assert result["n.running_var"].numpy().tolist() == [0, 0.25]
    assert result["o.running_var"].numpy().tolist() == [0, 0]
    assert result["w"].numpy().tolist() == [-0.5, 0.25]
    assert caplog.messages == [
        "round 4: negative variances of the aggregate were set to 0: 1 of n.running_var, 2 of o.running_var"
    ]


def test_a_round_in_which_the_strategy_gives_up_says_so(
    update_reply: Callable[..., Message], caplog: pytest.LogCaptureFixture
) -> None:
    class GivesUp(FedAvg):
        def aggregate_train(self, server_round: int, replies: list[Message]) -> tuple[None, None]:
            return None, None

    with caplog.at_level(logging.WARNING, logger="strategies"):
        assert guarded(base=GivesUp()).aggregate_train(2, [update_reply(arrays(1.0), 1)]) == (None, None)
    assert caplog.messages[-1:] == ["round 2: the strategy aggregated nothing; the old weights are kept"]


def test_participation_is_a_function_of_seed_round_and_partition(scripted: Callable[..., Population]) -> None:
    def taking_part(seed: int, probability: float, nodes: dict[int, int], rounds: int = 200) -> list[set[int]]:
        grid = Population(scripted(list(nodes), lambda message: message), partitions=nodes)
        strategy = guarded(seed=seed, participation=probability)
        asked = [strategy.configure_train(n, ArrayRecord(), ConfigRecord(), grid) for n in range(1, rounds + 1)]
        return [{nodes[message.metadata.dst_node_id] for message in messages} for messages in asked]

    elsewhere = {node + 7: partition for node, partition in NODES.items()}
    drawn = taking_part(0, 0.3, NODES)
    assert drawn == taking_part(0, 0.3, elsewhere)
    assert drawn != taking_part(1, 0.3, NODES)
    for partition in NODES.values():
        assert 0.2 < sum(partition in chosen for chosen in drawn) / 200 < 0.4  # 0.3 ± 3 standard deviations
    assert set() in drawn
    assert all(few <= more for few, more in zip(drawn, taking_part(0, 0.6, NODES), strict=True))
    assert taking_part(0, 1.0, NODES, rounds=5) == [set(NODES.values())] * 5


def test_a_round_that_nobody_takes_part_in_keeps_the_old_weights(
    population: Population, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = guarded(participation=1e-9)
    messages = strategy.configure_train(1, ArrayRecord(arrays(0.0)), ConfigRecord(), population)
    with caplog.at_level(logging.WARNING, logger="strategies"):
        assert strategy.aggregate_train(1, population.send_and_receive(messages)) == (None, None)
    assert caplog.messages[-1] == "round 1: 0 valid replies, 1 are needed; the old weights are kept"


def test_refused_and_failed_replies_are_counted_and_logged(
    update_reply: Callable[..., Message],
    reply: Callable[..., Message],
    population: Population,
    caplog: pytest.LogCaptureFixture,
) -> None:
    strategy = guarded()
    strategy.configure_train(5, ArrayRecord(arrays(0.0)), ConfigRecord(), population)
    bad = update_reply({**arrays(1.0), "b": torch.tensor([1.0, float("nan")])}, 404)
    replies = [failed(901), update_reply(arrays(1.0), 17), bad, reply(None, 3), failed(55, None)]
    with caplog.at_level(logging.WARNING, logger="strategies"):
        result, _ = strategy.aggregate_train(5, replies)
    np.testing.assert_array_equal(result["w"].numpy(), arrays(1.0)["w"])  # the one valid reply
    assert (strategy.report.refused, strategy.report.failed, len(strategy.report.updates)) == (2, 2, 1)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("strategies")] == [
        "round 5: reply of partition 2 (node 901) failed: no luck",
        "round 5: reply of partition 1 (node 404) refused: b: holds NaN, infinity or a value beyond 1e+12",
        "round 5: reply of partition 3 (node 3) refused: expected content, found none",
        "round 5: reply of partition 4 (node 55) failed: no reason given",
    ]


def test_a_client_cannot_forge_the_log(
    update_reply: Callable[..., Message], population: Population, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = guarded()
    strategy.configure_train(1, ArrayRecord(arrays(0.0)), ConfigRecord(), population)
    attack = "x\nround 1: all is well\r\x1b[2J\x1b]0;title\x07\u202e" + "y" * 10**7
    named = update_reply({**arrays(1.0), attack: torch.ones(1)}, 17)
    shaped = update_reply(arrays(1.0), 404)
    shaped.content["arrays"]["w"] = Array(np.zeros((2, 3), [("\x1b[2J\n", "f4")]))
    recorded = update_reply(arrays(1.0), 901)
    recorded.content[attack] = ConfigRecord()
    with caplog.at_level(logging.WARNING, logger="strategies"):
        assert strategy.aggregate_train(1, [failed(3, attack), named, shaped, recorded]) == (None, None)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("strategies")]
    assert len(lines) == 5  # one per reply, one for the round
    assert all(line.isprintable() and len(line) < 400 for line in lines)


def test_without_a_cohort_the_node_is_named(
    update_reply: Callable[..., Message], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="strategies"):
        guarded().aggregate_train(1, [failed(9)])
    assert caplog.messages[0] == "round 1: reply of partition unknown (node 9) failed: no luck"


@pytest.mark.parametrize(("valid", "aggregated"), [(0, False), (1, False), (2, True)])
def test_with_too_few_replies_the_old_weights_stay(
    update_reply: Callable[..., Message], caplog: pytest.LogCaptureFixture, valid: int, aggregated: bool
) -> None:
    strategy = guarded(minimum=2)
    replies = [failed(node) for node in range(3 - valid)] + [update_reply(arrays(2.0), 50 + n) for n in range(valid)]
    with caplog.at_level(logging.WARNING, logger="strategies"):
        result, metrics = strategy.aggregate_train(7, replies)
    assert (result is not None) == (metrics is not None) == aggregated
    line = f"round 7: {valid} valid replies, 2 are needed; the old weights are kept"
    assert (line in caplog.messages) != aggregated
    assert len(strategy.report.updates) == (valid if aggregated else 0)
    assert strategy.report.failed == 3 - valid


def test_each_round_has_a_report_of_its_own(update_reply: Callable[..., Message], population: Population) -> None:
    strategy = guarded()
    for n in (1, 2):
        strategy.configure_train(n, ArrayRecord(arrays(0.0)), ConfigRecord(), population)
        strategy.aggregate_train(n, [failed(17), update_reply(arrays(1.0), 3)])
        assert (strategy.report.refused, strategy.report.failed, len(strategy.report.updates)) == (0, 1, 1)


def test_evaluation_replies_are_checked_too(reply: Callable[..., Message]) -> None:
    strategy = guarded()
    metrics = {"num-examples": 10, "accuracy": 0.5, "loss": 1.0}
    good = reply(RecordDict({"metrics": MetricRecord({**metrics})}), 1)
    better = reply(RecordDict({"metrics": MetricRecord({**metrics, "num-examples": 30, "accuracy": 0.9})}), 2)
    hostile = [
        reply(RecordDict({"metrics": MetricRecord({**metrics, "accuracy": float("nan")})}), 3),
        reply(RecordDict({"metrics": MetricRecord({**metrics, "accuracy": [0.5]})}), 4),
        reply(RecordDict({"metrics": MetricRecord({**metrics}), "arrays": ArrayRecord(arrays(1.0))}), 5),
        reply(None, 6),
    ]
    result = strategy.aggregate_evaluate(1, [good, *hostile, failed(7), better])
    assert result["accuracy"] == pytest.approx((10 * 0.5 + 30 * 0.9) / 40)
    assert (strategy.report.refused, strategy.report.failed) == (4, 1)
    assert [evaluation["accuracy"] for evaluation in strategy.report.evaluations] == [0.5, 0.9]
    assert guarded().aggregate_evaluate(1, [failed(7)]) is None
    assert guarded().aggregate_evaluate(1, []) is None


@pytest.mark.parametrize("says", ["system", "query", "evaluate"])
def test_a_fault_is_noted_under_what_was_asked_whatever_the_reply_says(
    update_reply: Callable[..., Message], population: Population, says: str
) -> None:
    """Flower's own replies for lost messages are of type ``system``, and a liar's of any."""
    strategy = guarded()
    strategy.configure_train(1, ArrayRecord(arrays(0.0)), ConfigRecord(), population)
    lost, lying = failed(901), update_reply({"w": torch.ones(1)}, 404)
    for reply in (lost, lying):
        reply.metadata.__dict__["_message_type"] = says
    strategy.aggregate_train(1, [lost, lying, update_reply(arrays(1.0), 17)])
    assert [(fault.message, fault.verdict) for fault in strategy.report.faults] == [
        ("train", "failed"),
        ("train", "refused"),
    ]
    strategy.aggregate_evaluate(1, [lost])
    assert strategy.report.faults[-1].message == "evaluate"


def test_selection_depends_on_seed_and_round_alone(population: Population) -> None:
    base = FedAvg(fraction_train=0.5, fraction_evaluate=0.5, min_available_nodes=1)

    def selected(seed: int, server_round: int, kind: str = "train") -> list[int]:
        random.random()
        strategy = Guarded(base, SPEC, seed=seed)
        configure = strategy.configure_train if kind == "train" else strategy.configure_evaluate
        before = random.getstate()
        messages = list(configure(server_round, ArrayRecord(arrays(0.0)), ConfigRecord(), population))
        assert random.getstate() == before
        assert len(messages) == 2
        return [message.metadata.dst_node_id for message in messages]

    assert selected(0, 1) == selected(0, 1)
    many = range(1, 9)
    assert len({tuple(selected(0, n)) for n in many}) > 1
    assert [selected(0, n) for n in many] != [selected(1, n) for n in many]
    assert [selected(0, n) for n in many] != [selected(0, n, "evaluate") for n in many]


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_accepted_can_be_aggregated_and_recorded(
    update_reply: Callable[..., Message], data: st.DataObject
) -> None:
    extreme = st.sampled_from([0.0, 1.0, -1.0, 1e-45, 1e12, -1e12, 1e11, 3e38])
    number = st.sampled_from([0.0, 0.5, 1.0, -1.0, 1e12, -1e12, 1e300, 1e-300])
    replies = []
    for node in range(data.draw(st.integers(1, 4))):
        values = {name: torch.full(spec.shape, data.draw(extreme)) for name, spec in SPEC.arrays.items()}
        examples = data.draw(st.sampled_from([1, 1000, 10**9, 10**10]))
        loss, accuracy, seconds = (data.draw(number) for _ in range(3))
        metrics = {"num_examples": examples, "loss": loss, "accuracy": accuracy, "seconds_train": seconds}
        replies.append(update_reply(values, node, **metrics))
    strategy = guarded()
    result, _ = strategy.aggregate_train(1, replies)
    assert strategy.report.refused + len(strategy.report.updates) == len(replies)
    if result is not None:
        assert all(np.isfinite(array.numpy()).all() for array in result.values())
    json.dumps(client_columns(strategy), allow_nan=False)


def test_the_base_strategys_summary_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    class Base(FedAvg):
        shown = 0

        def summary(self) -> None:
            self.shown += 1

    base = Base()
    Guarded(base, SPEC, seed=0).summary()
    assert base.shown == 1


def test_what_a_fault_answers_is_what_was_asked_whatever_the_reply_calls_itself(population: Population) -> None:
    """A SuperLink's own error is a system message, and so is ours in the place of what doesn't inflate."""
    strategy = guarded()
    strategy.configure_train(1, ArrayRecord(arrays(1.0)), ConfigRecord(), population)
    for ask, kind in ((strategy.aggregate_train, "train"), (strategy.aggregate_evaluate, "evaluate")):
        reply = Message(Error(0, "cannot be read"), reply_to=Message(RecordDict(), 17, "system"))
        ask(1, [reply])
        assert strategy.report.faults[-1].message == kind
