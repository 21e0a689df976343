"""FedNova (Wang et al., NeurIPS 2020): clients that take more local steps don't pull the average their way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from snnfl.protocol import ARRAYS, LOCAL_STEPS, METRICS
from snnfl.training import gradient_weight, is_statistic
from strategies.arrays import known, tensor_of
from strategies.flower_internals import filled
from strategies.own import FedAvg, shares, weighted_sum


class FedNova(FedAvg):
    """Average what clients changed per step, then take as many steps as they took on average.

    ``x' = x + tau_eff sum_k p_k (y_k - x) / ||a_k||_1`` with the authors' choice of ``tau_eff = sum_k p_k ||a_k||_1``,
    ``p_k`` being a client's share and ``||a_k||_1`` what its gradients weigh together
    (:func:`~snnfl.training.gradient_weight`). Where all take equally many steps it is FedAvg. The running statistics of
    batch normalisation aren't made of steps, and are averaged.

    Args:
        momentum: Of the clients' SGD.
        options: Those of ``FedAvg``.
    """

    def __init__(self, *, momentum: float, **options: Any) -> None:
        super().__init__(**options)
        self.momentum = momentum
        self.sent: ArrayRecord | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember what is sent."""
        self.sent = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the changes, each divided by the weight of its gradients."""
        contents = [reply.content for reply in replies]
        sent, self.sent = self.sent, None
        if not contents or sent is None:
            return None, None
        records: list[Any] = [content[ARRAYS] for content in contents]
        metrics: list[Any] = [content[METRICS] for content in contents]
        parts = shares(contents, self.weighted_by_key)
        weights = [gradient_weight(int(each[LOCAL_STEPS]), self.momentum) for each in metrics]
        effective = sum(part * weight for part, weight in zip(parts, weights, strict=True))
        factors = [effective * part / weight for part, weight in zip(parts, weights, strict=True)]
        made = {}
        for name in records[0]:
            arrays = [record[name] for record in records]
            if is_statistic(name):
                made[name] = weighted_sum(arrays, parts)
            else:  # the factors needn't sum to 1: what is left is what was sent
                made[name] = weighted_sum(arrays, factors) + (1 - sum(factors)) * tensor_of(sent[name]).numpy()
        record = filled((name, known(torch.from_numpy(values))) for name, values in made.items())
        return record, self.train_metrics_aggr_fn(contents, self.weighted_by_key)
