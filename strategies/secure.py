"""Secure aggregation around any strategy to which the weighted mean of the updates is enough."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray
from torch import Tensor

from snnfl.conversion.folding import fold
from snnfl.masking import FieldError, ProtocolError
from snnfl.protocol import ARRAYS, EXAMPLES, METRICS, SECURE_CONFIRM, SECURE_UNMASK, STATE_ROUND
from snnfl.spiking import SpikingNetwork
from snnfl.updates import Converted, Sum, Summed
from snnfl.updates.noised import NoisySum
from strategies.arrays import known, tensors_of
from strategies.bounds import changes, limits
from strategies.flower_internals import filled
from strategies.guarded import Guarded
from strategies.population import Population
from strategies.secure_round import Masked, SecureRound, Verdict, check_masked, with_order
from strategies.update import Update, UpdateSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Unmasked:
    """What the server learned of a round.

    Attributes:
        numbers: The sum, in the ring.
        clients: Partitions of those in it, in no order.
        known: What everybody knew, from which noised updates differ; empty without.
    """

    numbers: NDArray[np.unsignedinteger[Any]]
    clients: tuple[int, ...]
    known: Mapping[str, Tensor]


class Secure(Guarded):
    """Learn the sum of a round's updates and nothing else, then let the base strategy aggregate their mean.

    Each round has five steps (Bonawitz et al. 2017; Bell et al. 2020). Two stand before training, in
    :meth:`configure_train`: clients advertise keys, and share the seeds of their masks among their neighbours in a
    graph that follows from these. With the train message comes what neighbours have sealed for a client, and what it
    sends back is masked. In :meth:`aggregate_train` those whose masked updates have arrived confirm to each other that
    they are in the sum, and tell what takes the masks out of it.
    Whoever fails at a step is one line in the log, and the others go on as long as the graph allows.

    The base strategy gets the mean of the updates, as often as there are updates. So it may be any to which that is
    enough: what it makes of them is what it would make of the updates themselves, to the error of rounding
    (:meth:`~snnfl.updates.Summed.error`). An update cannot be checked any more, and there are neither bounds of updates
    nor detectors: what is checked is the range of the sum, and that the aggregate changes no array by more than
    ``update_bound`` times its scale at the start.

    Args:
        base: Any Flower strategy to which the weighted mean is enough.
        spec: What the mean of updates looks like, and the metrics of clients.
        summed: How updates stand in vectors.
        seed: Seed of the run.
        minimum_replies: Updates in the sum below which nothing is aggregated.
        participation: Probability that a selected client takes part in a round.
        update_bound: How many times the scale of the start an aggregate may change an array; ``None`` for any change.
        tolerance: As :func:`snnfl.masking.layout`.
        timeout: Seconds that each client has for each step.

    Attributes:
        unmasked: Of the last round; ``None`` if its sum stayed masked, or was none of updates.
    """

    def __init__(
        self,
        base: Strategy,
        spec: UpdateSpec,
        summed: Summed,
        *,
        seed: int,
        minimum_replies: int = 1,
        participation: float = 1.0,
        update_bound: float | None = 100.0,
        tolerance: float = 0.1,
        timeout: float | None = None,
    ) -> None:
        super().__init__(
            base,
            spec,
            seed=seed,
            minimum_replies=minimum_replies,
            participation=participation,
            update_bound=update_bound,
        )
        self.summed, self.tolerance, self.timeout = summed, tolerance, timeout
        self.format = summed.format
        self.unmasked: Unmasked | None = None
        self._round: SecureRound | None = None
        self._network: dict[str, Tensor] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Select clients as ever; return train messages for those that have shared their seeds."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        if self.privacy is not None and isinstance(self.summed, NoisySum):
            self.summed.norm, self.summed.noise = self.privacy.norm, self.privacy.spending.noise
            self.summed.at(self.privacy.reference)
        self._round = self.unmasked = None
        if not isinstance(grid, Population):
            raise TypeError(f"secure aggregation needs a Population, which knows its clients; found {type(grid)}")
        nodes = {grid.partitions[m.metadata.dst_node_id]: m.metadata.dst_node_id for m in messages}

        def complain(reply: Message, question: str, verdict: Verdict, reason: str) -> None:
            if question in (SECURE_CONFIRM, SECURE_UNMASK):
                self._log(server_round, reply, verdict, f"{question}: {reason}; its update may be in the sum")
                return
            self._drop("train", server_round, reply, verdict, f"{question}: {reason}")
            counts: dict[str, Any] = {verdict: getattr(self.report, verdict) + 1}
            self.report = replace(self.report, **counts)

        current = SecureRound(
            grid=grid,
            nodes=nodes,
            tolerance=self.tolerance,
            minimum=self.minimum_replies,
            timeout=self.timeout,
            complain=complain,
        )
        try:
            current.prepare()
        except ProtocolError as error:
            logger.warning("round %d: nothing is trained: %s", server_round, error)
            return []
        self._round = current
        about = {"examples": self.summed.examples, "follows": self.summed.follows}
        orders = {node: current.order(client, **about) for client, node in nodes.items()}
        return with_order(messages, {node: order for node, order in orders.items() if order is not None})

    def accepted(self, server_round: int, replies: Iterable[Message]) -> tuple[list[Message], list[Update]]:
        """Unmask the sum of the replies; return as many times their mean."""
        told = {STATE_ROUND} & self.spec.metrics
        valid, masked = self._examine(
            "train",
            server_round,
            replies,
            lambda reply: check_masked(reply, self.summed.length, self.summed.field.dtype.name, told),
        )
        current = self._round
        if current is None or len(valid) < max(2, self.minimum_replies):
            logger.warning("round %d: %d masked updates stay masked", server_round, len(valid))
            return [], []
        clients = [self._partition(reply) for reply in valid]
        try:
            total = current.unmask({client: each.vector for client, each in zip(clients, masked, strict=True)})
            known = dict(self.summed.known) if isinstance(self.summed, NoisySum) else {}
            found = self.summed.decode(total, self._sent, len(clients))
            self.unmasked = Unmasked(numbers=total, clients=tuple(clients), known=known)
        except (ProtocolError, FieldError) as error:
            logger.warning("round %d: the sum of %d updates cannot be used: %s", server_round, len(clients), error)
            return [], []
        finally:
            self._round = None
            for line in () if current.ledger is None else current.ledger.liars():
                logger.warning("round %d: %s", server_round, line)
        if self.privacy is not None and isinstance(self.summed, NoisySum):
            self.privacy.reference = self.summed.known
        if found.clipped:
            count, limit = found.clipped, self.summed.limit
            logger.warning("round %d: %d values were clipped to strategy.secure_range=%g", server_round, count, limit)
        self._network = found.network
        if self.update_bound is not None:
            self._limits = limits([changes(found.state, self._sent)], self.scales, self.update_bound)
        self.report = replace(self.report, summed=True)
        return valid, self._means(found, masked)

    def prepare(self, valid: list[Message], updates: list[Update]) -> list[Message]:
        """Return as many replies as there were updates, each with their mean."""
        arrays = filled((name, known(array)) for name, array in updates[0].arrays.items())
        made = []
        for message, update in zip(valid, updates, strict=True):
            reply = copy.copy(message)
            metrics = MetricRecord({**update.metrics, EXAMPLES: 1.0})
            reply.content = RecordDict({ARRAYS: arrays.copy(), METRICS: metrics})
            made.append(reply)
        return made

    def network_of(self, parameters: Mapping[str, Tensor]) -> SpikingNetwork | None:
        """Return the spiking network of some parameters, as the run simulates it."""
        return self.format.server_network(parameters)

    def aggregated(self, server_round: int, arrays: ArrayRecord, valid: list[Message], updates: list[Update]) -> None:
        """Make the spiking network of the mean, too; the last one stays if an array of the new one is none."""
        if not isinstance(self.format, Converted):
            return
        parameters = dict(self._network)
        if self.summed.follows:
            folded = fold(self.format.graph, tensors_of(arrays))
            parameters |= {n: parameters[n] + a if n.endswith(".bias") else a for n, a in folded.items()}
        for name in self.format.network_names:
            if (mistake := self.format.specs[name].mistake(parameters[name])) is not None:
                message = "round %d: %s of the spiking network: %s; the last network is kept"
                logger.warning(message, server_round, name, mistake)
                return
        self.network = self.network_of(self.format.deployed(parameters))

    def _means(self, found: Sum, masked: list[Masked]) -> list[Update]:
        """Return an update for each client: the mean of all, but for what each has told of itself."""
        own = [{EXAMPLES: 1.0, **each.metrics} for each in masked]
        return [Update(arrays=found.state, state=found.state, metrics={**found.metrics, **each}) for each in own]

    def _partition(self, reply: Message) -> int:
        partition = self._sender(reply)[1]
        return -1 if partition is None else partition
