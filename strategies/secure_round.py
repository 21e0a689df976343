"""The server's half of secure aggregation as messages: four questions about a round's masks, and their answers."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from snnfl.masking import (
    FEWEST_CLIENTS,
    KEY_BYTES,
    Ledger,
    ProtocolError,
    PublicKeys,
    Revealed,
    Roster,
    Shared,
    check_keys,
    layout,
    wire,
)
from snnfl.protocol import (
    ARRAYS,
    MASKED,
    METRICS,
    SECURE,
    SECURE_CONFIRM,
    SECURE_KEYS,
    SECURE_SHARES,
    SECURE_UNMASK,
    STATE_ROUND,
)
from strategies.population import failure
from strategies.update import UpdateRefused, one_line, read_array

Verdict: TypeAlias = Literal["failed", "refused"]

Complaint: TypeAlias = Callable[[Message, str, Verdict, str], None]
"""``(reply, question, verdict, reason)``: told of each answer that is of no use."""


@dataclass(kw_only=True)
class Masked:
    """A checked reply to a train message: what of it a server can read, and what it cannot."""

    vector: NDArray[np.unsignedinteger[Any]]
    metrics: dict[str, float]


@dataclass(kw_only=True)
class SecureRound:
    """One round's exchange, from the clients that are asked to the sum of those that answer.

    Args:
        grid: Of the run.
        nodes: Of the clients that are asked, by partition.
        tolerance: As :func:`snnfl.masking.layout`.
        minimum: Clients below which nothing is begun; fewer than three hide nothing.
        timeout: Seconds for each answer.
        complain: Told of each reply that is of no use.

    Attributes:
        ledger: What is known of the masks, once the clients have advertised their keys.
    """

    grid: Grid
    nodes: Mapping[int, int]
    tolerance: float
    minimum: int
    timeout: float | None
    complain: Complaint
    session: bytes = field(default_factory=lambda: secrets.token_bytes(KEY_BYTES))
    ledger: Ledger | None = None

    def prepare(self) -> None:
        """Have the clients advertise their keys and share their seeds.

        Raises:
            ProtocolError: If too few do.
        """
        seen = set[bytes]()

        def check(client: int, answer: tuple[PublicKeys, bytes]) -> None:
            public, _ = answer
            check_keys(public)
            if seen & {public.mask, public.channel}:
                raise ProtocolError("it advertises a key of another client")
            seen.update((public.mask, public.channel))

        questions = {client: {"session": self.session} for client in self.nodes}
        advertised: dict[int, tuple[PublicKeys, bytes]] = self._ask(SECURE_KEYS, questions, wire.read_advertised, check)
        self._enough(advertised)
        public = {client: keys for client, (keys, _) in advertised.items()}
        roster = Roster(session=self.session, public=public, rule=layout(len(public), self.tolerance))
        ledger = Ledger(session=self.session, threshold=roster.rule.threshold, graph=roster.graph, public=roster.public)
        told = {client: wire.roster(self.session, advertised, near) for client, near in ledger.graph.items()}
        self._ask(SECURE_SHARES, told, wire.read_shared, ledger.accept)
        self._enough(ledger.shared)
        self.ledger = ledger

    def order(self, client: int, **about: int | bool) -> ConfigRecord | None:
        """Return what a train message tells a client of the masks; ``None`` for one that is out of the round."""
        ledger = self.ledger
        if ledger is None or client not in ledger.shared:
            return None
        packages = ledger.packages(client)
        told: wire.Record = {"session": self.session, "senders": list(packages), "packages": list(packages.values())}
        return ConfigRecord({**told, **about})

    def unmask(self, uploads: Mapping[int, NDArray[np.unsignedinteger[Any]]]) -> NDArray[np.unsignedinteger[Any]]:
        """Have the clients tell what takes the masks out of their sum, and return it.

        Raises:
            ProtocolError: If the sum stays masked.
        """
        ledger = self.ledger
        if ledger is None:
            raise ProtocolError("no client has shared its seeds")
        questions: dict[int, wire.Record] = {}
        for client in uploads:
            survivors, dropped = ledger.asked(client, uploads)
            questions[client] = {"session": self.session, "survivors": survivors, "dropped": dropped}

        def confirmed(client: int, tokens: Mapping[int, bytes]) -> None:
            ledger.confirmed(client, tokens, uploads)

        def check(client: int, told: Revealed) -> None:
            ledger.check(client, told, uploads)

        there = self._ask(SECURE_CONFIRM, questions, wire.read_tokens, confirmed)
        told = {c: {"session": self.session, **wire.tokens(ledger.tokens.get(c, {}))} for c in there}
        self._ask(SECURE_UNMASK, told, wire.read_revealed, check)
        return ledger.unmask(uploads)

    def _ask(
        self,
        question: str,
        records: Mapping[int, Mapping[str, Any]],
        read: Callable[[Mapping[str, Any]], Any],
        take: Callable[[int, Any], None] = lambda client, answer: None,
    ) -> dict[int, Any]:
        """Ask clients one question; return the answers that can be read and are taken."""
        partitions = {self.nodes[client]: client for client in records}
        messages = [
            Message(RecordDict({SECURE: ConfigRecord(dict(record))}), self.nodes[client], f"query.{question}")
            for client, record in records.items()
        ]
        answers = dict[int, Any]()
        replies = list(self.grid.send_and_receive(messages, timeout=self.timeout))
        sent = {message.metadata.message_id: partitions[message.metadata.dst_node_id] for message in messages}
        for reply in replies:
            client = sent[reply.metadata.reply_to_message_id]
            if not reply.has_content():
                self.complain(reply, question, "failed", failure(reply))
                continue
            try:
                answer = read(_record(reply))
                take(client, answer)
            except ProtocolError as error:
                self.complain(reply, question, "refused", one_line(str(error)))
                continue
            answers[client] = answer
        return answers

    def _enough(self, clients: Mapping[int, PublicKeys | Shared | tuple[PublicKeys, bytes]]) -> None:
        if len(clients) < FEWEST_CLIENTS:
            raise ProtocolError(f"{len(clients)} clients are left, a sum hides nothing of fewer than {FEWEST_CLIENTS}")
        if len(clients) < self.minimum:
            raise ProtocolError(f"{len(clients)} clients are left, {self.minimum} are needed")


def check_masked(message: Message, length: int, dtype: str, metrics: Iterable[str]) -> Masked:
    """Decode a reply to a train message.

    Args:
        message: The reply.
        length: Of the masked vector.
        dtype: Of its elements.
        metrics: Which it tells beside it.

    Raises:
        UpdateRefused: For anything else than these.
    """
    content: Mapping[str, Any] = message.content if message.has_content() else {}
    arrays, told = content.get(ARRAYS), content.get(METRICS)
    if len(content) != 2 or not isinstance(arrays, ArrayRecord) or not isinstance(told, MetricRecord):
        raise UpdateRefused(f"expected the records {ARRAYS!r} and {METRICS!r} alone")
    if list(arrays) != [MASKED] or set(told) != set(metrics):
        raise UpdateRefused(f"expected the array {MASKED!r} and the metrics {sorted(metrics)}")
    if any(type(value) is not int or not 0 <= value < 2**31 for value in told.values()):
        raise UpdateRefused(f"metric {STATE_ROUND}: expected a round")
    try:
        vector = read_array(arrays[MASKED], (length,), dtype)
    except Exception as error:  # whatever a crafted header makes NumPy raise
        raise UpdateRefused(f"{MASKED}: {one_line(str(error)) or type(error).__name__}") from None
    numbers: dict[str, Any] = dict(told)
    return Masked(vector=vector, metrics={name: float(value) for name, value in numbers.items()})


def _record(reply: Message) -> Mapping[str, Any]:
    record = reply.content.get(SECURE)
    if len(reply.content) != 1 or not isinstance(record, ConfigRecord):
        raise ProtocolError(f"expected the record {SECURE!r} alone")
    return record


def with_order(messages: Sequence[Message], orders: Mapping[int, ConfigRecord]) -> list[Message]:
    """Return the messages of those nodes for which there is an order, each with it.

    Flower gives all messages of a round one content.
    """
    return [
        Message(
            RecordDict({**message.content, SECURE: orders[message.metadata.dst_node_id]}),
            message.metadata.dst_node_id,
            message.metadata.message_type,
            ttl=message.metadata.ttl,
            group_id=message.metadata.group_id,
        )
        for message in messages
        if message.metadata.dst_node_id in orders
    ]
