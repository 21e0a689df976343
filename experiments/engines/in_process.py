"""Run a Flower app in this process: no worker, no network, no clock, the same order every time.

Flower offers no in-process engine (its simulation runtime is Ray). Its ``Grid`` is the seam: :class:`InProcessGrid`
answers each message of the server by calling the ClientApp directly. What a client sees and may do is what Flower's
simulation runtime grants it (``flwr/server/superlink/fleet/vce/vce_api.py``):

- Arrays travel as immutable bytes, so they are shared, never copied. The mutable shells around them (records, lists,
  metadata) are copied on the way in and on the way out: neither side can alter what the other holds.
- ``context.state`` is a client's own and lives as long as the grid. What a client that raises wrote to it is discarded.
- Whatever else a client changes in its context, ``run_config`` included, is forgotten when it returns.

What one process cannot grant is protection from a client that ends it (``os._exit``, a crash of a library): the run
ends too, and is resumed from its last round. On Ray and in a deployment such a client loses its own process only.
"""

from __future__ import annotations

import dataclasses
import math
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from logging import DEBUG, WARNING

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import NUM_PARTITIONS_KEY, PARTITION_ID_KEY, SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore import log

from experiments.engines.deadline import DeadlinePassed, interrupted_after
from experiments.engines.flower_internals import Run, TaskIdentity, copied, own, restored_task_identity, set_new_id

FIRST_NODE_ID = SUPERLINK_NODE_ID + 1
"""Node id of partition 0; partition ``i`` is node ``FIRST_NODE_ID + i``. Flower's own nodes have random ids."""


class InProcessGrid(Grid):
    """Virtual nodes that live in this process and take their messages one at a time, in the order given.

    A node costs nothing until it is sent a message, so a population may be large. Nothing is ever in transit, so the
    time to live of a message has no effect.
    """

    def __init__(
        self,
        client_app: ClientApp,
        *,
        run: Run,
        run_config: Mapping[str, bool | int | float | str],
        clients: int,
        node_config: Mapping[str, bool | int | float | str] | None = None,
    ) -> None:
        """Create the nodes.

        Args:
            client_app: Called once per message.
            run: Run that the server's messages belong to.
            run_config: Given to each client in its context.
            clients: Number of nodes, one per partition.
            node_config: Given to each client beside its partition.

        Raises:
            ValueError: If there is no client.
        """
        if clients < 1:
            raise ValueError(f"clients={clients}: a federation needs at least 1")
        self._client_app = client_app
        self._run = run
        self._run_config = dict(run_config)
        self._clients = clients
        self._node_config = {**(node_config or {}), NUM_PARTITIONS_KEY: clients}
        self._states: dict[int, RecordDict] = {}
        self._pending: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Replace the run that the grid reports."""
        self._run = run

    @property
    def run(self) -> Run:
        """A copy of the run."""
        return dataclasses.replace(self._run)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message; Flower deprecates this in favour of the constructor of ``Message``."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return the node ids, in the order of the partitions."""
        return list(range(FIRST_NODE_ID, FIRST_NODE_ID + self._clients))

    def partition_by_node(self) -> dict[int, int]:
        """Return the partition of each node: a server that knows it needn't ask ten thousand clients."""
        return {FIRST_NODE_ID + partition: partition for partition in range(self._clients)}

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Accept messages; their clients run when the replies are pulled.

        Returns:
            The id of each message.

        Raises:
            ValueError: If a message is for a node that doesn't exist.
        """
        accepted = {self._accept(message): message for message in messages}
        self._pending.update(accepted)
        return list(accepted)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Run the clients of these messages and return their replies; an id that was already answered has none."""
        return [self._answer(self._pending.pop(name)) for name in message_ids if name in self._pending]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Run the client of each message and return the replies, in the order of the messages.

        A client that raises, or calls ``sys.exit``, gives an error reply. Ctrl-C passes through.

        Args:
            messages: To be answered one after another.
            timeout: Seconds for each client, ``None`` for no limit. Machines of their own would work side by side, so
                the time of each counts from its own start. As in Flower, a reply that comes later is absent. A client
                whose time is over is interrupted, where :func:`~experiments.engines.deadline.interrupted_after` can.

        Raises:
            ValueError: If a message is for a node that doesn't exist.
        """
        accepted = list(messages)
        for message in accepted:
            self._accept(message)
        limit = math.inf if timeout is None else timeout
        replies: list[Message] = []
        for message in accepted:
            start = time.monotonic()
            with suppress(DeadlinePassed), interrupted_after(limit):
                reply = self._answer(message)
                if time.monotonic() - start < limit:
                    replies.append(reply)
        if len(replies) < len(accepted):
            log(WARNING, "%d of %d clients answered within %g s", len(replies), len(accepted), timeout)
        return replies

    def _accept(self, message: Message) -> str:
        """Check the destination of a message and give it its id, as the SuperLink does."""
        node_id = message.metadata.dst_node_id
        if not FIRST_NODE_ID <= node_id < FIRST_NODE_ID + self._clients:
            last = FIRST_NODE_ID + self._clients - 1
            raise ValueError(f"no node {node_id}: the grid has nodes {FIRST_NODE_ID} to {last} (get_node_ids)")
        return set_new_id(message)

    def _answer(self, message: Message) -> Message:
        """Run the client of one message and return its reply."""
        node_id = message.metadata.dst_node_id
        context = self._context(node_id)
        reply = own(call_client(self._client_app, own(message), context))
        self._states[node_id] = context.state
        set_new_id(reply)
        return reply

    def _context(self, node_id: int) -> Context:
        """Build a node's context; a node that was never called has an empty state."""
        return Context(
            run_id=self._run.run_id,
            node_id=node_id,
            node_config={**self._node_config, PARTITION_ID_KEY: node_id - FIRST_NODE_ID},
            state=self._states.get(node_id, RecordDict()),
            run_config=self._run_config,
        )


