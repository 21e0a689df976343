"""An honest-but-curious server: it follows the protocol to the bit, and keeps what it sees."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from snnfl import flower
from snnfl.attacks import Budget, get_attack
from snnfl.auditing.scorecard import entries, write_json
from snnfl.auditing.suite import attack_all
from snnfl.auditing.victims import Scope, setting_of, victims_of
from snnfl.config import AuditConfig
from snnfl.workspace import Workspace
from strategies.arrays import tensors_of
from strategies.population import Population
from strategies.secure import Secure
from strategies.update import UpdateRefused, UpdateSpec, check_update

logger = logging.getLogger(__name__)


class Audited(flower.Audited):
    """Record a run of ours: by partition, and only what passes the check of a spec.

    What a server refuses is no update, and hostile bytes shall not fill its disk. A resumed run goes on with the
    recording that it has.

    Args:
        strategy: Any strategy of Flower, guarded or not, which sends all clients of a round the same arrays.
        folder: ``runs/NAME/audit``.
        audit: What to record.
        spec: What a valid update looks like.
    """

    OWN = flower.Audited.OWN | {"spec", "_grid", "_sent"}

    def __init__(self, strategy: Strategy, folder: Path, audit: AuditConfig, spec: UpdateSpec) -> None:
        super().__init__(strategy, folder, max_bytes=audit.max_bytes, rounds=audit.rounds, nodes=audit.clients)
        self.spec = spec
        self._grid: Grid | None = None
        self._sent: dict[str, Tensor] = {}

    def place(self, folder: Path) -> Path:
        """Return the folder itself."""
        return folder

    def sending(self, server_round: int, messages: list[Message], grid: Grid) -> None:
        """Record what all clients of a round get."""
        self._grid = grid
        if messages and self.spec.arrays and self.recording.wants(server_round):
            about = {"config": flower.config_of(messages[0].content)}
            self._sent = tensors_of(self.arrays_of(messages[0]))
            self.recording.write_sent(server_round, self._sent, about)

    def sender(self, reply: Message) -> int | None:
        """Return the partition, which the grid knows."""
        return self._grid.partition_of(reply) if isinstance(self._grid, Population) else reply.metadata.src_node_id

    def receiving(self, reply: Message) -> flower.Received | None:
        """Return a checked update, as it travelled."""
        if not self.spec.arrays:
            return None
        try:
            update = check_update(reply, self.spec, self._sent)
        except UpdateRefused:
            return None  # a guarded strategy says so
        return update.received, update.metrics


class AuditedSums(Audited):
    """Record a run with secure aggregation: what was sent, the sum of the round, and who is in it.

    Args:
        strategy: Which aggregates by secure aggregation, or a wrapper around it.
        folder: ``runs/NAME/audit``.
        audit: What to record.
        secure: The strategy itself.
        images: How many each client has, by partition: partitions follow from the seed, and nodes with data of their
            own say it at the opening question.
    """

    OWN = Audited.OWN | {"secure", "images"}

    def __init__(
        self, strategy: Strategy, folder: Path, audit: AuditConfig, secure: Secure, images: Mapping[int, int]
    ) -> None:
        super().__init__(strategy, folder, audit, secure.spec)
        self.secure, self.images = secure, images

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Record the sum once the strategy has taken the masks out."""
        arrays, metrics = self._own["aggregate_train"](server_round, replies)
        self._safely(f"round {server_round}: the sum", self._summed, server_round)
        return arrays, metrics

    def _summed(self, server_round: int) -> None:
        found, summed, privacy = self.secure.unmasked, self.secure.summed, self.secure.privacy
        if found is None or not self.recording.wants(server_round):
            return
        clients = sorted(found.clients)
        about = {
            "clients": clients,
            "images": [self.images[client] for client in clients],
            "examples": summed.examples,
            "follows": summed.follows,
            "norm": 0.0 if privacy is None else privacy.norm,
            "noise": 0.0 if privacy is None else privacy.spending.noise,
        }
        self.recording.write_sum(server_round, found.numbers, found.known, about)


class LiveAudit:
    """Attack each round as soon as it is recorded, as ``snnfl audit`` does afterwards.

    Args:
        work: Of the server.
        folder: ``runs/NAME/audit``; a round's findings go to ``round-N.json`` there.

    Raises:
        ConfigError: For an unknown attack.
    """

    def __init__(self, work: Workspace, folder: Path) -> None:
        self.setting, self.folder, self.audit = setting_of(work), folder, work.config.audit
        for name in self.audit.attacks:
            get_attack(name)

    def __call__(self, server_round: int) -> None:
        """Attack a round; say in one line per attack what came of it. Whatever goes wrong, the run goes on."""
        audit = self.audit
        if audit.rounds and server_round not in audit.rounds:
            return
        try:
            victims = victims_of(self.setting, self.folder, Scope(rounds=frozenset({server_round})))
            budget = Budget(iterations=audit.iterations, restarts=audit.restarts)
            found = entries(self.setting, attack_all(self.setting, victims, audit.attacks, budget))
            write_json(self.folder / f"round-{server_round:06d}.json", found)
        except Exception as error:  # a spectator must not end what it watches
            logger.warning("round %d is not attacked: %s: %s", server_round, type(error).__name__, error)
            return
        for entry in found:
            logger.info("round %d, attack %s: %s", server_round, entry["attack"], entry["verdict_text"])
