"""The in-process engine: a Flower app gets what Flower's own runtime would give it."""

import logging
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.task_identity import TaskIdentity

from experiments.engines.in_process import FIRST_NODE_ID, InProcessGrid, run_in_process

Client = Callable[[Message, Context], Message]
Server = Callable[[Grid], None]


def run(client: Client, server: Server, *, clients: int = 3, **run_config: int) -> Context:
    """Run a client function against a server function."""
    client_app, server_app = ClientApp(), ServerApp()
    client_app.query()(client)

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        server(grid)

    return run_in_process(server_app, client_app, run_config=run_config, clients=clients)


def queries(grid: Grid, content: RecordDict | None = None) -> list[Message]:
    """Make one message for every node; like Flower's strategies, all with one content."""
    content = RecordDict() if content is None else content
    return [Message(content, node, "query", group_id="7") for node in grid.get_node_ids()]


def echo(message: Message, context: Context) -> Message:
    return Message(message.content, reply_to=message)


def answer(message: Message, **values: int) -> Message:
    return Message(RecordDict({"values": MetricRecord(dict(values))}), reply_to=message)


def partition_of(context: Context) -> int:
    return int(context.node_config["partition-id"])


def test_clients_answer_in_the_order_of_the_messages() -> None:
    seen: list[int] = []

    def client(message: Message, context: Context) -> Message:
        seen.append(partition_of(context))
        return answer(message, partition=partition_of(context), clients=int(context.node_config["num-partitions"]))

    def server(grid: Grid) -> None:
        messages = queries(grid)[::-1]
        replies = list(grid.send_and_receive(messages))
        assert [reply.content["values"] for reply in replies] == [{"partition": i, "clients": 4} for i in (3, 2, 1, 0)]
        for reply, message in zip(replies, messages, strict=True):
            assert reply.metadata.reply_to_message_id == message.metadata.message_id
            assert reply.metadata.src_node_id == message.metadata.dst_node_id
            assert reply.metadata.dst_node_id == message.metadata.src_node_id
            assert reply.metadata.group_id == "7"
        ids = [message.metadata.message_id for message in [*messages, *replies]]
        assert len(set(ids)) == 8
        assert "" not in ids

    run(client, server, clients=4)
    assert seen == [3, 2, 1, 0]


def test_state_persists_between_rounds_and_nothing_else_does() -> None:
    def client(message: Message, context: Context) -> Message:
        assert context.run_config == {"rounds": 5}
        assert context.node_config["partition-id"] < 3
        context.state["calls"] = MetricRecord({"n": calls(context) + 1})
        context.run_config["rounds"] = context.node_config["partition-id"] = 99
        return answer(message, n=calls(context))

    def calls(context: Context) -> int:
        return int(context.state["calls"]["n"]) if "calls" in context.state else 0

    def server(grid: Grid) -> None:
        for rounds in (1, 2, 3):
            replies = grid.send_and_receive(queries(grid)[:2])
            assert [reply.content["values"]["n"] for reply in replies] == [rounds, rounds]
        [reply] = grid.send_and_receive(queries(grid)[2:])
        assert reply.content["values"]["n"] == 1

    run(client, server, rounds=5)
    run(client, server, rounds=5)  # a second run starts anew


