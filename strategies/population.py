"""The population of clients by partition: a grid that hides node ids, which differ from engine to engine.

Flower's node ids are random on Ray and in a deployment, and replies arrive in any order. Floating-point sums depend
on order and Flower's sampling on the list of nodes. This grid shows nodes in the order of their partitions and hands
replies over in that order, so that one seed gives one result everywhere.
"""

from __future__ import annotations

import logging
import math
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Error, Message, MessageType, MetricRecord, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid

from snnfl.config import counted
from snnfl.protocol import EXAMPLES, METRICS, PARTITION, TEST_EXAMPLES
from snnfl.rng import derive_seed
from strategies.simulation import is_simulated
from strategies.update import MAXIMUM_EXAMPLES, array_bytes, one_line

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
PATIENCE_SECONDS, REPEAT_SECONDS = 1.0, 30.0
"""After which it is said that nodes are missing, and said again."""

SETTLED_SECONDS = 5.0
"""After which a simulation, which makes all its nodes at its start, makes no more."""

RAISED = re.compile(r"<class '(?:[\w.]+\.)?(\w+)'>:<'(.*)'>", re.DOTALL)
"""How a SuperNode writes what its ClientApp raised: class and text."""


class PopulationError(RuntimeError):
    """The nodes don't fit the configuration."""


@dataclass(frozen=True)
class Holding:
    """What a node says that it holds.

    Attributes:
        partition: Its number.
        examples: Of its own data those that it trains on; 0 where clients share a data set.
        test_examples: Those that it tests on, likewise.
    """

    partition: int
    examples: int = 0
    test_examples: int = 0


@dataclass
class Traffic:
    """Bytes of arrays to (``down``) and from (``up``) the clients, and the seconds spent waiting for replies."""

    down: int = 0
    up: int = 0
    seconds: float = 0.0


