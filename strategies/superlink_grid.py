"""How replies come out of a SuperLink.

``HttpGrid.pull_messages`` inflates the replies of a batch in one loop that catches HTTP errors alone, so that a node
whose objects don't inflate ends the run of all. It waits up to two hours for objects that a node has announced and
doesn't send, and takes from a reply's own bytes whom it comes from. :class:`SuperLinkGrid` takes each reply by itself:
what cannot be read becomes a *failed* reply of its node, and the SuperLink's word says who sent it.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import httpx
from flwr.app import ArrayRecord, Error, Message, Metadata
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid

from strategies.flower_internals import (
    SYSTEM_MESSAGE_TYPE,
    ConfirmMessageReceivedRequest,
    Envelope,
    ObjectPullError,
    ObjectUnavailableError,
    PullAppMessagesRequest,
    PullAppMessagesResponse,
    differs,
    get_object_body,
    get_object_head_values_from_object_content,
    inflatable_class_registry,
    inflate_object_from_contents,
    iterate_object_tree,
    make_message,
    make_pull_object_fn_protobuf,
    pull_objects,
    require,
    take_metadata,
)
from strategies.update import array_bytes, one_line

logger = logging.getLogger(__name__)

POLL_SECONDS = 3.0
"""Between two questions to the SuperLink, as in Flower."""

PATIENCE = 3
"""How often the SuperLink may fail at one reply."""

GROWTH, SLACK_BYTES, SLACK_OBJECTS = 8, 64 * 2**20, 1000
"""A reply may have so many times the bytes and objects of what was sent, and so many more. An update of this project
has about the size of what was sent; biases in time, for 1,000 steps and 10,000 channels, are another 40 MB."""


def shielded(grid: Grid) -> Grid:
    """Return a grid in which no node's reply can end the run of the others.

    Only that of a deployment needs it: in a simulation nothing is deflated, and replies are made by Flower or by us.

    Raises:
        IncompatibleLibraryError: For a grid of a Flower that isn't known here.
    """
    kind = type(grid)
    if not kind.__module__.startswith("flwr.") or kind.__name__ == "InMemoryGrid":
        return grid
    if kind.__name__ != "HttpGrid":
        raise differs(f"the grid is a {kind.__module__}.{kind.__name__}")
    require(kind, "_runtime_client", "run")
    require(grid, "node")
    return SuperLinkGrid(grid)


@dataclass
class Arrival:
    """A reply that the SuperLink has announced.

    Attributes:
        envelope: What the SuperLink says of it: nobody can answer what another node was asked.
        wanted: Identifiers of its objects.
        most_objects: That it may have.
        most_bytes: That they may have together.
        contents: Those that have arrived.
        incomplete: Whether one of them has been asked for in vain.
        stumble: At which the SuperLink has failed instead, if it has.
        stumbles: How often it has failed so far.
    """

    envelope: Envelope
    wanted: list[str]
    most_objects: int
    most_bytes: int
    contents: dict[str, bytes] = field(default_factory=dict)
    incomplete: bool = False
    stumble: httpx.HTTPStatusError | None = None
    stumbles: int = 0

    def pull(self, fetch: Callable[[str], bytes]) -> bool:
        """Fetch what is missing; tell whether all is there.

        Raises:
            ObjectPullError: If an object will never be there.
            HTTPStatusError: If the SuperLink fails once more than it may, such as at a locked database.
            ValueError: If it has too many objects or bytes.
        """
        if len(self.wanted) > self.most_objects:
            raise ValueError(f"it has more than {self.most_objects} objects")
        self.incomplete, self.stumble = False, None
        missing = [object_id for object_id in self.wanted if object_id not in self.contents]
        try:
            pull_objects(missing, lambda object_id: self._take(object_id, fetch), max_tries_per_object=1)
        except ObjectPullError:
            if not self.incomplete:
                raise
        if self.stumble is not None:
            self.stumbles += 1
            if self.stumbles == PATIENCE:
                raise self.stumble
        return not self.incomplete

    def _take(self, object_id: str, fetch: Callable[[str], bytes]) -> bytes:
        self._check(sum(map(len, list(self.contents.values()))))
        try:
            content = fetch(object_id)
        except ObjectUnavailableError:
            self.incomplete = True
            raise
        except httpx.HTTPStatusError as error:
            self.incomplete, self.stumble = True, error
            raise ObjectUnavailableError(object_id) from None
        self.contents[object_id] = content
        return content

    def inflate(self) -> Message:
        """Make the reply of its objects.

        Raises:
            Exception: Anything, for anything may have been sent.
        """
        self._check(sum(map(len, self.contents.values())) + _chunk_bytes(self.contents))
        message = inflate_object_from_contents(self.envelope.metadata.message_id, self.contents)
        if not isinstance(message, Message):
            raise TypeError(f"expected a Message, found {type(message).__name__}")
        claimed, known = message.metadata, self.envelope.metadata
        if (claimed.src_node_id, claimed.reply_to_message_id) != (known.src_node_id, known.reply_to_message_id):
            raise ValueError(f"it says that it is another message's answer, of node {claimed.src_node_id}")
        take_metadata(message, known)
        return message

    def failed(self, reason: str) -> Message:
        """Return an error reply of its node in the place of the reply."""
        known = self.envelope.metadata
        return _error(known.run_id, known.src_node_id, known.reply_to_message_id, reason)

    def _check(self, size: int) -> None:
        if size > self.most_bytes:
            raise ValueError(f"it has more than {self.most_bytes} bytes")


class SuperLinkGrid(Grid):
    """Flower's ``HttpGrid``, but for how it takes replies.

    Each reply that the SuperLink announces is taken alone. If it doesn't inflate, whatever that raises, if it has many
    times the size of what was sent, if it claims to be someone else's or to answer something else, or if its objects
    haven't come when the time is over, an error reply of the node that was asked stands in its place.

    Args:
        grid: Flower's ``HttpGrid``.
    """

    def __init__(self, grid: Any) -> None:
        self._grid = grid
        self._sent_bytes = 0
        self._sent_arrays = 0
        self._together = True
        self._stumbles: Counter[str] = Counter()
        self._arriving: dict[str, Arrival] = {}

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and wait for their replies, at most ``timeout`` seconds; one that doesn't come is absent."""
        waiting = set(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting:
            arrived = self.pull_messages(waiting)
            replies += arrived
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
            left = POLL_SECONDS if deadline is None else deadline - time.monotonic()
            if not waiting or left <= 0:
                break
            time.sleep(min(POLL_SECONDS, left))
        late = [self._arriving.pop(asked) for asked in sorted(waiting & self._arriving.keys())]
        return [*replies, *(arrival.failed("its reply was announced, but not sent in time") for arrival in late)]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages; return the identifiers of those that the SuperLink has taken."""
        sent = list(messages)
        for message in sent:
            records = [record for record in message.content.values() if isinstance(record, ArrayRecord)]
            self._sent_bytes = max(self._sent_bytes, array_bytes(message.content))
            self._sent_arrays = max(self._sent_arrays, sum(map(len, records)))
        return [name for name in self._grid.push_messages(sent) if name]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that have arrived in full, and an error reply for each that cannot be read."""
        asked = set(message_ids)
        replies = self._ask(sorted(asked - self._arriving.keys()))
        for message_id in sorted(asked & self._arriving.keys()):
            arrival = self._arriving[message_id]
            if (reply := self._take(arrival)) is not None:
                del self._arriving[message_id]
                replies.append(reply)
        return replies

    def _ask(self, message_ids: list[str]) -> list[Message]:
        """Learn which replies there are; return error replies for those about which the SuperLink cannot answer.

        A tree of objects that is too deep, or a locked database, is its status 500, for all that are asked for at once.
        """
        replies = []
        for batch in [message_ids] if self._together else [[message_id] for message_id in message_ids]:
            try:
                answer = self._grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=batch))
            except (httpx.HTTPStatusError, ValueError) as error:  # ValueError: an answer that doesn't parse
                if self._together:
                    line = "the SuperLink fails at a reply; from now on each is asked for alone: %s"
                    logger.warning(line, one_line(str(error)))
                    self._together = False
                    return self._ask(message_ids)
                self._stumbles[batch[0]] += 1
                if self._stumbles[batch[0]] == PATIENCE:
                    reason = f"the SuperLink cannot hand over its reply: {type(error).__name__}: {error}"
                    replies.append(_error(self._grid.run.run_id, SUPERLINK_NODE_ID, batch[0], reason))
                continue
            self._announce(batch, answer)
        return replies

    def _announce(self, asked: list[str], answer: PullAppMessagesResponse) -> None:
        """Take note of replies."""
        objects = 2 * GROWTH * self._sent_arrays + SLACK_OBJECTS
        for envelope, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
            question, node = envelope.metadata.reply_to_message_id, envelope.metadata.src_node_id
            if question not in asked:
                logger.warning("a message of node %d that answers no question is ignored", node)
                continue
            wanted = dict.fromkeys(part.object_id for part in islice(iterate_object_tree(tree), objects + 1))
            self._arriving[question] = Arrival(envelope, list(wanted), objects, GROWTH * self._sent_bytes + SLACK_BYTES)

    def _take(self, arrival: Arrival) -> Message | None:
        """Pull and inflate a reply; ``None`` if it isn't all there yet."""
        client, node, run_id = self._grid._runtime_client, self._grid.node, self._grid.run.run_id
        try:
            if not arrival.pull(make_pull_object_fn_protobuf(client.PullObject, node, run_id)):
                return None
            reply = arrival.inflate()
        except httpx.TransportError:  # the SuperLink is gone, not the reply
            raise
        except Exception as error:  # what a node sends may raise anything; that is its own affair
            reply = arrival.failed(f"its reply cannot be read: {type(error).__name__}: {error}")
        root = arrival.envelope.metadata.message_id
        try:
            client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(node=node, run_id=run_id, message_object_id=root)
            )
        except httpx.HTTPStatusError as error:  # the reply is here; the SuperLink keeps it a while longer
            logger.warning("the SuperLink doesn't take note of a reply: %s", one_line(str(error)))
        return reply

    def get_node_ids(self) -> Iterable[int]:
        """Pass on."""
        ids: Iterable[int] = self._grid.get_node_ids()
        return ids

    def set_run(self, run: Any) -> None:
        """Pass on."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """Pass on."""
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Pass on."""
        made: Message = self._grid.create_message(*args, **kwargs)
        return made


def _error(run_id: int, node: int, question: str, reason: str) -> Message:
    """Make an error reply of a node to a question."""
    metadata = Metadata(
        run_id=run_id,
        message_id="",
        src_node_id=node,
        dst_node_id=SUPERLINK_NODE_ID,
        reply_to_message_id=question,
        group_id="",
        created_at=time.time(),
        ttl=0.0,
        message_type=SYSTEM_MESSAGE_TYPE,
    )
    return make_message(metadata, error=Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, one_line(reason)))


def _chunk_bytes(contents: Mapping[str, bytes]) -> int:
    """Count the bytes of all arrays: an array names its chunks, the same one as often as it likes."""
    total = 0
    array = inflatable_class_registry["Array"]
    for content in contents.values():
        kind, chunks, _ = get_object_head_values_from_object_content(content)
        if kind == "Array":
            named = json.loads(get_object_body(content, array))["arraychunk_ids"]
            total += sum(len(contents[chunks[index]]) for index in named)
    return total
