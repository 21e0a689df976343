"""The population: one order of clients everywhere, whatever the engine does."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import strategy_utils
from flwr.serverapp.strategy.strategy_utils import sample_nodes
from flwr.superlink.grid import InMemoryGrid

import strategies.population as population_module
from clients.node_policy import NodePolicyError
from strategies.population import Population, PopulationError, Traffic, seeded_draws
from strategies.update import array_bytes

NODES = {901: 2, 17: 0, 2**63 - 1: 1, 3: 3}  # node: partition

Scripted = Callable[..., Any]


def holding(partitions: dict[int, object]) -> Callable[[Message], Message]:
    """Answer a query with the partition of the node."""

    def answer(message: Message) -> Message:
        content = RecordDict({"metrics": MetricRecord({"partition-id": partitions[message.metadata.dst_node_id]})})
        return Message(content, reply_to=message)

    return answer


def echo(message: Message) -> Message:
    return Message(message.content, reply_to=message)


def assembled(scripted: Scripted, answer: Callable[[Message], Message] = echo) -> Population:
    population = Population(scripted(list(NODES), holding(NODES)))
    population.assemble(4, timeout=9.0)
    population.grid.answer = answer
    return population


def messages(population: Population, content: RecordDict | None = None) -> list[Message]:
    return [Message(content or RecordDict(), node, "train") for node in sorted(NODES)]


def test_nodes_are_shown_in_the_order_of_their_partitions(scripted: Scripted) -> None:
    population = assembled(scripted)
    assert population.partitions == NODES
    assert list(population.get_node_ids()) == [17, 2**63 - 1, 901, 3]
    assert {message.metadata.message_type for message in population.grid.asked} == {"query"}
    assert population.grid.timeouts == [9.0]
    assert population.traffic == Traffic()  # a query carries no arrays, and its seconds aren't a round's


def test_nodes_that_come_and_go(scripted: Scripted) -> None:
    population = assembled(scripted)
    population.grid.nodes = [3, 55, 17]  # 55 is new, two are gone
    assert list(population.get_node_ids()) == [17, 3]


def test_messages_go_and_replies_come_in_the_order_of_partitions(scripted: Scripted) -> None:
    population = assembled(scripted)
    population.grid.asked.clear()
    replies = population.send_and_receive(messages(population), timeout=4.0)  # the grid answers in reverse
    assert [message.metadata.dst_node_id for message in population.grid.asked] == [17, 2**63 - 1, 901, 3]
    assert [reply.metadata.src_node_id for reply in replies] == [17, 2**63 - 1, 901, 3]
    assert [population.partition_of(reply) for reply in replies] == [0, 1, 2, 3]
    assert population.grid.timeouts[-1] == 4.0

    names = population.push_messages(messages(population))
    assert [reply.metadata.src_node_id for reply in population.pull_messages(names)] == [17, 2**63 - 1, 901, 3]


def test_the_superlinks_answer_for_a_dead_node_belongs_to_that_node(scripted: Scripted) -> None:
    # Flower answers under the SuperLink's own id, 1 (flwr/server/superlink/linkstate/utils.py).
    def answer(message: Message) -> Message:
        if message.metadata.dst_node_id != 901:
            return echo(message)
        reply = Message(Error(5, "Node Unavailable"), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = 1
        return reply

    population = assembled(scripted, answer)
    replies = list(population.send_and_receive(messages(population)))
    assert [(population.partition_of(reply), population.node_of(reply)) for reply in replies] == [
        (0, 17),
        (1, 2**63 - 1),
        (2, 901),
        (3, 3),
    ]
    assert replies[2].has_error()


def forged(message: Message, sender: int, *, error: bool = False) -> Message:
    reply = Message(Error(0, "mine") if error else RecordDict({"a": MetricRecord({"b": sender})}), reply_to=message)
    reply.metadata.__dict__["_src_node_id"] = sender
    return reply


@pytest.mark.parametrize("sender", [3, 1, 5])
@pytest.mark.parametrize("first", [True, False])
def test_a_forged_reply_is_ignored_and_the_true_one_counts(
    scripted: Scripted, caplog: pytest.LogCaptureFixture, sender: int, first: bool
) -> None:
    """Node 3, the SuperLink's own number and a stranger answer what node 901 was asked."""
    population = assembled(scripted)
    answer = population.grid.send_and_receive

    def also_forged(sent: list[Message], *, timeout: float | None = None) -> list[Message]:
        (asked,) = [message for message in sent if message.metadata.dst_node_id == 901]
        true = answer(sent, timeout=timeout)
        false = [forged(asked, sender)]
        return [*false, *true] if first else [*true, *false]

    population.grid.send_and_receive = also_forged
    with caplog.at_level(logging.WARNING, logger="strategies"):
        replies = population.send_and_receive(messages(population))
    assert [reply.metadata.src_node_id for reply in replies] == [17, 2**63 - 1, 901, 3]
    assert all(reply.content == RecordDict() for reply in replies)
    assert caplog.messages == [f"a forged reply of node {sender} is ignored: in the name of node 901"]


