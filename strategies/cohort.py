"""The clients as partitions: a grid that hides node ids, which differ from engine to engine and run to run.

Flower's node ids are random on Ray and in a deployment, and replies arrive in any order. Floating-point sums depend
on order and Flower's sampling on the list of nodes. This grid shows nodes in the order of their partitions and hands
replies over in that order, so that one seed gives one result everywhere.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from snnfl.protocol import METRICS, PARTITION
from snnfl.rng import derive_seed
from strategies.update import array_bytes, one_line

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2


class CohortError(RuntimeError):
    """The nodes don't fit the configuration."""


@dataclass
class Traffic:
    """Bytes of arrays to (``down``) and from (``up``) the clients, and the seconds spent waiting for replies."""

    down: int = 0
    up: int = 0
    seconds: float = 0.0


@dataclass
class Cohort(Grid):
    """A grid whose nodes are in the order of their partitions.

    Attributes:
        grid: Flower's grid of the engine.
        partitions: Partition by node id.
        traffic: Counted since the last :meth:`take_traffic`.
    """

    grid: Grid
    partitions: dict[int, int] = field(default_factory=dict)
    traffic: Traffic = field(default_factory=Traffic)
    _asked: dict[str, int] = field(default_factory=dict)

    def assemble(self, clients: int, *, timeout: float) -> None:
        """Wait until ``clients`` nodes are connected and learn which partition each one holds.

        Raises:
            CohortError: If they don't connect in time, or don't hold the partitions ``0 .. clients - 1``.
        """
        deadline = time.monotonic() + timeout
        while len(nodes := sorted(self.grid.get_node_ids())) < clients:
            if time.monotonic() > deadline:
                raise CohortError(f"{len(nodes)} of data.clients={clients} nodes connected within {timeout:g} s")
            time.sleep(POLL_SECONDS)
        if len(nodes) > clients:
            raise CohortError(
                f"{len(nodes)} nodes are connected, but data.clients={clients}: set one of them to the other"
            )
        queries = [Message(RecordDict(), node, MessageType.QUERY) for node in nodes]
        for reply in self.grid.send_and_receive(queries, timeout=timeout):
            if not reply.has_content():
                raise CohortError(f"node {reply.metadata.src_node_id} cannot take part: {failure(reply)}")
            record = reply.content.get(METRICS)
            partition = record.get(PARTITION) if isinstance(record, MetricRecord) else None
            self.partitions[reply.metadata.src_node_id] = partition if isinstance(partition, int) else -1
        if sorted(self.partitions.values()) != list(range(clients)):
            raise CohortError(
                f"the nodes hold the partitions {sorted(self.partitions.values())[:20]}; expected each of 0 to "
                f"{clients - 1} once (data.clients={clients})"
            )

    def node_of(self, reply: Message) -> int:
        """Return the node that was asked: for one that is gone the SuperLink answers, under an id of its own."""
        return self._asked.get(reply.metadata.reply_to_message_id, reply.metadata.src_node_id)

    def partition_of(self, reply: Message) -> int:
        """Return the partition of the client that a reply comes from; past the last for an unknown node."""
        return self.partitions.get(self.node_of(reply), len(self.partitions))

    def take_traffic(self) -> Traffic:
        """Return what was counted and start anew."""
        taken, self.traffic = self.traffic, Traffic()
        return taken

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes of the cohort that are connected, in the order of their partitions."""
        return sorted(set(self.grid.get_node_ids()) & self.partitions.keys(), key=self.partitions.__getitem__)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send in the order of partitions; return the replies in that order, whenever they arrived."""
        outgoing = sorted(messages, key=lambda m: self.partitions.get(m.metadata.dst_node_id, -1))
        self.traffic.down += sum(array_bytes(message.content) for message in outgoing)
        start = time.perf_counter()
        received = list(self.grid.send_and_receive(outgoing, timeout=timeout))
        self.traffic.seconds += time.perf_counter() - start
        self._asked = {message.metadata.message_id: message.metadata.dst_node_id for message in outgoing}
        replies = sorted(received, key=self.partition_of)
        self.traffic.up += sum(array_bytes(reply.content) for reply in replies if reply.has_content())
        return replies

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


def failure(reply: Message) -> str:
    """Say in one line why a reply has no content, in the words of whoever sent it."""
    return one_line(reply.error.reason or "no reason given") if reply.has_error() else "it sent no content"


@contextmanager
def seeded_draws(seed: int, server_round: int, purpose: str) -> Iterator[None]:
    """Make what Flower draws from the global generators a function of seed and round.

    It samples nodes by Python's and noise for differential privacy by NumPy's. Their states are put back, so that
    nothing else notices.
    """
    python, numpy = random.getstate(), np.random.get_state()
    drawn = derive_seed(seed, purpose, server_round)
    random.setstate(random.Random(drawn).getstate())
    np.random.set_state(np.random.RandomState([drawn >> 32, drawn & 0xFFFFFFFF]).get_state())
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
