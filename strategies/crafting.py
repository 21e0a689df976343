"""Beyond honest-but-curious: a server that sends weights of its own making, and learns nothing else from the round."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from snnfl.attacks.imprint import imprinted
from snnfl.attacks.loki import loki_weights
from snnfl.config import ConfigError
from snnfl.threat import ThreatModelError
from snnfl.workspace import Workspace
from strategies.arrays import tensors_of
from strategies.guarded import Guarded
from strategies.state import remember

logger = logging.getLogger(__name__)

CRAFTED: Mapping[str, tuple[Callable[..., Mapping[str, Tensor]], str]] = {
    "imprint": (imprinted, "mlp"),
    "loki": (partial(loki_weights, client=0), "conv_mlp"),
}
"""By ``audit.crafted``: what makes the weights, and a model that can have them."""

PUBLIC = 1000
"""Test samples whose brightness tells where the bins are."""


class Crafting(Strategy):
    """Send crafted weights in chosen rounds, and keep the weights of before: such a round trains nothing.

    LOKI would send each client weights of its own, by which a sum tells them apart. Under secure aggregation no sum
    comes out of clients that were told different things, and who sees each client's update has no need to: so all are
    sent those of the first.

    What clients answer is checked, weighed and evaluated as in any round, then thrown away, and so is what a server's
    optimiser would remember of it.

    Args:
        strategy: Any strategy of Flower, guarded.
        work: Of the server.
        rounds: Those in which weights are crafted.

    Raises:
        ConfigError: If the model is none that can be.
    """

    def __init__(self, strategy: Guarded, work: Workspace, rounds: Iterable[int]) -> None:
        self.strategy, self.work, self.rounds = strategy, work, frozenset(rounds)
        crafted = f"audit.crafted={work.config.audit.crafted}"
        self._make, model = CRAFTED[work.config.audit.crafted]
        self._kept: ArrayRecord | None = None
        self._forget: Callable[[], None] = lambda: None
        data = work.server_data
        if not len(data.test_images):
            raise ConfigError(f"{crafted}: needs data of the server's own, as docs/deployment.md tells")
        self._public = data.normalise(data.test_images[:PUBLIC])
        try:
            self._crafted(ArrayRecord(dict(work.initial_state)))
        except ThreatModelError as error:
            raise ConfigError(f"{crafted}: {error}; model.name={model} is such a model") from None
        logger.warning("%s: this server is malicious, and rounds %s train nothing", crafted, sorted(self.rounds))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Put crafted weights in the place of the model's."""
        self._kept = arrays if server_round in self.rounds else None
        if self._kept is None:
            return self.strategy.configure_train(server_round, arrays, config, grid)
        self._forget = remember(self.strategy.base)
        return self.strategy.configure_train(server_round, self._crafted(arrays), config, grid)

    def _crafted(self, arrays: ArrayRecord) -> ArrayRecord:
        """Return what clients are sent in the place of the model."""
        made = self._make(self.work.model, tensors_of(arrays), self._public, self.work.config.run.seed)
        return ArrayRecord({name: made[name] for name in arrays})

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return what the strategy makes of the replies, in a crafted round the weights of before."""
        arrays, metrics = self.strategy.aggregate_train(server_round, replies)
        if self._kept is None:
            return arrays, metrics
        self._forget()
        return self._kept, metrics

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
