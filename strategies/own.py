"""Strategies that Flower doesn't have, and one that it has with a flaw."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, FedAvgM

from snnfl.protocol import CONTRASTIVE_MU, TEMPERATURE


class Moon(FedAvg):
    """MOON (Li et al., CVPR 2021): FedAvg on the server, a model-contrastive objective on the clients.

    Like Flower's ``FedProx`` it tells the clients so in the configuration of each train message.

    Args:
        contrastive_mu: Weight of the contrastive loss.
        temperature: Of its similarities.
        options: Those of ``FedAvg``.
    """

    def __init__(self, *, contrastive_mu: float, temperature: float, **options: Any) -> None:
        super().__init__(**options)
        self.contrastive_mu = contrastive_mu
        self.temperature = temperature

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Put the objective's parameters into the messages."""
        config[CONTRASTIVE_MU], config[TEMPERATURE] = self.contrastive_mu, self.temperature
        return super().configure_train(server_round, arrays, config, grid)


class Solo(FedAvg):
    """SOLO (SNFL section 5.2): the server tells the clients to train and learns how well they do; no weight travels."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the metrics; there are no arrays."""
        contents = [reply.content for reply in replies]
        return None, self.train_metrics_aggr_fn(contents, self.weighted_by_key) if contents else None


class MomentumAvg(FedAvgM):
    """Flower's FedAvgM, whose step starts from what the clients received.

    Flower's starts from its own last result, which is another thing where noise has been added to that.
    """

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember what is sent."""
        self.current_arrays = arrays
        return super().configure_train(server_round, arrays, config, grid)
