"""An honest-but-curious server: it follows the protocol to the bit, and keeps what it sees."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from snnfl.attacks import Budget, get_attack
from snnfl.auditing.recording import Recording
from snnfl.auditing.scorecard import entries, write_json
from snnfl.auditing.suite import attack_all
from snnfl.auditing.victims import Scope, victims_of
from snnfl.config import Config
from snnfl.protocol import ARRAYS
from snnfl.workspace import Workspace
from strategies.population import Population
from strategies.update import UpdateRefused, UpdateSpec, check_update

logger = logging.getLogger(__name__)


class Audited(Strategy):
    """Record what a strategy sends and receives, and change nothing of it.

    Replies are recorded as they arrive, before anything is aggregated, but only those that pass the check of a spec:
    what a server refuses is no update, and hostile bytes shall not fill its disk.

    Args:
        strategy: Any strategy of Flower, guarded or not, which sends all clients of a round the same arrays.
        recording: Where, and of which rounds and clients.
        spec: What a valid update looks like.
    """

    def __init__(self, strategy: Strategy, recording: Recording, spec: UpdateSpec) -> None:
        self.strategy = strategy
        self.recording = recording
        self.spec = spec
        self._grid: Grid | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Record what is sent."""
        self._grid = grid
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        sent = messages[0].content.get(ARRAYS) if messages else None
        if self.recording.wants(server_round) and isinstance(sent, ArrayRecord) and sent:
            self.recording.write_sent(server_round, sent.to_torch_state_dict())
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Record what is received."""
        arrived = list(replies)
        for reply in arrived:
            self._record(server_round, reply)
        return self.strategy.aggregate_train(server_round, arrived)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Pass on."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Pass on."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Pass on."""
        self.strategy.summary()

    def _record(self, server_round: int, reply: Message) -> None:
        grid, spec = self._grid, self.spec
        partition = grid.partition_of(reply) if isinstance(grid, Population) else reply.metadata.src_node_id
        if reply.has_error() or not spec.arrays or not self.recording.wants(server_round, partition):
            return
        try:
            update = check_update(reply, spec)
        except UpdateRefused:
            return  # a guarded strategy says so
        self.recording.write_received(server_round, partition, update.arrays, update.metrics)


def recording_of(config: Config, folder: Path) -> Recording:
    """Return the recording that a configuration asks for."""
    audit = config.audit
    return Recording(folder, audit.max_bytes, frozenset(audit.rounds), frozenset(audit.clients))


class LiveAudit:
    """Attack each round as soon as it is recorded, as ``snnfl audit`` does afterwards.

    Args:
        work: Of the server.
        folder: ``runs/NAME/audit``; a round's findings go to ``round-N.json`` there.

    Raises:
        ConfigError: For an unknown attack.
    """

    def __init__(self, work: Workspace, folder: Path) -> None:
        self.work, self.folder, self.audit = work, folder, work.config.audit
        for name in self.audit.attacks:
            get_attack(name)

    def __call__(self, server_round: int) -> None:
        """Attack a round; say in one line per attack what came of it. Whatever goes wrong, the run goes on."""
        audit = self.audit
        if audit.rounds and server_round not in audit.rounds:
            return
        try:
            victims = victims_of(self.work, self.folder, Scope(rounds=frozenset({server_round})))
            budget = Budget(iterations=audit.iterations, restarts=audit.restarts)
            found = entries(self.work.config, attack_all(self.work, victims, audit.attacks, budget))
            write_json(self.folder / f"round-{server_round:06d}.json", found)
        except Exception as error:  # a spectator must not end what it watches
            logger.warning("round %d is not attacked: %s: %s", server_round, type(error).__name__, error)
            return
        for entry in found:
            logger.info("round %d, attack %s: %s", server_round, entry["attack"], entry["verdict_text"])
