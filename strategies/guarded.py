"""A wrapper around any Flower strategy that lets nothing unchecked into an aggregate."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from snnfl.protocol import EVALUATE_METRICS
from strategies.cohort import Cohort, failure, seeded_sampling
from strategies.update import Update, UpdateRefused, UpdateSpec, check_metrics, check_update, one_line

logger = logging.getLogger(__name__)

Checked = TypeVar("Checked")


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    """What became of the replies of a round.

    Attributes:
        updates: The checked updates, in the order of partitions.
        evaluations: Metrics of the clients that evaluated the received model, likewise.
        refused: Replies that failed the check.
        failed: Replies that carried an error, or didn't come in time.
        aggregated: Whether the round has new weights; with too few valid replies it keeps the old ones.
        seconds: Spent on checking and aggregating.
    """

    updates: tuple[Update, ...] = ()
    evaluations: tuple[dict[str, float], ...] = ()
    refused: int = 0
    failed: int = 0
    aggregated: bool = False
    seconds: float = 0.0


class Guarded(Strategy):
    """Check every update, then let the base strategy do what it always does.

    A reply that carries an error, or fails :func:`~strategies.update.check_update`, is dropped with one line in the
    log and counted in :attr:`report`. With fewer than ``minimum_replies`` left, the round keeps the old weights.

    Args:
        base: Any Flower strategy.
        spec: What a valid update looks like.
        seed: Seed of the run: node selection becomes a function of it and the round.
        minimum_replies: Valid replies below which nothing is aggregated.
    """

    def __init__(self, base: Strategy, spec: UpdateSpec, *, seed: int, minimum_replies: int = 1) -> None:
        self.base = base
        self.spec = spec
        self.seed = seed
        self.minimum_replies = minimum_replies
        self.report = RoundReport()
        self._grid: Grid | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the base strategy select clients, reproducibly."""
        self._grid, self.report = grid, RoundReport()
        with seeded_sampling(self.seed, server_round, "train selection"):
            return list(self.base.configure_train(server_round, arrays, config, grid))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the valid replies; ``(None, None)`` keeps the old weights."""
        start = time.perf_counter()
        valid, updates = self._examine(server_round, replies, lambda reply: check_update(reply, self.spec))
        if len(valid) < self.minimum_replies:
            message = "round %d: %d valid replies, fewer than strategy.minimum_replies=%d; the old weights are kept"
            logger.warning(message, server_round, len(valid), self.minimum_replies)
            return None, None
        aggregate = self.base.aggregate_train(server_round, self.prepare(valid, updates))
        seconds = time.perf_counter() - start
        self.report = replace(self.report, updates=tuple(updates), aggregated=aggregate[0] is not None, seconds=seconds)
        return aggregate

    def prepare(self, valid: list[Message], updates: list[Update]) -> list[Message]:
        """Return the replies that the base strategy aggregates; here the received ones as they are."""
        return valid

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the base strategy select clients, reproducibly."""
        with seeded_sampling(self.seed, server_round, "evaluate selection"):
            return list(self.base.configure_evaluate(server_round, arrays, config, grid))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Aggregate the valid metrics."""
        valid, metrics = self._examine(
            server_round, replies, lambda reply: check_metrics(reply, EVALUATE_METRICS, self.spec.test_examples)
        )
        self.report = replace(self.report, evaluations=tuple(metrics))
        return self.base.aggregate_evaluate(server_round, valid) if valid else None

    def summary(self) -> None:
        """Log the base strategy's summary."""
        self.base.summary()

    def _examine(
        self, server_round: int, replies: Iterable[Message], check: Callable[[Message], Checked]
    ) -> tuple[list[Message], list[Checked]]:
        """Separate the replies that pass a check; log and count the others."""
        valid, results, refused, failed = list[Message](), list[Checked](), 0, 0
        for reply in replies:
            if reply.has_error():
                failed += 1
                self._log(server_round, reply, "failed", failure(reply))
                continue
            try:
                results.append(check(reply))
                valid.append(reply)
            except UpdateRefused as error:
                refused += 1
                self._log(server_round, reply, "refused", one_line(str(error)))
        self.report = replace(self.report, refused=self.report.refused + refused, failed=self.report.failed + failed)
        return valid, results

    def _log(self, server_round: int, reply: Message, verdict: str, reason: str) -> None:
        grid, node, partition = self._grid, reply.metadata.src_node_id, "unknown"
        if isinstance(grid, Cohort):
            node, partition = grid.node_of(reply), str(grid.partition_of(reply))
        message = "round %d: reply of partition %s (node %d) %s: %s"
        logger.warning(message, server_round, partition, node, verdict, reason)