@dataclass
class Population(Grid):
    """A grid whose nodes are in the order of their partitions.

    Attributes:
        grid: Flower's grid of the engine.
        partitions: Partition by node id.
        holdings: What nodes have said of data of their own; empty where clients share a data set.
        traffic: Counted since the last :meth:`take_traffic`.
        timeout: Seconds that a strategy may wait for more nodes than are connected.
    """

    grid: Grid
    partitions: dict[int, int] = field(default_factory=dict)
    holdings: list[Holding] = field(default_factory=list)
    traffic: Traffic = field(default_factory=Traffic)
    timeout: float = math.inf
    _asked: dict[str, int] = field(default_factory=dict)
    _choosing_since: float | None = None
    _shown: tuple[set[int], list[int]] = field(default_factory=lambda: (set(), []))

    def assemble(
        self, clients: int, *, timeout: float, minimum_replies: int = 1, ask: bool = False, own_data: bool = False
    ) -> None:
        """Wait until ``clients`` nodes are connected and learn which partition each one holds.

        A node that fails at the question, doesn't answer in time, or names a partition that isn't there or that another
        one names too, takes no part in the run: one line in the log says so, and its partition is nobody's. So no node
        can keep the others from starting. The run goes on if ``minimum_replies`` nodes are left. Nodes whose partitions
        the grid knows are asked only with ``ask``, to hear whether they can take part, or with ``own_data``, to hear
        whether their own data fit and how many samples they have.

        Raises:
            PopulationError: If they don't connect in time, too few can take part, or the grid has placed other
                partitions.
        """
        self.timeout = timeout
        nodes = self._connected(clients, timeout)
        place: Callable[[], Mapping[int, int]] | None = getattr(self.grid, "partition_by_node", None)
        if place is None or ask or own_data:
            held = self._ask(nodes, clients, timeout, minimum_replies, own_data)
            self.partitions = {node: holding.partition for node, holding in held.items()}
            self.holdings = list(held.values()) if own_data else []
            return
        self.partitions = dict(place())  # our in-process grid knows
        if (placed := sorted(self.partitions.values())) != list(range(clients)):
            raise PopulationError(f"the grid holds {counted(len(placed), 'partition')}, but data.clients={clients}")

    def _connected(self, clients: int, timeout: float) -> list[int]:
        start = changed = time.monotonic()
        count, due, simulated = 0, start + PATIENCE_SECONDS, is_simulated(self.grid)
        while len(nodes := sorted(self.grid.get_node_ids())) < clients:
            now = time.monotonic()
            if len(nodes) != count:
                count, changed = len(nodes), now
            if simulated and count and now - changed > SETTLED_SECONDS:
                raise PopulationError(
                    f"Flower simulates {count} SuperNodes, but data.clients={clients}; say "
                    f"`flwr run … --federation-config num-supernodes={clients}`, or data.clients={count}"
                )
            if now - start > timeout:
                raise PopulationError(f"{count} of data.clients={clients} nodes connected within {timeout:g} s")
            if now > due:
                logger.warning("%d of data.clients=%d nodes connected, waiting (up to %g s)", count, clients, timeout)
                due = now + REPEAT_SECONDS
            time.sleep(POLL_SECONDS)
        return nodes

    def _ask(
        self, nodes: Iterable[int], clients: int, timeout: float, minimum_replies: int, own_data: bool
    ) -> dict[int, Holding]:
        """Ask nodes what they hold; leave out those of which none could be told."""
        queries = [Message(RecordDict(), node, MessageType.QUERY) for node in nodes]
        replies = self._exchange(queries, timeout)
        answers = {self.node_of(reply): _holding(reply, clients, own_data) for reply in replies}
        holders = Counter(answer.partition for answer in answers.values() if isinstance(answer, Holding))
        held: dict[int, Holding] = {}
        complaints: list[str] = []
        for node, answer in answers.items():
            if isinstance(answer, str):
                complaints.append(f"node {node} cannot take part: {answer}")
            elif (count := holders[answer.partition]) > 1:
                reason = f"{count} nodes say that they hold partition {answer.partition}"
                complaints.append(f"node {node} cannot take part: {reason}")
            else:
                held[node] = answer
        if len(held) < minimum_replies:
            raise PopulationError(
                f"{len(held)} of {len(queries)} nodes can take part, fewer than "
                f"strategy.minimum_replies={minimum_replies}; {complaints[0]}"
            )
        for complaint in complaints:
            logger.warning("%s", complaint)
        return held

    def node_of(self, reply: Message) -> int:
        """Return the node that was asked: for one that is gone the SuperLink answers, under an id of its own."""
        return self._asked.get(reply.metadata.reply_to_message_id, reply.metadata.src_node_id)

    def partition_of(self, reply: Message) -> int:
        """Return the partition of the client that a reply comes from; past the last for an unknown node."""
        found = self.partitions.get(self.node_of(reply))
        return max(self.partitions.values(), default=-1) + 1 if found is None else found

    def take_traffic(self) -> Traffic:
        """Return what was counted and start anew."""
        taken, self.traffic = self.traffic, Traffic()
        return taken

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes of the population that are connected, in the order of their partitions.

        Raises:
            PopulationError: If a strategy has asked for :attr:`timeout` seconds without sending anything: Flower's own
                wait for more nodes for ever (``sample_nodes`` in ``flwr/serverapp/strategy/strategy_utils.py``).
        """
        connected = set(self.grid.get_node_ids()) & self.partitions.keys()
        if connected != self._shown[0]:
            self._shown = connected, sorted(connected, key=self.partitions.__getitem__)
        now = time.monotonic()
        self._choosing_since = now if self._choosing_since is None else self._choosing_since
        if now - self._choosing_since > self.timeout:
            raise PopulationError(
                f"{len(connected)} of {len(self.partitions)} nodes are connected, and the strategy has waited "
                f"strategy.timeout={self.timeout:g} s for more"
            )
        return list(self._shown[1])

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send in the order of partitions; return one reply per message in that order, whenever they arrived.

        Where none arrived in time, it is an error reply that says so.
        """
        outgoing = sorted(messages, key=lambda m: self.partitions.get(m.metadata.dst_node_id, -1))
        self._choosing_since = None
        self.traffic.down += sum(array_bytes(message.content) for message in outgoing)
        start = time.perf_counter()
        replies = sorted(self._exchange(outgoing, timeout), key=self.partition_of)
        self.traffic.seconds += time.perf_counter() - start
        self.traffic.up += sum(array_bytes(reply.content) for reply in replies if reply.has_content())
        return replies

    def _exchange(self, outgoing: list[Message], timeout: float | None) -> list[Message]:
        """Send and receive; put an error reply in the place of each that didn't come, and drop a second one."""
        received = list(self.grid.send_and_receive(outgoing, timeout=timeout))
        self._asked = {message.metadata.message_id: message.metadata.dst_node_id for message in outgoing}
        answers = {reply.metadata.reply_to_message_id: reply for reply in reversed(received) if self._genuine(reply)}
        late = f"no reply within {timeout:g} s" if timeout is not None else "no reply"
        return [
            answers.get(message.metadata.message_id)
            or Message(Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, late), reply_to=message)
            for message in outgoing
        ]

    def _genuine(self, reply: Message) -> bool:
        """Tell whether a reply comes from the node that was asked, or from the SuperLink that says why none comes."""
        asked, sender = self._asked.get(reply.metadata.reply_to_message_id), reply.metadata.src_node_id
        if asked == sender or (asked is not None and sender == SUPERLINK_NODE_ID and reply.has_error()):
            return True
        what = "an answer to nothing that was asked" if asked is None else f"in the name of node {asked}"
        logger.warning("a forged reply of node %d is ignored: %s", sender, what)
        return False

    def set_run(self, run: object) -> None:
        """Pass on."""
        self.grid.set_run(run)  # type: ignore[arg-type]

    @property
    def run(self) -> object:  # type: ignore[override]
        """Pass on."""
        return self.grid.run

    def create_message(self, *args: object, **kwargs: object) -> Message:
        """Pass on."""
        return self.grid.create_message(*args, **kwargs)  # type: ignore[arg-type]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass on."""
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pass on, in the order of partitions."""
        return sorted(self.grid.pull_messages(message_ids), key=self.partition_of)


def _holding(reply: Message, clients: int, own_data: bool) -> Holding | str:
    """Return what a node says that it holds, or why it names no partition of ``0 .. clients - 1``, or no samples."""
    if not reply.has_content():
        return failure(reply)
    record = reply.content.get(METRICS)
    said = record if isinstance(record, MetricRecord) else MetricRecord()
    partition = said.get(PARTITION)
    if not isinstance(partition, int) or not 0 <= partition < clients:
        return f"it named no partition from 0 to {clients - 1} (data.clients={clients})"
    if not own_data:
        return Holding(partition)
    examples, tests = said.get(EXAMPLES), said.get(TEST_EXAMPLES)
    if not all(isinstance(count, int) and 1 <= count <= MAXIMUM_EXAMPLES for count in (examples, tests)):
        return f"it named no number of samples of its own (1 to {MAXIMUM_EXAMPLES}), as data.source=own asks"
    return Holding(partition, examples, tests)  # type: ignore[arg-type]


def failure(reply: Message) -> str:
    """Say in one line why a reply has no content, in the words of whoever sent it."""
    if not reply.has_error():
        return "it sent no content"
    reason = str(reply.error.reason or "no reason given")
    raised = RAISED.fullmatch(reason)
    return one_line(": ".join(raised.groups()) if raised else reason)


@contextmanager
def seeded_draws(seed: int, server_round: int, purpose: str) -> Iterator[None]:
    """Make what Flower draws from the global generators a function of seed and round.

    It samples nodes by Python's and noise for differential privacy by NumPy's. Their states are put back, so that
    nothing else notices.
    """
    python, numpy = random.getstate(), np.random.get_state()
    drawn = derive_seed(seed, purpose, server_round)
    random.seed(drawn)
    np.random.seed([drawn >> 32, drawn & 0xFFFFFFFF])
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