@pytest.mark.parametrize(("sender", "error"), [(3, True), (3, False), (1, False)])
def test_a_forged_reply_alone_is_no_reply(scripted: Scripted, sender: int, error: bool) -> None:
    def answer(message: Message) -> Message:
        return forged(message, sender, error=error) if message.metadata.dst_node_id == 901 else echo(message)

    replies = assembled(scripted, answer).send_and_receive(messages(assembled(scripted)), timeout=2.0)
    assert [reply.has_error() for reply in replies] == [False, False, True, False]
    assert replies[2].error.reason == "no reply within 2 s"


def test_nobody_answers_the_opening_question_for_another(scripted: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    honest = holding({5: 0, 6: 1, 7: 2})

    class Forging(type(scripted([], echo))):
        def send_and_receive(self, sent: list[Message], *, timeout: float | None = None) -> list[Message]:
            true = super().send_and_receive(sent, timeout=timeout)
            theirs = honest(sent[0])  # node 5's answer says, in node 7's name, that it holds partition 2
            theirs.content["metrics"]["partition-id"] = 2
            theirs.metadata.__dict__["_src_node_id"] = 7
            return [theirs, *true]

    population = Population(Forging([5, 6, 7], honest))
    with caplog.at_level(logging.WARNING, logger="strategies"):
        population.assemble(3, timeout=1.0)
    assert population.partitions == {5: 0, 6: 1, 7: 2}
    assert caplog.messages == ["a forged reply of node 7 is ignored: in the name of node 5"]


def test_a_reply_that_answers_nothing_comes_last(scripted: Scripted) -> None:
    population = assembled(scripted)
    stranger = Message(RecordDict(), reply_to=Message(RecordDict(), 12345, "train"))
    assert (population.partition_of(stranger), population.node_of(stranger)) == (4, 12345)


@pytest.mark.parametrize(
    ("partitions", "left", "complaints"),
    [
        (
            {5: 0, 6: 0, 7: 1},
            {7: 1},
            [(5, "2 nodes say that they hold partition 0"), (6, "2 nodes say .* partition 0")],
        ),
        ({5: 0, 6: 3, 7: 1}, {5: 0, 7: 1}, [(6, r"it named no partition from 0 to 2 \(data.clients=3\)")]),
        ({5: 0, 6: -1, 7: 1}, {5: 0, 7: 1}, [(6, "it named no partition from 0 to 2")]),
        ({5: 0, 6: 10**5000, 7: 1}, {5: 0, 7: 1}, [(6, "it named no partition from 0 to 2")]),
        ({5: 0, 6: 1, 7: 2, 8: 1}, {5: 0, 7: 2}, [(6, "2 nodes say"), (8, "2 nodes say")]),
    ],
)
def test_nobody_keeps_the_others_from_starting_by_naming_a_wrong_partition(
    scripted: Scripted,
    partitions: dict[int, int],
    left: dict[int, int],
    complaints: list[tuple[int, str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    population = Population(scripted(list(partitions), holding(partitions)))
    with caplog.at_level(logging.WARNING, logger="strategies"):
        population.assemble(3, timeout=1.0)
    assert population.partitions == left
    lines = sorted(caplog.messages)
    assert len(lines) == len(complaints)
    for line, (node, reason) in zip(lines, complaints, strict=True):
        assert re.match(f"node {node} cannot take part: {reason}", line), line


def test_when_all_nodes_name_one_partition_none_is_left(scripted: Scripted) -> None:
    population = Population(scripted([5, 6], holding({5: 0, 6: 0})))
    with pytest.raises(
        PopulationError, match=r"^0 of 2 nodes can take part, .*: 2 nodes say that they hold partition 0$"
    ):
        population.assemble(2, timeout=1.0)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"metrics": ConfigRecord({"partition-id": 0})}),
        RecordDict({"metrics": MetricRecord({"partition": 0})}),
        RecordDict({"other": MetricRecord({"partition-id": 0})}),
    ],
)
def test_an_answer_without_a_partition_is_no_part(scripted: Scripted, content: RecordDict) -> None:
    population = Population(scripted([5], lambda message: Message(content, reply_to=message)))
    with pytest.raises(
        PopulationError, match=r"^0 of 1 nodes can take part, .*node 5 .*: it named no partition from 0 to 0 "
    ):
        population.assemble(1, timeout=1.0)


