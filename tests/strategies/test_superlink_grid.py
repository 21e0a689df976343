"""What nodes may put into a SuperLink: whatever it is, it costs the node's own reply and nothing else.

Flower's own SuperLink stands between the server and the nodes (``tests/superlink.py``), without HTTP.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import re
from collections.abc import Callable

import httpx
import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import HttpGrid, InMemoryGrid
from superlink import RUN_ID, TASK_ID, SuperLink, Upload, upload

from snnfl.compatibility import IncompatibleLibraryError
from snnfl.updates import ArraySpec
from strategies import superlink_grid
from strategies.guarded import Guarded
from strategies.population import Population, PopulationError
from strategies.superlink_grid import PATIENCE, SuperLinkGrid, shielded
from strategies.update import UpdateSpec

SHAPES = {"conv.weight": (4, 2, 3, 3), "head.bias": (3,)}
METRICS = {"num-examples": 40, "loss": 0.5}
SPEC = UpdateSpec(arrays={name: ArraySpec(shape=shape) for name, shape in SHAPES.items()}, metrics=frozenset(METRICS))
SENT = ArrayRecord({name: torch.zeros(shape) for name, shape in SHAPES.items()})

Answer = Callable[[Message], Upload | None]


@pytest.fixture(autouse=True)
def _task(monkeypatch: pytest.MonkeyPatch, _server: None) -> None:
    """The server's messages belong to the run of the SuperLink, and nothing is waited for."""
    TaskIdentity.task_id, TaskIdentity.run_id = TASK_ID, RUN_ID
    monkeypatch.setattr(superlink_grid, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(logging.getLogger("flwr"), "disabled", True)


def honest(partition: int) -> Answer:
    """Answer any message as this project's clients do; no two nodes send an object that is the same."""
    draw = torch.Generator().manual_seed(partition)

    def answer(message: Message) -> Upload:
        if message.metadata.message_type == "query":
            content = RecordDict({"metrics": MetricRecord({"partition-id": partition})})
        elif message.metadata.message_type == "evaluate":
            content = RecordDict({"metrics": MetricRecord({"num-examples": 9, "accuracy": 0.5, "loss": partition})})
        else:
            arrays = ArrayRecord({name: torch.rand(shape, generator=draw) for name, shape in SHAPES.items()})
            content = RecordDict({"arrays": arrays, "metrics": MetricRecord({**METRICS, "loss": partition})})
        return upload(Message(content, reply_to=message))

    return answer


def changed(partition: int, change: Callable[[Upload], None], kind: str = "train") -> Answer:
    """Answer honestly, but change what is uploaded for messages of a kind."""
    inner = honest(partition)

    def answer(message: Message) -> Upload | None:
        made = inner(message)
        if message.metadata.message_type == kind:
            change(made)
        return made

    return answer


def replace(kind: str, old: bytes, new: bytes) -> Callable[[Upload], None]:
    """Replace something in all objects of a kind, none of which is left as it was."""

    def change(made: Upload) -> None:
        for name, content in made.objects.items():
            if content.startswith(kind.encode() + b" "):
                made.objects[name] = re.sub(old, new, content)
                assert made.objects[name] != content

    return change


def exchange(
    answers: list[Answer], kind: str = "train", timeout: float = 0.0
) -> tuple[SuperLink, Population, list[Message]]:
    """Ask all nodes once; the first pull is the only one if the timeout is 0."""
    link = SuperLink(answers)
    population = Population(shielded(link.grid()), partitions={node: number for number, node in enumerate(link.nodes)})
    sent = RecordDict({"arrays": SENT, "config": ConfigRecord({"server-round": 1})})
    messages = [Message(sent, node, kind) for node in link.nodes]
    return link, population, list(population.send_and_receive(messages, timeout=timeout))


MALFORMED = {
    "a shape of text": (replace("Array", rb'"shape": \[.*?\]', b'"shape": ["a"]'), "TypeError"),
    "no JSON": (replace("ArrayRecord", rb"\{", b"("), "JSONDecodeError"),
    "no UTF-8": (replace("RecordDict", rb"arrays", b"\xff\xfe"), "UnicodeDecodeError"),
    "a missing key": (replace("Array", b"arraychunk_ids", b"arraychunk_idz"), "KeyError"),
    "no protobuf": (replace("MetricRecord", rb"num-examples", b"\xff" * 12), "DecodeError"),
    "an unknown class": (replace("MetricRecord", rb"^MetricRecord", b"CustomDataClass"), "KeyError"),
    "a chunk that isn't there": (replace("Array", rb'_ids": \[0\]', b'_ids": [7]'), "IndexError"),
    "records of another class": (replace("RecordDict", rb"^RecordDict", b"ArrayRecord"), "ValueError"),
    "deeply nested JSON": (replace("ArrayRecord", rb"\{", b"[" * 10**6), "RecursionError"),
    "no message at all": (replace("Message", rb"^Message", b"RecordDict"), ""),
}


@pytest.mark.parametrize(("change", "error"), MALFORMED.values(), ids=MALFORMED)
def test_one_malformed_object_is_one_failed_reply_and_the_others_are_kept(
    change: Callable[[Upload], None], error: str, caplog: pytest.LogCaptureFixture
) -> None:
    link, population, replies = exchange([honest(0), changed(1, change), honest(2)])
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert [population.node_of(reply) for reply in replies] == link.nodes
    strategy = Guarded(FedAvg(min_train_nodes=1, min_available_nodes=1), SPEC, seed=0)
    strategy._grid = population
    with caplog.at_level(logging.WARNING, logger="strategies"):
        result, _ = strategy.aggregate_train(1, replies)
    assert result is not None
    assert (len(strategy.report.updates), strategy.report.failed, strategy.report.refused) == (2, 1, 0)
    (line,) = caplog.messages
    assert re.match(rf"round 1: reply of partition 1 \(node {link.nodes[1]}\) failed: .* cannot be read: {error}", line)
    assert line.isprintable()
    assert link.calls.count("ConfirmMessageReceived") == 3, "the SuperLink may forget all of them"


def test_a_node_that_is_malformed_at_the_opening_question_takes_no_part(caplog: pytest.LogCaptureFixture) -> None:
    change = replace("RecordDict", rb"metrics", b"\xff\xff\xff\xff\xff\xff\xff")
    link = SuperLink([honest(0), changed(1, change, "query"), honest(2)])
    population = Population(shielded(link.grid()))
    with caplog.at_level(logging.WARNING, logger="strategies"):
        population.assemble(3, timeout=5.0, minimum_replies=2)
    assert population.partitions == {link.nodes[0]: 0, link.nodes[2]: 2}
    assert re.match(
        rf"node {link.nodes[1]} cannot take part: its reply cannot be read: UnicodeDecodeError", caplog.messages[0]
    )
    with pytest.raises(PopulationError, match="cannot take part: its reply cannot be read: UnicodeDecodeError"):
        Population(shielded(SuperLink(link.answers).grid())).assemble(3, timeout=5.0, minimum_replies=3)


def test_a_malformed_answer_to_evaluate_is_a_failed_one() -> None:
    change = replace("MetricRecord", rb"accuracy", b"\xff" * 8)
    _, population, replies = exchange([honest(0), changed(1, change, "evaluate")], "evaluate")
    strategy = Guarded(FedAvg(), SPEC, seed=0)
    strategy._grid = population
    assert strategy.aggregate_evaluate(1, replies)["accuracy"] == 0.5
    assert strategy.report.failed == 1


def flip(draw: random.Random, content: bytes) -> bytes:
    raw = bytearray(content)
    for _ in range(draw.randint(1, 6)):
        raw[draw.randrange(len(raw))] ^= draw.randint(1, 255)
    return bytes(raw)


def cut(draw: random.Random, content: bytes) -> bytes:
    return content[: draw.randrange(len(content))]


def grow(draw: random.Random, content: bytes) -> bytes:
    return content + draw.choice([b"\0", b"}", b"\x0a\x7f", content, draw.randbytes(30)])


def other_class(draw: random.Random, content: bytes) -> bytes:
    names = [
        b"Message",
        b"RecordDict",
        b"ArrayRecord",
        b"Array",
        b"ArrayChunk",
        b"MetricRecord",
        b"ConfigRecord",
        b"None",
    ]
    return draw.choice(names) + content[content.find(b" ") :]


def other_head(draw: random.Random, content: bytes) -> bytes:
    head, _, body = content.partition(b"\0")
    kind, children, size = head.split(b" ")
    ids = [child for child in children.split(b",") if child]
    ids = draw.choice([[], ids[::-1], ids * 2, ids[1:], [b"0" * 64], [b""]])
    return b" ".join([kind, b",".join(ids), draw.choice([size, b"-1", b"x", b"9" * 30])]) + b"\0" + body


def other_json(draw: random.Random, content: bytes) -> bytes:
    head, _, body = content.partition(b"\0")
    try:
        value = json.loads(body)
    except ValueError:
        return flip(draw, content)
    odd = [
        None,
        True,
        -1,
        2**70,
        1e400,
        "",
        "a" * 99,
        "\ud800",
        [],
        [0] * 9,
        ["a"],
        {"a": 1},
        [[0]],
        [None],
        [-1],
        [2**70],
    ]
    change = draw.choice(["value", "value", "key", "drop", "whole"])
    if change == "whole" or not isinstance(value, dict) or not value:
        value = draw.choice(odd)
    else:
        name = draw.choice(sorted(value))
        kept = value.pop(name)
        if change == "value":
            value[name] = draw.choice(odd)
        elif change == "key":
            value[draw.choice(["\ud800\x1b[2J", "", "x" * 10**5, "arrays"])] = kept
    return head + b"\0" + json.dumps(value).encode()


MUTATIONS = [flip, cut, grow, other_class, other_head, other_json, other_json]


def mutated(draw: random.Random) -> Callable[[Upload], None]:
    """Change one object, swap two, or announce another tree."""

    def change(made: Upload) -> None:
        names = sorted(made.objects)
        one, other = draw.sample(names, 2)
        kind = draw.randrange(10)
        if kind == 0:
            made.objects[one], made.objects[other] = made.objects[other], made.objects[one]
        elif kind == 1:
            made.tree.children[0].CopyFrom(ObjectTree(object_id=one, children=list(made.tree.children)))
        else:
            made.objects[one] = draw.choice(MUTATIONS)(draw, made.objects[one]) or b"\0"

    return change


@pytest.mark.parametrize("batch", range(21))
def test_a_mutated_object_costs_its_own_reply_alone(batch: int) -> None:
    """21 batches of 100 mutations each, on the path that a deployment takes."""
    draw = random.Random(batch)
    hostile = [changed(number, mutated(draw)) for number in range(1, 101)]
    _, population, replies = exchange([honest(0), *hostile])
    assert [population.partition_of(reply) for reply in replies] == list(range(101))
    strategy = Guarded(FedAvg(min_train_nodes=1, min_available_nodes=1), SPEC, seed=0)
    strategy._grid = population
    with np.errstate(all="ignore"):
        result, _ = strategy.aggregate_train(1, replies)
    report = strategy.report
    assert result is not None
    assert len(report.updates) + report.failed + report.refused == 101
    assert 1 <= len(report.updates) < 40, "a flipped bit of a weight is another weight; most else is noticed"
    assert report.failed > 40
    for update in report.updates:
        assert {name: tuple(array.shape) for name, array in update.arrays.items()} == SHAPES
        assert update.metrics.keys() == METRICS.keys()


def test_flower_itself_ends_at_the_first_malformed_object() -> None:
    """Should this fail, Flower has mended it, and ``SuperLinkGrid`` may go."""
    link = SuperLink([honest(0), changed(1, MALFORMED["a shape of text"][0])])
    with pytest.raises(TypeError):
        link.grid().send_and_receive([Message(RecordDict(), node, "train") for node in link.nodes], timeout=0.5)


@pytest.mark.parametrize("field", ["src_node_id", "reply_to_message_id"])
def test_a_reply_whose_content_says_that_it_is_someone_elses_fails(field: str) -> None:
    others: list[Message] = []

    def observed(message: Message) -> Upload:
        others.append(message)
        return honest(0)(message)

    def forged(message: Message) -> Upload:
        made = Message(RecordDict({"metrics": MetricRecord({"a": 1})}), reply_to=message)
        theirs = {"src_node_id": others[0].metadata.dst_node_id, "reply_to_message_id": others[0].metadata.message_id}
        made.metadata.__dict__[f"_{field}"] = theirs[field]
        sent = upload(made)
        sent.envelope.metadata.src_node_id = message.metadata.dst_node_id  # the SuperLink checks these two
        sent.envelope.metadata.reply_to_message_id = message.metadata.message_id
        return sent

    _, population, replies = exchange([observed, forged])
    assert [population.partition_of(reply) for reply in replies] == [0, 1]
    assert [reply.has_error() for reply in replies] == [False, True]
    assert "it says that it is another message's answer" in replies[1].error.reason


def test_the_superlinks_word_on_a_reply_stands() -> None:
    _, _, replies = exchange([honest(0)])
    metadata = replies[0].metadata
    assert metadata.message_type == "train"
    assert metadata.reply_to_message_id
    assert metadata.message_id


def test_a_reply_that_is_announced_and_not_sent_fails_in_time_and_one_that_is_late_counts() -> None:
    missing: dict[str, bytes] = {}

    def withheld(made: Upload) -> None:
        missing.update(dict([made.objects.popitem()]))

    link, _, replies = exchange([honest(0), changed(1, withheld)], timeout=0.05)
    assert [reply.has_error() for reply in replies] == [False, True]
    assert replies[1].error.reason == "its reply was announced, but not sent in time"

    def later(message: Message) -> Upload:
        made = honest(1)(message)
        root = made.envelope.metadata.message_id
        kept = {name: made.objects.pop(name) for name in list(made.objects) if name != root}
        ask = link.store.get
        calls = 0

        def get(name: str) -> bytes | None:
            nonlocal calls
            calls += name in kept
            return kept[name] if name in kept and calls > 3 else ask(name)

        link.store.get = get  # type: ignore[method-assign]
        return made

    link.answers[1] = later
    grid = shielded(link.grid())
    answered = list(
        grid.send_and_receive([Message(RecordDict({"arrays": SENT}), link.nodes[1], "train")], timeout=30.0)
    )
    assert [reply.has_content() for reply in answered] == [True]


def test_a_reply_of_absurd_size_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(superlink_grid, "SLACK_BYTES", 10**5)
    monkeypatch.setattr(superlink_grid, "SLACK_OBJECTS", 20)

    def large(made: Upload) -> None:
        made.objects.update((name, content + bytes(10**5)) for name, content in made.objects.items())

    def many(made: Upload) -> None:
        leaves = [ObjectTree(object_id=hashlib.sha256(bytes([n, n])).hexdigest()) for n in range(100)]
        made.tree.children.extend(leaves)

    def bomb(made: Upload) -> None:
        replace("Array", rb'_ids": \[0\]', b'_ids": [' + b"0, " * 10**4 + b"0]")(made)

    link, _, replies = exchange([honest(0), changed(1, large), changed(2, many), changed(3, bomb)])
    assert [reply.has_content() for reply in replies] == [True, False, False, False]
    reasons = [reply.error.reason for reply in replies[1:]]
    assert re.search(r"it has more than 10\d{4} bytes$", reasons[0])
    assert reasons[1].endswith("it has more than 52 objects")
    assert re.search(r"it has more than 10\d{4} bytes$", reasons[2])
    assert link.calls.count("PullObject") < 70


def test_a_message_that_answers_nothing_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    def injecting(message: Message) -> Upload:
        made = upload(Message(RecordDict({"x": MetricRecord({"a": 1})}), reply_to=message))
        made.envelope.metadata.reply_to_message_id = ""
        made.envelope.metadata.src_node_id = made.envelope.metadata.dst_node_id = 1  # passes for the server's own
        return made

    with caplog.at_level(logging.WARNING, logger="strategies"):
        _, _, replies = exchange([honest(0), injecting])
    assert [reply.has_error() for reply in replies] == [False, True]
    assert caplog.messages == ["a message of node 1 that answers no question is ignored"]


def tower() -> Callable[[Upload], None]:
    """Announce, time after time, 80 objects on top of those of the time before: more than protobuf can nest."""
    floors = 0

    def change(made: Upload) -> None:
        nonlocal floors
        tree = ObjectTree(object_id=hashlib.sha256(b"floor %d" % floors).hexdigest())
        for _ in range(80):
            floors += 1
            tree = ObjectTree(object_id=hashlib.sha256(b"floor %d" % floors).hexdigest(), children=[tree])
        made.tree.children[0].CopyFrom(tree)

    return change


def test_a_tree_at_which_the_superlink_itself_fails_costs_others_one_round(caplog: pytest.LogCaptureFixture) -> None:
    link = SuperLink([honest(0), changed(1, tower()), honest(2)])
    population = Population(shielded(link.grid()), partitions={node: number for number, node in enumerate(link.nodes)})

    def failed() -> list[bool]:
        sent = [Message(RecordDict({"arrays": SENT}), node, "train") for node in link.nodes]
        return [reply.has_error() for reply in population.send_and_receive(sent, timeout=0.2)]

    with caplog.at_level(logging.WARNING, logger="strategies"):
        assert failed() == [False, True, False]
        assert failed() == [True, True, True]
        assert failed() == [False, True, False]
        assert failed() == [False, True, False]
    assert [line for line in caplog.messages if "each is asked for alone" in line] == caplog.messages[:1]


@pytest.mark.parametrize(("failures", "answered"), [(2, True), (5, False)])
def test_a_superlink_that_stumbles_is_asked_again(failures: int, answered: bool) -> None:
    link = SuperLink([honest(0)])
    grid = shielded(link.grid())
    ask, left = link.state.get_message_res, failures

    def stumbling(*args: object, **kwargs: object) -> list[Message]:
        nonlocal left
        left -= 1
        if left >= 0:
            raise RuntimeError("database is locked")
        return ask(*args, **kwargs)

    link.state.get_message_res = stumbling
    (reply,) = grid.send_and_receive([Message(RecordDict({"arrays": SENT}), link.nodes[0], "train")], timeout=30.0)
    assert reply.has_content() == answered
    assert answered or reply.error.reason.startswith("the SuperLink cannot hand over its reply: HTTPStatusError: 500")


def test_a_superlink_that_stumbles_at_an_object_is_asked_again() -> None:
    link = SuperLink([honest(0)])
    grid = shielded(link.grid())
    assert isinstance(grid, SuperLinkGrid)

    def stumbling(request: object) -> None:
        asked = httpx.Request("POST", "http://superlink/PullObject")
        raise httpx.HTTPStatusError("500", request=asked, response=httpx.Response(500))

    for fails in (PATIENCE - 1, PATIENCE):
        asked = grid.push_messages([Message(RecordDict({"arrays": SENT}), link.nodes[0], "train")])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(link, "PullObject", stumbling, raising=False)
            replies = [grid.pull_messages(asked) for _ in range(fails)]
        assert not any(replies[: PATIENCE - 1])
        (reply,) = replies[-1] or grid.pull_messages(asked)
        if fails < PATIENCE:
            assert reply.has_content()
        else:
            assert reply.error.reason.startswith("its reply cannot be read: HTTPStatusError: 500")


def test_only_flowers_grid_of_a_deployment_is_shielded() -> None:
    factory = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory())
    simulated = InMemoryGrid(factory)
    assert shielded(simulated) is simulated
    grid = shielded(SuperLink([honest(0)]).grid())
    assert isinstance(grid, SuperLinkGrid)
    assert len(list(grid.get_node_ids())) == 1
    assert grid.run.run_id == RUN_ID


def test_an_unknown_flower_is_an_error_that_names_the_tested_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Renamed(HttpGrid):
        pass

    Renamed.__module__ = "flwr.superlink.grid"
    with pytest.raises(
        IncompatibleLibraryError,
        match=r"tested with flwr 1\.41\.0, .* the grid is a flwr.superlink.grid.Renamed; install",
    ):
        shielded(Renamed(token="x"))
    monkeypatch.delattr(HttpGrid, "_runtime_client")
    with pytest.raises(IncompatibleLibraryError, match=r"HttpGrid has no _runtime_client; install flwr==1\.41\.0"):
        shielded(HttpGrid(token="x"))