def call_client(client_app: ClientApp, message: Message, context: Context) -> Message:
    """Answer a message with a client's reply or, if it raises or calls ``sys.exit``, with an error reply.

    Args:
        client_app: Called with a copy of the context.
        message: The client's own; it may alter it.
        context: Receives the client's new state, unless the client failed.

    Returns:
        The reply. That of a failure has the code ``CLIENT_APP_RAISED_EXCEPTION`` and, as the reason, one line with the
        exception's type and text; the traceback goes to Flower's log at level DEBUG (``FLWR_LOG_LEVEL=DEBUG``).
    """
    message_id = message.metadata.message_id
    own = dataclasses.replace(context, state=copied(context.state), run_config=dict(context.run_config))
    try:
        reply = client_app(message, own)
        if not isinstance(reply, Message) or reply.metadata.reply_to_message_id != message_id:
            raise TypeError(f"ClientApp returned {type(reply).__name__}, expected Message(..., reply_to=message)")
        if not isinstance(own.state, RecordDict):
            raise TypeError(f"ClientApp set context.state to {type(own.state).__name__}, expected RecordDict")
    except (Exception, SystemExit) as error:
        log(DEBUG, "The client of node %d failed", context.node_id, exc_info=error)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
    context.state = own.state
    return reply


def run_in_process(
    server_app: ServerApp,
    client_app: ClientApp,
    *,
    run_config: Mapping[str, bool | int | float | str],
    clients: int,
    node_config: Mapping[str, bool | int | float | str] | None = None,
) -> Context:
    """Run a Flower app to its end in this process.

    Args:
        server_app: Runs in the calling thread.
        client_app: Called for each message of the server.
        run_config: Given to the server and to every client.
        clients: Number of nodes; node ``FIRST_NODE_ID + i`` has partition ``i`` of ``clients`` in its ``node_config``.
        node_config: Given to each client beside its partition.

    Returns:
        The server's context.

    Raises:
        ValueError: If there is no client.
        Exception: Whatever the ServerApp raises, unchanged.
    """
    run = Run.create_empty(run_id=uuid.uuid4().int >> 65)
    grid = InProcessGrid(client_app, run=run, run_config=run_config, clients=clients, node_config=node_config)
    context = Context(run.run_id, SUPERLINK_NODE_ID, {}, RecordDict(), dict(run_config))
    with restored_task_identity():
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run.run_id, SUPERLINK_NODE_ID
        server_app(grid, context)
    return context
