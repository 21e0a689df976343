"""A wrapper around any Flower strategy that lets nothing unchecked into an aggregate."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray
from torch import Tensor

from snnfl import npy, rng
from snnfl.protocol import CONTROL, EVALUATE_METRICS, LOSS, RECEIVED_LOSS
from snnfl.spiking import SpikingNetwork
from strategies.arrays import array_of, tensor_of, tensors_of, with_tensors
from strategies.attendance import Fault
from strategies.bounds import changes, farthest, limits
from strategies.detecting import Detecting, Screening
from strategies.flower_internals import filled
from strategies.population import Population, failure, seeded_draws
from strategies.privacy import Drawn, Protection
from strategies.state import remember
from strategies.update import Update, UpdateRefused, UpdateSpec, check_metrics, check_update, one_line
from strategies.weighting import Weighing, by_examples

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
        faults: These two, one by one.
        asked: Partitions of those who were asked to ``train`` and to ``evaluate``.
        partitions: Of the checked updates.
        excluded: Updates that a detector kept out of the aggregate; they aren't among ``updates``.
        screening: What the detectors said, if there are any.
        aggregated: Whether the round has new weights; with too few valid replies it keeps the old ones.
        summed: Whether the server knows no update, but their sum: ``updates`` are so many times their mean.
        seconds: Spent on checking and aggregating.
    """

    updates: tuple[Update, ...] = ()
    evaluations: tuple[dict[str, float], ...] = ()
    refused: int = 0
    failed: int = 0
    faults: tuple[Fault, ...] = ()
    asked: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    partitions: tuple[int, ...] = ()
    excluded: int = 0
    screening: Screening | None = None
    aggregated: bool = False
    summed: bool = False
    seconds: float = 0.0


