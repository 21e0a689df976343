"""What the server does for differential privacy: it draws cohorts, clips, adds noise, and counts what that spends."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from snnfl.config import Config, ConfigError
from snnfl.privacy.canaries import Canaries
from snnfl.privacy.clipping import Layout, clipped
from snnfl.privacy.noise import Stream, new_key
from snnfl.privacy.spending import Spending, adaptive_noise
from snnfl.protocol import ARRAYS, CLIPPING_NORM, EXAMPLES, METRICS, NOISE_MULTIPLIER, REFERENCE
from snnfl.updates import UpdateFormat
from snnfl.updates.coordinates import OWN, ann_of, coordinates, origin
from strategies.arrays import known, tensors_of
from strategies.flower_internals import filled
from strategies.population import Population

logger = logging.getLogger(__name__)


class Drawn:
    """A grid's nodes that were drawn for a round, as far as a strategy of Flower asks it when it selects."""

    def __init__(self, nodes: Sequence[int]) -> None:
        self.nodes = list(nodes)

    def get_node_ids(self) -> Iterable[int]:
        """Return them."""
        return self.nodes


class Protection:
    """Differential privacy of a run.

    ``central``: each client is drawn for a round with probability ``q``, independently of the others. Its update, all
    of it as one vector of coordinates (:mod:`snnfl.updates.coordinates`) less what everybody knows, is shortened to a
    norm ``C``. The server adds them up, adds Gaussian noise of deviation ``z C`` to each coordinate, and divides by the
    number of clients that it expects (McMahan et al. 2018, with a fixed denominator). Only this leaves it: the base
    strategy gets one reply, and the spiking network is made of the same numbers.

    ``example`` and ``local``: clients add the noise; the server tells them how much and counts.

    Args:
        config: Of the run.
        format: Of its updates.
        sizes: Training samples of each client.
        sent: What the server sends first.
        known: Coordinates that everybody knows before anything was trained; ``None`` for those of :func:`origin`.
    """

    def __init__(
        self,
        config: Config,
        format: UpdateFormat,
        *,
        sizes: Sequence[int],
        sent: Mapping[str, Tensor],
        known: Mapping[str, Tensor] | None = None,
    ) -> None:
        privacy = config.privacy
        self.mechanism, self.format = privacy.mechanism, format
        self.norm = 1.0 if privacy.clipping_norm is None else privacy.clipping_norm
        self.key = new_key(privacy.noise_seed)
        self.reference = origin(format, sent) if known is None else dict(known)
        self.layout = Layout({name: tuple(array.shape) for name, array in self.reference.items()})
        self.spending = Spending(config, sizes, self.layout.size)
        self.rate = config.strategy.fraction_train
        self.expected = self.rate * config.data.clients
        self.quantile = privacy.target_clipped_quantile
        self.norm_rate = 0.2 if privacy.clip_norm_lr is None else privacy.clip_norm_lr
        self.count_deviation = privacy.clipped_count_stddev or self.expected / 20
        self.canaries: Canaries | None = None
        self._canary_count = privacy.canaries
        self._begin()

    def _begin(self) -> None:
        if self._canary_count:
            self.canaries = Canaries(self._canary_count, self.layout.size, self.key)

    @property
    def releases(self) -> bool:
        """Whether a noised sum takes the place of the replies, so that no rule may look at single ones."""
        return self.mechanism == "central"

    @property
    def state(self) -> dict[str, Any]:
        """What a resumed run must have: the key, what is spent, the bound, and what everybody knows."""
        return {
            "key": self.key,
            "norm": float(self.norm),
            "spending": self.spending.state,
            "reference": dict(self.reference),
            "scores": None if self.canaries is None else self.canaries.scores,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with the state of an earlier process."""
        self.key, self.norm = state["key"], state["norm"]
        self.spending.restore(state["spending"])
        self.reference = dict(state["reference"])
        self._begin()
        if self.canaries is not None:
            self.canaries.scores = state["scores"]

    def exhausted(self, server_round: int) -> str | None:
        """Say why a round may not be played, or return ``None``."""
        return self.spending.refusal(server_round)

    def cohort(self, server_round: int, nodes: Sequence[int], grid: object) -> list[int]:
        """Draw each node with the run's rate, by its partition."""
        partitions = [grid.partitions[node] if isinstance(grid, Population) else node for node in nodes]
        draws = Stream(self.key, "cohort", server_round).uniform(max(partitions, default=-1) + 1)
        return [node for node, partition in zip(nodes, partitions, strict=True) if draws[partition] < self.rate]

    def order(self, messages: Iterable[Message], arrays: ArrayRecord) -> None:
        """Tell clients how much noise to add, and what everybody knows."""
        self.reference = self.reference | self._of_sent(tensors_of(arrays))
        if self.mechanism == "central":
            return
        own = ArrayRecord({name: known(array) for name, array in self.reference.items() if name.startswith(OWN)})
        for message in messages:
            orders: ConfigRecord = next(iter(message.content.config_records.values()))
            orders[NOISE_MULTIPLIER] = self.spending.noise
            if self.mechanism != "example":
                orders[CLIPPING_NORM] = self.norm
                message.content[REFERENCE] = own

    def spend(self, partitions: Iterable[int]) -> None:
        """Count a round, in which these clients were asked, whether they answer or not."""
        self.spending.add(partitions)

    def release(
        self, server_round: int, updates: Sequence[Mapping[str, Tensor]], sent: Mapping[str, Tensor]
    ) -> Message:
        """Return the noised mean of a round's updates, as the one reply that the base strategy sees.

        Args:
            server_round: Counted from 1.
            updates: Checked ones, as they were sent.
            sent: What the server had sent.
        """
        known_to_all = self.layout.vector(self.reference)
        total, short = np.zeros(self.layout.size), 0
        for update in updates:
            change = self.layout.vector(coordinates(self.format, update, sent)) - known_to_all
            short += bool(np.linalg.norm(change) > self.norm)
            total += clipped(change, self.norm)
        if self.canaries is not None:
            total += self.norm * self.canaries.updates(server_round, self.rate, self.layout.size)
        z = self.spending.noise
        z = z if self.quantile is None else adaptive_noise(z, self.count_deviation)
        total += z * self.norm * Stream(self.key, "noise", server_round).normal(self.layout.size)
        if self.canaries is not None:
            self.canaries.observe(total / self.norm)
        self.reference = self.layout.arrays(known_to_all + total / self.expected)
        if self.quantile is not None:
            self._adapt(server_round, short, len(updates))
        content = RecordDict(
            {
                ARRAYS: filled((name, known(a)) for name, a in ann_of(self.format, self.reference).items()),
                METRICS: MetricRecord({EXAMPLES: 1}),
            }
        )
        return Message(content, dst_node_id=0, message_type="train")

    def settle(self, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the coordinates of what the base strategy made of the released mean."""
        self.reference = self.reference | self._of_sent(arrays)
        return self.reference

    def observe(self, updates: Sequence[Mapping[str, Tensor]], sent: Mapping[str, Tensor]) -> None:
        """Note where the updates of a round were, on average, in what the server doesn't send: clients noised them."""
        if self.mechanism != "local" or not updates:
            return
        found = [coordinates(self.format, update, sent) for update in updates]
        for name in (name for name in self.reference if name.startswith(OWN)):
            total = sum(each[name].double() for each in found)
            self.reference[name] = (total / len(found)).float()  # type: ignore[union-attr]

    def columns(self) -> dict[str, Any]:
        """Return the columns of ``metrics.jsonl``."""
        proven = self.spending.epsilon()
        lower = None if self.canaries is None else self.canaries.bound(self.spending.delta)
        return {
            "epsilon": None if math.isinf(proven) else proven,  # without noise nothing is proven
            "epsilon_empirical": lower,
            "noise_multiplier": self.spending.noise,
            "clipping_norm": float(self.norm),
        }

    def _of_sent(self, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
        start = origin(self.format, arrays)
        return {name: array for name, array in start.items() if not name.startswith(OWN)}

    def _adapt(self, server_round: int, short: int, count: int) -> None:
        """Move the bound towards the quantile: ``C' = C exp(eta (c - c*))`` (Andrew et al. 2021, algorithm 1).

        Of each client the count has ``b - 1/2``, so that one more changes it by a half, and so little noise suffices.
        """
        noise = self.count_deviation * float(Stream(self.key, "clipped count", server_round).normal(1)[0])
        part = (short - count / 2 + noise) / self.expected + 0.5
        self.norm *= math.exp(self.norm_rate * (part - (self.quantile or 0.0)))


NOTHING = {"epsilon": None, "epsilon_empirical": None, "noise_multiplier": None, "clipping_norm": None}
"""The columns of a run without differential privacy."""


def build_protection(
    config: Config,
    format: UpdateFormat,
    *,
    sizes: Sequence[int],
    sent: Mapping[str, Tensor],
    known: Mapping[str, Tensor] | None = None,
) -> Protection | None:
    """Build what a run needs for differential privacy, if it is to have any.

    Raises:
        ConfigError: If the options don't agree, or no noise gives the wanted epsilon.
    """
    if config.privacy.mechanism == "none":
        return None
    protection = Protection(config, format, sizes=sizes, sent=sent, known=known)
    if (reason := protection.exhausted(1)) is not None:
        raise ConfigError(f"{reason}; take more noise (privacy.noise_multiplier), or a larger budget")
    if config.privacy.adaptive:  # of the noise that target_epsilon has found, nobody knew before
        adaptive_noise(protection.spending.noise, protection.count_deviation)
    if config.privacy.noise_seed is not None:
        logger.warning(
            "privacy.noise_seed=%d: whoever knows it can take the noise off; leave it out to protect anybody",
            config.privacy.noise_seed,
        )
    return protection
