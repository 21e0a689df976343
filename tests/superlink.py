"""Flower's SuperLink in this process: its handlers and its state, an ``HttpGrid`` on one side and nodes on the other.

HTTP is left out, but every request and response is serialised and parsed. The store of objects doesn't check what it is
given, so that whatever a node makes up arrives at the server.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.linkstate import InMemoryLinkState
from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
from flwr.supercore.constant import NOOP_FEDERATION_ID
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.run import Run
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import HttpGrid
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.superlink.servicer.runtime import runtime_handlers

RUN_ID, TASK_ID = 7, 1
HANDLERS = {
    "GetNodes": runtime_handlers.get_nodes,
    "PushMessages": runtime_handlers.push_messages,
    "PushObject": runtime_handlers.push_object,
    "PullMessages": runtime_handlers.pull_messages,
    "PullObject": runtime_handlers.pull_object,
    "ConfirmMessageReceived": runtime_handlers.confirm_message_received,
}


@dataclass
class Upload:
    """What a node sends for a message: an envelope, the tree of its objects, and these, deflated."""

    envelope: Any
    tree: ObjectTree
    objects: dict[str, bytes]


def upload(reply: Message) -> Upload:
    """Deflate a reply as a ClientApp and its SuperNode do."""
    reply.metadata.__dict__["_message_id"] = reply.object_id
    objects = {name: item.deflate() for name, item in get_all_nested_objects(reply).items()}
    return Upload(message_to_proto(remove_content_from_message(reply)), get_object_tree(reply), objects)


@dataclass
class SuperLink:
    """A SuperLink with one run.

    Attributes:
        answers: What each node sends for a message; its id is that of :attr:`nodes` at the same place.
        calls: Names of the requests of the server so far.
    """

    answers: list[Callable[[Message], Upload | None]]
    nodes: list[int] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = InMemoryObjectStore(verify=False)
        self.state = InMemoryLinkState(NoOpFederationManager(), self.store)
        run = replace(Run.create_empty(RUN_ID), federation_id=NOOP_FEDERATION_ID, primary_task_id=TASK_ID)
        self.state.run_ids[RUN_ID] = RunRecord(run=run)
        self.task = Task(task_id=TASK_ID, run_id=RUN_ID, starting_at="2026", running_at="2026")
        self.state.task_store[TASK_ID] = self.task
        for _ in self.answers:
            node = self.state.create_node("owner", "owner", secrets.token_bytes(32), heartbeat_interval=1e6)
            self.state.activate_node(node, 1e6)
            self.nodes.append(node)

    def grid(self) -> HttpGrid:
        """Return the grid of a ServerApp."""
        grid = HttpGrid(token="token")
        grid._client = self  # type: ignore[assignment]
        grid.set_run(self.state.run_ids[RUN_ID].run)
        return grid

    def __getattr__(self, name: str) -> Callable[[Any], Any]:
        """Answer a request of the server; before it asks for replies, the nodes work."""
        if name not in HANDLERS:
            raise AttributeError(name)

        def call(request: Any) -> Any:
            self.calls.append(name)
            if name == "PullMessages":
                self._work()
            try:
                response = HANDLERS[name](type(request).FromString(request.SerializeToString()), self.state, self.task)
                return type(response).FromString(response.SerializeToString())
            except Exception as error:  # as the HTTP server does
                asked = httpx.Request("POST", f"http://superlink/{name}")
                text = f"500 for {name}: {type(error).__name__}"
                raise httpx.HTTPStatusError(text, request=asked, response=httpx.Response(500)) from error

        return call

    def _work(self) -> None:
        for node, answer in zip(self.nodes, self.answers, strict=True):
            request = PullMessagesRequest(node=Node(node_id=node))
            response = fleet_handlers.pull_messages(request, self.state, self.store)
            for tree in response.message_object_trees:
                ids = [part.object_id for part in iterate_object_tree(tree)]
                message = inflate_object_from_contents(
                    tree.object_id, {name: self.store.get(name) or b"" for name in ids}
                )
                message.metadata.__dict__["_message_id"] = tree.object_id  # type: ignore[attr-defined]
                if (made := answer(message)) is not None:  # type: ignore[arg-type]
                    self.push(node, made)

    def push(self, node: int, made: Upload) -> None:
        """Send what a node has made."""
        request = PushMessagesRequest(
            node=Node(node_id=node), messages_list=[made.envelope], message_object_trees=[made.tree]
        )
        response = fleet_handlers.push_messages(PushMessagesRequest.FromString(request.SerializeToString()), self.state)
        for name in response.objects_to_push:
            if name in made.objects:
                part = PushObjectRequest(
                    node=Node(node_id=node),
                    run_id=RUN_ID,
                    session_id=response.session_id,
                    object_id=name,
                    object_content=made.objects[name],
                )
                fleet_handlers.push_object(part, self.state)