class Guarded(Strategy):
    """Check every update, then let the base strategy do what it always does.

    A reply that carries an error, fails :func:`~strategies.update.check_update` or goes beyond the bounds of
    :mod:`strategies.bounds` is dropped with one line in the log and counted in :attr:`report`. With fewer than
    ``minimum_replies`` left, the round keeps the old weights, and so does one whose aggregate is no finite number or
    beyond the same bounds; the base strategy then forgets that it has made it.

    Args:
        base: Any Flower strategy.
        spec: What a valid update looks like.
        seed: Seed of the run: node selection becomes a function of it and the round.
        minimum_replies: Valid replies below which nothing is aggregated.
        participation: Probability that a selected client takes part in a round.
        update_bound: How many times the median of its round, or the scale of the start, an update may change an array;
            ``None`` for any change.
        weighing: What an update counts in the averages of the base strategy.

    Attributes:
        network: The spiking network that the server aggregates; ``None`` where it has none, or none yet.
        detecting: Judges the checked updates of each round; ``None`` for no detectors.
        privacy: Draws, clips, noises and counts; ``None`` without differential privacy.
    """

    def __init__(
        self,
        base: Strategy,
        spec: UpdateSpec,
        *,
        seed: int,
        minimum_replies: int = 1,
        participation: float = 1.0,
        update_bound: float | None = 100.0,
        weighing: Weighing = by_examples,
    ) -> None:
        self.base = base
        self.spec = spec
        self.seed = seed
        self.minimum_replies = minimum_replies
        self.participation = participation
        self.update_bound = update_bound
        self.scales = dict(spec.scales)
        self.lenient: frozenset[str] = frozenset()
        self.weighing = weighing
        self.report = RoundReport()
        self.network: SpikingNetwork | None = None
        self.detecting: Detecting | None = None
        self.privacy: Protection | None = None
        self._grid: Grid | None = None
        self._sent: dict[str, Tensor] = {}
        self._limits: dict[str, float] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the base strategy select clients, reproducibly."""
        self._grid, self.report = grid, RoundReport()
        self._sent = tensors_of(arrays)
        if self.detecting is not None:
            self.detecting.sent = self._sent
        with seeded_draws(self.seed, server_round, "train selection"):
            messages = self._selected(server_round, arrays, config, grid)
        messages = self._asked("train", [m for m in messages if self._takes_part(server_round, m.metadata.dst_node_id)])
        if self.privacy is not None:
            self.privacy.order(messages, arrays)
            self.privacy.spend(self.report.asked.get("train", ()))
        return messages

    def _selected(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> list[Message]:
        """Let the base strategy select clients, from among those that a private run has drawn."""
        if self.privacy is None or not self.privacy.releases:
            return list(self.base.configure_train(server_round, arrays, config, grid))
        nodes = list(grid.get_node_ids())
        drawn = self.privacy.cohort(server_round, nodes, grid)
        among: Any = Drawn(drawn or nodes)  # Flower waits for nodes if there are none
        messages = list(self.base.configure_train(server_round, arrays, config, among))
        return messages if drawn else []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the valid replies; ``(None, None)`` keeps the old weights."""
        start = time.perf_counter()
        valid, updates = self.accepted(server_round, replies)
        released = self.privacy is not None and self.privacy.releases
        if len(valid) < self.minimum_replies and not released:  # noise alone is released, too: silence would tell
            message = "round %d: %d valid replies, %d are needed; the old weights are kept"
            logger.warning(message, server_round, len(valid), self.minimum_replies)
            return None, None
        with seeded_draws(self.seed, server_round, "aggregation"):
            forget = remember(self.base)
            made, metrics = self.base.aggregate_train(server_round, self._prepared(server_round, valid, updates))
            arrays = self._sound(server_round, made)
            if arrays is not None:
                self.aggregated(server_round, arrays, valid, updates)
            elif made:
                forget()
        seconds = time.perf_counter() - start
        senders = tuple(-1 if p is None else p for _, p in map(self._sender, valid))
        self.report = replace(
            self.report,
            updates=tuple(replace(update, state=None) for update in updates),
            partitions=senders,
            aggregated=arrays is not None,
            seconds=seconds,
        )
        return arrays, metrics

    def _prepared(self, server_round: int, valid: list[Message], updates: list[Update]) -> list[Message]:
        """Return the replies that the base strategy aggregates: of a private run one, with noise."""
        if self.privacy is None:
            return self.prepare(valid, updates)
        arrays = [update.arrays for update in updates]
        if self.privacy.releases:
            return [self.privacy.release(server_round, arrays, self._sent)]
        if not self.report.summed:  # of a sum the parts are unknown
            self.privacy.observe(arrays, self._sent)
        return self.prepare(valid, updates)

    def accepted(self, server_round: int, replies: Iterable[Message]) -> tuple[list[Message], list[Update]]:
        """Return what is to be aggregated: the replies that are sound, and the updates that they carry."""
        valid, updates = self._examine(
            "train", server_round, replies, lambda reply: check_update(reply, self.spec, self._sent)
        )
        if self.privacy is None or not self.privacy.releases:  # a bound by the others' updates tells of them
            valid, updates = self._bounded(server_round, valid, updates)
        if self.detecting is not None:
            valid, updates = self._screen(self.detecting, server_round, valid, updates)
        return valid, updates

    def state_of(self, update: Update) -> Mapping[str, Tensor]:
        """Return the arrays of an update as the base strategy aggregates them."""
        return update.arrays

    def magnitudes(self, update: Update, state: Mapping[str, Tensor]) -> dict[str, float]:
        """Return how far an update goes, by what is bounded."""
        claimed = {name: abs(update.metrics[name]) for name in (LOSS, RECEIVED_LOSS) if name in update.metrics}
        control = {f"{CONTROL} {name}": array for name, array in update.control.items()}
        return changes(state, self._sent) | changes(control, {}) | claimed

    def prepare(self, valid: list[Message], updates: list[Update]) -> list[Message]:
        """Return the replies that the base strategy aggregates; here the received ones.

        They are shells of their own, with the arrays in the one order that is expected: some strategies of Flower empty
        the records that they are given, others pair the arrays of two of them by position.
        """
        if not self.spec.arrays:
            return valid
        names = self.spec.arrays
        pairs = zip(valid, updates, strict=True)
        return [with_tensors(message, update.arrays, names, self.weighing(update)) for message, update in pairs]

    def network_of(self, parameters: Mapping[str, Tensor]) -> SpikingNetwork | None:
        """Return the spiking network of aggregated arrays; here there is none."""
        return None

    def aggregated(self, server_round: int, arrays: ArrayRecord, valid: list[Message], updates: list[Update]) -> None:
        """Do what else is to be done with the replies of a round once the base strategy has made arrays of them."""

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the base strategy select clients, reproducibly."""
        with seeded_draws(self.seed, server_round, "evaluate selection"):
            return self._asked("evaluate", list(self.base.configure_evaluate(server_round, arrays, config, grid)))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Aggregate the valid metrics."""
        valid, metrics = self._examine(
            "evaluate",
            server_round,
            replies,
            lambda reply: check_metrics(reply, EVALUATE_METRICS, self.spec.test_examples),
        )
        self.report = replace(self.report, evaluations=tuple(metrics))
        return self.base.aggregate_evaluate(server_round, valid) if valid else None

    def summary(self) -> None:
        """Log the base strategy's summary."""
        self.base.summary()

    def _asked(self, what: str, messages: list[Message]) -> list[Message]:
        """Note whom a round's messages are for."""
        if isinstance(self._grid, Population):
            asked = tuple(sorted(self._grid.partitions[message.metadata.dst_node_id] for message in messages))
            self.report = replace(self.report, asked={**self.report.asked, what: asked})
        return messages

    def _takes_part(self, server_round: int, node: int) -> bool:
        """Draw whether a client takes part, from the seed, the round and the client's partition."""
        if self.participation == 1:
            return True
        partition = self._grid.partitions[node] if isinstance(self._grid, Population) else node
        draw = torch.rand((), generator=rng.generator(self.seed, "participation", server_round, partition))
        return draw.item() < self.participation

    def _sound(self, server_round: int, arrays: ArrayRecord | None) -> ArrayRecord | None:
        """Return an aggregate as it may be sent: float32, finite and in the range of its arrays; else ``None``.

        Noise may make the running variance of batch normalisation negative, which nobody can take the root of, and put
        a learned leak beyond 0..1, where neurons clip it anyway. A threshold that isn't positive has no such remedy.
        """
        if arrays is None or not arrays:
            if self.spec.arrays:
                logger.warning("round %d: the strategy aggregated nothing; the old weights are kept", server_round)
            return None
        sound, tensors, negative = dict(arrays), dict[str, Tensor](), dict[str, int]()
        for name, array in arrays.items():
            values = tensor_of(array).numpy()
            allowed = self.spec.arrays[name].values if name in self.spec.arrays else "finite"
            if name.endswith("running_var") and (values < 0).any():
                negative[name] = int((values < 0).sum())
                values = np.maximum(values, 0)
            if allowed == "share":
                values = np.clip(values, 0, 1)
            with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity
                values = values.astype(np.float32, copy=False)
            if not _is_finite(values):
                message = "round %d: the aggregate of %s isn't finite; the old weights are kept"
                logger.warning(message, server_round, name)
                return None
            if allowed == "positive" and not (values > 0).all():
                message = "round %d: the aggregate of %s isn't positive; the old weights are kept"
                logger.warning(message, server_round, name)
                return None
            tensors[name] = npy.as_tensor(values)
            sound[name] = array_of(tensors[name])
        if negative:
            found = ", ".join(f"{count} of {name}" for name, count in negative.items())
            logger.warning("round %d: negative variances of the aggregate were set to 0: %s", server_round, found)
        return filled(sound.items()) if self._moderate(server_round, tensors) else None

    def _moderate(self, server_round: int, arrays: Mapping[str, Tensor]) -> bool:
        """Tell whether an aggregate is within the bounds of its round."""
        far = changes({name: array for name, array in arrays.items() if name in self._limits}, self._sent)
        if (name := farthest(far, self._limits)) is None:
            return True
        message = "round %d: the aggregate's %s; the old weights are kept"
        logger.warning(message, server_round, self._beyond(name, far))
        return False

    def _bounded(
        self, server_round: int, valid: list[Message], updates: list[Update]
    ) -> tuple[list[Message], list[Update]]:
        """Drop the updates that go too far; give the others the arrays that the base strategy aggregates."""
        self._limits = {}
        if self.update_bound is None or not updates or not self.spec.arrays:
            return valid, updates
        updates = [replace(update, state=self.state_of(update)) for update in updates]
        far = [self.magnitudes(update, update.state or {}) for update in updates]
        self._limits = limits(far, self.scales, self.update_bound, self.lenient)
        kept = []
        for reply, update, magnitudes in zip(valid, updates, far, strict=True):
            if (name := farthest(magnitudes, self._limits)) is None:
                kept.append((reply, update))
                continue
            hint = "if its client is honest, its training diverges: lower training.learning_rate"
            self._drop("train", server_round, reply, "refused", f"{self._beyond(name, magnitudes)}; {hint}")
        self.report = replace(self.report, refused=self.report.refused + len(updates) - len(kept))
        return [reply for reply, _ in kept], [update for _, update in kept]

    def _beyond(self, name: str, far: Mapping[str, float]) -> str:
        allowed = f"{self._limits[name]:.3g} is allowed (strategy.update_bound={self.update_bound:g})"
        return f"{name} goes as far as {far[name]:.3g}, where {allowed}"

    def _examine(
        self, asked: str, server_round: int, replies: Iterable[Message], check: Callable[[Message], Checked]
    ) -> tuple[list[Message], list[Checked]]:
        """Separate the replies that pass a check; log and count the others."""
        valid, results, refused, failed = list[Message](), list[Checked](), 0, 0
        for reply in replies:
            if reply.has_error():
                failed += 1
                self._drop(asked, server_round, reply, "failed", failure(reply))
                continue
            try:
                results.append(check(reply))
                valid.append(reply)
            except UpdateRefused as error:
                refused += 1
                self._drop(asked, server_round, reply, "refused", one_line(str(error)))
        self.report = replace(self.report, refused=self.report.refused + refused, failed=self.report.failed + failed)
        return valid, results

    def _screen(
        self, detecting: Detecting, server_round: int, valid: list[Message], updates: list[Update]
    ) -> tuple[list[Message], list[Update]]:
        """Let the detectors judge; return what is to be aggregated."""
        partitions = [self._sender(reply)[1] for reply in valid]
        screening = detecting.screen(updates, [n if p is None else p for n, p in enumerate(partitions)])
        kept = screening.kept.tolist()
        for reason in screening.failed.values():
            logger.warning("round %d: detector failed: %s", server_round, reason)
        doubt = "failed, so nothing enters" if detecting.exclude in screening.failed else "takes it for an attacker's"
        for reply in (reply for reply, keep in zip(valid, kept, strict=True) if not keep):
            self._log(server_round, reply, "excluded", f"detector {detecting.exclude} {doubt}")
        self.report = replace(self.report, screening=screening, excluded=kept.count(False))
        return (
            [reply for reply, keep in zip(valid, kept, strict=True) if keep],
            [update for update, keep in zip(updates, kept, strict=True) if keep],
        )

    def _sender(self, reply: Message) -> tuple[int, int | None]:
        """Return the node that a reply comes from and its partition, if it is known."""
        if isinstance(self._grid, Population):
            return self._grid.node_of(reply), self._grid.partition_of(reply)
        return reply.metadata.src_node_id, None

    def _drop(
        self, asked: str, server_round: int, reply: Message, verdict: Literal["failed", "refused"], reason: str
    ) -> None:
        """Note and log a reply that enters nothing; what was asked is ours to say, not the reply's."""
        fault = Fault(partition=self._sender(reply)[1], message=asked, verdict=verdict, reason=reason)
        self.report = replace(self.report, faults=(*self.report.faults, fault))
        self._log(server_round, reply, verdict, reason)

    def _log(self, server_round: int, reply: Message, verdict: str, reason: str) -> None:
        node, known = self._sender(reply)
        partition = "unknown" if known is None else str(known)
        message = "round %d: reply of partition %s (node %d) %s: %s"
        logger.warning(message, server_round, partition, node, verdict, reason)


def _is_finite(values: NDArray[np.float32]) -> bool:
    """Tell whether all values are finite: the sum of their squares tells it faster, unless it is too large itself."""
    numbers = npy.as_tensor(values).flatten()
    return bool(numbers.dot(numbers).isfinite()) or bool(np.isfinite(values).all())