def raising(message: Message) -> Message:
    return Message(Error(0, "ValueError: no data\nhere"), reply_to=message)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (raising, "ValueError: no data here"),
        (None, "no reply within 9 s"),
        (holding({5: 0.5}), "it named no partition from 0 to 2 (data.clients=3)"),
        (holding({5: [0]}), "it named no partition from 0 to 2 (data.clients=3)"),
    ],
)
def test_the_others_go_on_without_a_node_that_fails_or_is_silent(
    scripted: Scripted, bad: Callable[[Message], Message] | None, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Silent(type(scripted([], echo))):
        def send_and_receive(self, messages: list[Message], *, timeout: float | None = None) -> list[Message]:
            return [reply for reply in super().send_and_receive(messages, timeout=timeout) if reply is not None]

    good = holding({6: 1, 7: 2})

    def answer(message: Message) -> Message | None:
        if message.metadata.dst_node_id != 5:
            return good(message)
        return None if bad is None else bad(message)

    population = Population(Silent([5, 6, 7], answer))
    with caplog.at_level(logging.WARNING, logger="strategies"):
        population.assemble(3, timeout=9.0, minimum_replies=2)
    assert caplog.messages == [f"node 5 cannot take part: {reason}"]
    assert population.partitions == {6: 1, 7: 2}
    assert list(population.get_node_ids()) == [6, 7]
    with pytest.raises(
        PopulationError, match=rf"^2 of 3 nodes can take part, fewer than .*=3; node 5 .*: {re.escape(reason)}$"
    ):
        population.assemble(3, timeout=9.0, minimum_replies=3)


def test_a_grid_that_placed_the_partitions_is_not_asked(scripted: Scripted) -> None:
    class PlacedGrid(type(scripted([], echo))):
        def partition_by_node(self) -> dict[int, int]:
            return dict(NODES)

    population = Population(PlacedGrid(list(NODES), echo))
    population.assemble(4, timeout=9.0)
    assert population.partitions == NODES
    assert population.grid.asked == []


def test_a_reply_that_does_not_come_is_a_failed_one(scripted: Scripted) -> None:
    population = assembled(scripted)
    answer = population.grid.send_and_receive

    def partly(messages: list[Message], *, timeout: float | None = None) -> list[Message]:
        replies = answer(messages, timeout=timeout)
        stranger = Message(RecordDict(), reply_to=Message(RecordDict(), 77, "train"))
        return [*(reply for reply in replies if reply.metadata.src_node_id != 901), replies[0], stranger]

    population.grid.send_and_receive = partly
    replies = population.send_and_receive(messages(population), timeout=2.5)
    assert [population.node_of(reply) for reply in replies] == [17, 2**63 - 1, 901, 3]
    assert [reply.error.reason if reply.has_error() else None for reply in replies] == [
        None,
        None,
        "no reply within 2.5 s",
        None,
    ]


def test_waiting_for_more_nodes_is_bounded(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    population = assembled(scripted)
    population.grid.nodes = [3]
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(strategy_utils, "sleep", sleep)
    with pytest.raises(PopulationError, match=r"^1 of 4 nodes are connected, .* waited strategy.timeout=9 s for more$"):
        sample_nodes(population, 2, 2)
    population.send_and_receive([])  # whoever sends has not been waiting
    assert list(population.get_node_ids()) == [3]


def test_a_node_that_cannot_take_part_is_named_with_its_reason(scripted: Scripted) -> None:
    attack = "ConfigError: data.root\x1b[2J\nsnnfl: all is well" + "x" * 10**6

    def answer(message: Message) -> Message:
        return Message(Error(0, attack), reply_to=message)

    with pytest.raises(PopulationError, match=r"; node 5 cannot take part: ConfigError: data.root") as error:
        Population(scripted([5], answer)).assemble(1, timeout=1.0)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500

    def raised(message: Message) -> Message:  # as flwr's run_clientapp writes it
        error = NodePolicyError("this node's 'own'\nrule")
        return Message(Error(0, str(type(error)) + ":<'" + str(error) + "'>"), reply_to=message)

    with pytest.raises(PopulationError, match=r"; node 7 cannot take part: NodePolicyError: this node's 'own'\W+rule$"):
        Population(scripted([7], raised)).assemble(1, timeout=1.0)

    def empty(message: Message) -> Message:
        answer = Message(RecordDict(), reply_to=message)
        answer.__dict__["_content"] = None
        return answer

    with pytest.raises(PopulationError, match=r"; node 11 cannot take part: it sent no content$"):
        Population(scripted([11], empty)).assemble(1, timeout=1.0)


def test_a_grid_that_placed_other_partitions_is_an_error(scripted: Scripted) -> None:
    class PlacedGrid(type(scripted([], echo))):
        def partition_by_node(self) -> dict[int, int]:
            return dict(NODES)

    with pytest.raises(PopulationError, match=r"^the grid holds 4 partitions, but data.clients=3$"):
        Population(PlacedGrid(list(NODES), echo)).assemble(3, timeout=1.0)


def test_too_few_nodes_are_waited_for(scripted: Scripted) -> None:
    with pytest.raises(PopulationError, match=r"1 of data.clients=2 nodes connected within 0.1 s"):
        Population(scripted([1], echo)).assemble(2, timeout=0.1)

    class Late(list[int]):
        connected = time.monotonic() + 0.3

        def __iter__(self) -> Any:
            return iter([5, 6] if time.monotonic() > self.connected else [5])

    grid = scripted(Late(), holding({5: 1, 6: 0}))
    population = Population(grid)
    population.assemble(2, timeout=30.0)
    assert list(population.get_node_ids()) == [6, 5]


def test_missing_nodes_are_said_at_once_and_again(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(population_module, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(population_module, "REPEAT_SECONDS", 0.3)
    with pytest.raises(PopulationError, match=r"2 of data.clients=10 nodes connected within 1 s"):
        Population(scripted([1, 2], echo)).assemble(10, timeout=1.0)
    said = [record.getMessage() for record in caplog.records]
    assert set(said) == {"2 of data.clients=10 nodes connected, waiting (up to 1 s)"}
    assert 2 <= len(said) <= 4


def test_a_simulation_that_has_too_few_nodes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Simulated(InMemoryGrid):
        def __init__(self) -> None:
            self.asked = 0

        def get_node_ids(self) -> list[int]:
            self.asked += 1
            return [] if self.asked < 3 else [7, 8]  # they are registered while the ServerApp already runs

    monkeypatch.setattr(population_module, "SETTLED_SECONDS", 0.3)
    complaint = (
        "Flower simulates 2 SuperNodes, but data.clients=10; say `flwr run … --federation-config num-supernodes=10`"
    )
    start = time.monotonic()
    with pytest.raises(PopulationError, match=complaint):
        Population(Simulated()).assemble(10, timeout=3600.0)
    assert time.monotonic() - start < 60


def test_every_byte_of_every_array_is_counted(scripted: Scripted) -> None:
    down = RecordDict(
        {"arrays": ArrayRecord({"w": Array(np.zeros((10, 10), np.float32))}), "config": ConfigRecord({"a": 1})}
    )
    up = {node: b"x" * (100 + node % 50) for node in NODES}

    def answer(message: Message) -> Message:
        node = message.metadata.dst_node_id
        if node == 3:
            return Message(Error(0, "no luck"), reply_to=message)
        records = {"a": ArrayRecord({"w": Array("float32", (1,), "numpy.ndarray", up[node])})}
        return Message(RecordDict({**records, "b": ArrayRecord({"v": Array(np.zeros(3))})}), reply_to=message)

    population = assembled(scripted, answer)
    population.send_and_receive(messages(population, down))
    one_down, vector = 128 + 400, 128 + 24  # NumPy's header has 128 bytes
    assert array_bytes(down) == one_down
    assert population.traffic.down == 4 * one_down
    assert population.traffic.up == sum(len(raw) + vector for node, raw in up.items() if node != 3)
    assert population.traffic.seconds > 0
    population.send_and_receive(messages(population, down)[:1])
    taken = population.take_traffic()
    assert taken.down == 5 * one_down
    assert population.take_traffic() == Traffic()


def test_the_rest_of_the_grid_is_passed_on(scripted: Scripted) -> None:
    population = assembled(scripted)
    population.set_run("a run")
    assert population.run == "a run"
    made = population.create_message(RecordDict(), 17, "train")
    assert made.metadata.dst_node_id == 17


def sampled(seed: int, server_round: int, purpose: str, population: Population) -> list[int]:
    with seeded_draws(seed, server_round, purpose):
        return sample_nodes(population, 1, 3)[0]


def test_sampling_is_a_function_of_seed_round_and_purpose(scripted: Scripted) -> None:
    population = assembled(scripted)
    draws = {
        (seed, n, purpose): sampled(seed, n, purpose, population)
        for seed in (0, 1)
        for n in range(1, 11)
        for purpose in ("train selection", "evaluate selection")
    }
    random.random()  # whoever else draws from the global generator has no influence
    assert all(sampled(*key, population) == draw for key, draw in draws.items())
    for fixed in ((0, "train selection"), (1, "train selection"), (0, "evaluate selection")):
        series = [draw for (seed, _, purpose), draw in draws.items() if (seed, purpose) == fixed]
        assert len({tuple(draw) for draw in series}) > 5
    assert [draws[0, n, "train selection"] for n in range(1, 11)] != [
        draws[1, n, "train selection"] for n in range(1, 11)
    ]
    assert [draws[0, n, "train selection"] for n in range(1, 11)] != [
        draws[0, n, "evaluate selection"] for n in range(1, 11)
    ]


def test_sampling_puts_pythons_generator_back() -> None:
    before = random.getstate()
    with seeded_draws(0, 1, "train selection"):
        random.random()
    assert random.getstate() == before

    def fail() -> None:
        with seeded_draws(0, 1, "train selection"):
            random.random()
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert random.getstate() == before


def test_numpys_global_generator_is_seeded_likewise_and_put_back() -> None:
    def noise(*key: Any) -> list[float]:
        np.random.random()
        before = np.random.get_state()
        with seeded_draws(*key):
            drawn = np.random.normal(size=3).tolist()
        assert all(np.array_equal(now, then) for now, then in zip(np.random.get_state(), before, strict=True))
        return drawn

    keys = [(0, 1, "aggregation"), (1, 1, "aggregation"), (0, 2, "aggregation"), (0, 1, "train selection")]
    first = [noise(*key) for key in keys]
    assert [noise(*key) for key in keys] == first
    assert len({tuple(drawn) for drawn in first}) == 4