def raise_value_error() -> None:
    raise ValueError("no\n  batch")


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (raise_value_error, "ValueError: no batch"),
        (lambda: sys.exit("enough"), "SystemExit: enough"),
        (lambda: None, "TypeError: ClientApp returned NoneType, expected Message(..., reply_to=message)"),
    ],
)
def test_a_failure_is_an_error_reply_and_leaves_the_state(
    failure: Callable[[], None], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    def client(message: Message, context: Context) -> Message:
        context.state.setdefault("rounds", MetricRecord({"n": [0]}))["n"].append(1)
        if partition_of(context) == 1 and len(context.state["rounds"]["n"]) == 3:
            return failure()  # type: ignore[return-value]
        return answer(message, n=len(context.state["rounds"]["n"]))

    def server(grid: Grid) -> None:
        grid.send_and_receive(queries(grid))
        first, failed, last = grid.send_and_receive(queries(grid))
        assert first.content["values"]["n"] == last.content["values"]["n"] == 3
        assert failed.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        assert failed.error.reason == reason
        assert failed.metadata.src_node_id == FIRST_NODE_ID + 1
        # What the client wrote before it failed is gone, so it fails in the same way again.
        assert list(grid.send_and_receive(queries(grid)))[1].error.reason == reason

    with caplog.at_level(logging.DEBUG, logger="flwr"):
        run(client, server)
    tracebacks = [record for record in caplog.records if record.exc_info]
    assert [record.levelno for record in tracebacks] == [logging.DEBUG] * 2


def test_a_reply_to_another_message_is_an_error() -> None:
    kept: list[Message] = []

    def client(message: Message, context: Context) -> Message:
        kept.append(message)
        return answer(kept[0])

    def server(grid: Grid) -> None:
        assert [reply.has_error() for reply in grid.send_and_receive(queries(grid))] == [False, True, True]

    run(client, server)


def test_a_state_that_is_no_record_dict_is_an_error() -> None:
    def client(message: Message, context: Context) -> Message:
        context.state = {"n": 1}  # type: ignore[assignment]
        return answer(message)

    def server(grid: Grid) -> None:
        for reply in grid.send_and_receive(queries(grid)):
            assert reply.error.reason == "TypeError: ClientApp set context.state to dict, expected RecordDict"

    run(client, server)


def test_ctrl_c_in_a_client_ends_the_run() -> None:
    def client(message: Message, context: Context) -> Message:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(client, lambda grid: grid.send_and_receive(queries(grid)) and None)


def test_an_error_of_the_server_passes_through() -> None:
    def server(grid: Grid) -> None:
        raise LookupError("the server failed")

    with pytest.raises(LookupError, match="the server failed"):
        run(echo, server)


def test_each_client_has_the_timeout_for_itself_and_a_late_reply_is_absent() -> None:
    slow = {1}

    def client(message: Message, context: Context) -> Message:
        time.sleep(30.0 if partition_of(context) in slow else 0.0)
        return answer(message)

    def server(grid: Grid) -> None:
        replies = grid.send_and_receive(queries(grid) * 2, timeout=1.0)
        assert [reply.metadata.src_node_id for reply in replies] == [FIRST_NODE_ID, FIRST_NODE_ID + 2] * 2
        slow.clear()
        assert grid.send_and_receive(queries(grid), timeout=0.0) == []
        assert len(list(grid.send_and_receive(queries(grid), timeout=60.0))) == 3

    run(client, server)


def test_a_client_that_hangs_is_interrupted_its_state_discarded_and_the_others_have_their_turn() -> None:
    calls: list[int] = []

    def client(message: Message, context: Context) -> Message:
        calls.append(partition_of(context))
        assert "written" not in context.state
        context.state["written"] = MetricRecord({"n": 1})
        if len(calls) == 1:
            try:
                time.sleep(30)
            except Exception:
                return answer(message, caught=1)
        return answer(message, n=1)

    def server(grid: Grid) -> None:
        hanging, *others = queries(grid)
        start = time.monotonic()
        replies = grid.send_and_receive([hanging, *others], timeout=1.0)
        assert time.monotonic() - start < 25
        assert [reply.metadata.src_node_id for reply in replies] == [FIRST_NODE_ID + 1, FIRST_NODE_ID + 2]
        assert not any(reply.has_error() for reply in replies)
        assert calls == [0, 1, 2]
        [reply] = grid.send_and_receive([hanging], timeout=30.0)
        assert not reply.has_error()  # it kept no state

    run(client, server)


def test_the_grid_knows_who_holds_which_partition() -> None:
    def server(grid: Grid) -> None:
        assert hasattr(grid, "partition_by_node")
        assert grid.partition_by_node() == {node: number for number, node in enumerate(grid.get_node_ids())}

    run(echo, server)


def test_pushed_messages_are_answered_once() -> None:
    def server(grid: Grid) -> None:
        names = list(grid.push_messages(queries(grid)))
        replies = list(grid.pull_messages([*names[1:], "unknown"]))
        assert [reply.metadata.reply_to_message_id for reply in replies] == names[1:]
        assert len(list(grid.pull_messages(names))) == 1
        assert list(grid.pull_messages(names)) == []

    run(echo, server)


def test_no_side_can_alter_what_the_other_holds() -> None:
    weights = np.arange(4.0)

    def client(message: Message, context: Context) -> Message:
        content = message.content
        assert content["list"]["values"] == [1, 2]  # as the server made it, whoever was called before
        assert set(content) == {"arrays", "list"}
        if "replied" in context.state:
            np.testing.assert_array_equal(context.state["replied"]["w"].numpy(), weights)
        content["arrays"]["w"].data = b""
        content["list"]["values"].append(3)
        content["new"] = ConfigRecord()
        message.metadata.group_id = "altered"
        context.state["replied"] = ArrayRecord({"w": Array(weights)})
        return Message(RecordDict({"replied": context.state["replied"]}), reply_to=message)

    def server(grid: Grid) -> None:
        content = RecordDict({"arrays": ArrayRecord({"w": Array(weights)}), "list": ConfigRecord({"values": [1, 2]})})
        for _ in range(2):
            messages = queries(grid, content)
            for reply in grid.send_and_receive(messages):
                assert reply.has_content(), reply.error.reason
                reply.content["replied"]["w"].data = b""
            assert {message.metadata.group_id for message in messages} == {"7"}
        np.testing.assert_array_equal(content["arrays"]["w"].numpy(), weights)

    run(client, server)


def test_bytes_of_arrays_are_shared() -> None:
    array = Array(np.zeros(1000))

    def server(grid: Grid) -> None:
        replies = grid.send_and_receive(queries(grid, RecordDict({"arrays": ArrayRecord({"w": array})})))
        # ArrayRecord(...) itself copies the array's shell, hence no `is` for the array.
        assert all(reply.content["arrays"]["w"].data is array.data for reply in replies)

    run(echo, server)


def test_a_large_population_costs_nothing_until_it_is_used() -> None:
    def server(grid: Grid) -> None:
        assert isinstance(grid, InProcessGrid)
        nodes = grid.get_node_ids()
        assert len(nodes) == 10_000
        assert [node.node_id for node in grid.get_nodes()] == nodes
        [reply] = grid.send_and_receive([Message(RecordDict(), nodes[-1], "query")])
        assert not reply.has_error()
        assert list(grid._states) == nodes[-1:]

    run(echo, server, clients=10_000)


@pytest.mark.parametrize("node", [1, FIRST_NODE_ID + 3])
def test_an_unknown_node_is_an_error(node: int) -> None:
    def server(grid: Grid) -> None:
        grid.send_and_receive([Message(RecordDict(), node, "query")])

    with pytest.raises(ValueError, match=f"no node {node}: the grid has nodes 2 to 4"):
        run(echo, server)


def test_a_federation_needs_a_client() -> None:
    with pytest.raises(ValueError, match="clients=0"):
        run(echo, lambda grid: None, clients=0)


def test_create_message_and_run() -> None:
    def server(grid: Grid) -> None:
        message = grid.create_message(RecordDict(), "query", FIRST_NODE_ID, "7", ttl=60.0)
        assert (message.metadata.run_id, message.metadata.group_id) == (grid.run.run_id, "7")
        grid.set_run(grid.run)
        assert message.metadata.run_id == grid.run.run_id

    run(echo, server)


@pytest.fixture
def _identity() -> Iterator[None]:
    names = ("_task_id", "_run_id", "_node_id")
    saved = [getattr(TaskIdentity, name) for name in names]
    yield
    for name, value in zip(names, saved, strict=True):
        setattr(TaskIdentity, name, value)


@pytest.mark.usefixtures("_identity")
def test_the_identity_of_the_task_is_restored() -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 11, 12, 13
    seen: list[int] = []

    def server(grid: Grid) -> None:
        seen.append(queries(grid)[0].metadata.run_id)
        if len(seen) == 2:
            raise LookupError

    run(echo, server)
    with pytest.raises(LookupError):
        run(echo, server)
    assert (TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id) == (11, 12, 13)
    assert len({12, *seen}) == 3

    TaskIdentity._run_id = None
    run(echo, lambda grid: None)
    with pytest.raises(RuntimeError, match="run_id is not set"):
        _ = TaskIdentity.run_id


def test_nodes_have_the_configuration_that_they_are_given() -> None:
    seen: list[dict[str, object]] = []
    client, server = ClientApp(), ServerApp()

    @client.query()
    def who(message: Message, context: Context) -> Message:
        seen.append(dict(context.node_config))
        return Message(RecordDict(), reply_to=message)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        list(grid.send_and_receive([Message(RecordDict(), node, "query") for node in grid.get_node_ids()]))

    given = {"state-directory": "/state", "partition-id": 99}
    run_in_process(server, client, run_config={}, clients=2, node_config=given)
    assert seen == [{"state-directory": "/state", "partition-id": n, "num-partitions": 2} for n in (0, 1)]
