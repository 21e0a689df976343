"""MOON, FedLEC and SOLO, which Flower doesn't have, and a FedAvg equal to Flower's in a third of its time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from flwr import serverapp
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from snnfl.protocol import (
    ARRAYS,
    CONTRASTIVE_MU,
    DISTILLATION_WEIGHT,
    LOGIT_CALIBRATION,
    METRICS,
    SPREAD_WEIGHT,
    TEMPERATURE,
)
from strategies.arrays import known, tensor_of
from strategies.bounds import BLOCK
from strategies.flower_internals import filled


class FedAvg(serverapp.strategy.FedAvg):
    """Flower's FedAvg (McMahan et al. 2017), equal to it to the bit, in a third of its time.

    Flower copies every array of every update, to multiply it into yet another one, and checks again what has been
    checked.
    """

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average arrays and metrics, weighted by what ``weighted_by_key`` names."""
        contents = [reply.content for reply in replies]
        if not contents:
            return None, None
        records: list[Any] = [content[ARRAYS] for content in contents]
        factors = shares(contents, self.weighted_by_key)
        average = {name: weighted_sum([each[name] for each in records], factors) for name in records[0]}
        record = filled((name, known(torch.from_numpy(values))) for name, values in average.items())
        return record, self.train_metrics_aggr_fn(contents, self.weighted_by_key)


def shares(contents: Sequence[RecordDict], key: str) -> list[float]:
    """Return each reply's share in an average, in proportion to one of its metrics."""
    weights: list[Any] = [content[METRICS][key] for content in contents]
    total = sum(weights)
    # Losses of nothing to a large power: the average is then no number, and the round keeps the old weights.
    return [weight / total if total else math.nan for weight in weights]


def weighted_sum(arrays: Sequence[Array], factors: Sequence[float]) -> NDArray[Any]:
    """Add arrays up in their order, each times its factor, block by block."""
    values = [tensor_of(array).numpy() for array in arrays]
    plain = all(each.dtype == np.float32 and each.flags.c_contiguous for each in values)
    if not plain or any(type(factor) not in (int, float) for factor in factors):  # one of NumPy's would widen the sum
        total = np.asarray(values[0] * factors[0])
        for each, factor in zip(values[1:], factors[1:], strict=True):
            total += each * factor
        return total
    rows = [each.reshape(-1) for each in values]
    average = np.empty(values[0].shape, np.float32)
    row, product = average.reshape(-1), np.empty(min(BLOCK, average.size), np.float32)
    for start in range(0, len(row), BLOCK):  # sum and product stay in the cache, and each array is read once
        part = row[start : start + BLOCK]
        np.multiply(rows[0][start : start + BLOCK], factors[0], out=part)
        for each, factor in zip(rows[1:], factors[1:], strict=True):
            part += np.multiply(each[start : start + BLOCK], factor, out=product[: len(part)])
    return average


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


class FedLec(FedAvg):
    """FedLEC (Yu et al., arXiv 2412.17305): FedAvg on the server, an objective for skewed labels on the clients.

    Args:
        logit_calibration: Weight of the logarithm of a label's local share in its logit.
        spread_weight: Weight of the penalty of logits of labels that a sample doesn't have.
        distillation_weight: Weight of the distillation of locally missing labels from the received model.
        options: Those of ``FedAvg``.
    """

    def __init__(
        self, *, logit_calibration: float, spread_weight: float, distillation_weight: float, **options: Any
    ) -> None:
        super().__init__(**options)
        self.logit_calibration = logit_calibration
        self.spread_weight = spread_weight
        self.distillation_weight = distillation_weight

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Put the objective's parameters into the messages."""
        config[LOGIT_CALIBRATION] = self.logit_calibration
        config[SPREAD_WEIGHT], config[DISTILLATION_WEIGHT] = self.spread_weight, self.distillation_weight
        return super().configure_train(server_round, arrays, config, grid)


class Solo(FedAvg):
    """SOLO (SNFL section 5.2): the server tells the clients to train and learns how well they do; no weight travels."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the metrics; there are no arrays."""
        contents = [reply.content for reply in replies]
        return None, self.train_metrics_aggr_fn(contents, self.weighted_by_key) if contents else None
