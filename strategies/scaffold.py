"""SCAFFOLD (Karimireddy et al., ICML 2020): control variates against the drift of clients whose data differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from snnfl.protocol import ARRAYS, CONTROL
from snnfl.training import is_statistic
from strategies.arrays import array_of, known, tensor_of
from strategies.flower_internals import filled
from strategies.own import FedAvg, weighted_sum


class Scaffold(FedAvg):
    """Average what clients changed, and what they changed in their control variates (algorithm 1, option II).

    ``x' = x + eta_g 1/|S| sum_S (y_i - x)`` and ``c' = c + 1/N sum_S (c_i' - c_i)`` for a round's clients ``S`` of all
    ``N``. Both count all clients alike, whatever their number of examples: with other weights for ``x`` than for ``c``
    the correction would point at another optimum. The running statistics of batch normalisation are measured, and have
    no gradient to correct: they are averaged.

    Args:
        clients: ``N``, those that aren't selected included.
        server_learning_rate: ``eta_g``.
        options: Those of ``FedAvg``.
    """

    def __init__(self, *, clients: int, server_learning_rate: float, **options: Any) -> None:
        super().__init__(**options)
        self.clients = clients
        self.server_learning_rate = server_learning_rate
        self.control: ArrayRecord | None = None
        self.sent: ArrayRecord | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the control variate along; in the first round it is zero."""
        self.sent = arrays
        if self.control is None:
            shapes = {name: array.shape for name, array in arrays.items() if not is_statistic(name)}
            self.control = ArrayRecord({name: array_of(torch.zeros(shape)) for name, shape in shapes.items()})
        messages = list(super().configure_train(server_round, arrays, config, grid))
        for message in messages:
            message.content[CONTROL] = self.control
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the step, and renew the control variate."""
        contents = [reply.content for reply in replies]
        sent, self.sent = self.sent, None
        if not contents or sent is None or self.control is None:
            return None, None
        records: list[Any] = [content[ARRAYS] for content in contents]
        changes: list[Any] = [content[CONTROL] for content in contents]
        made = {}
        for name in records[0]:
            rate = 1.0 if is_statistic(name) else self.server_learning_rate
            made[name] = _moved(sent[name], 1 - rate, [record[name] for record in records], rate / len(records))
        control = {
            name: _moved(array, 1.0, [change[name] for change in changes], 1 / self.clients)
            for name, array in self.control.items()
        }
        self.control = ArrayRecord({name: array_of(values) for name, values in control.items()})
        record = filled((name, known(values)) for name, values in made.items())
        return record, self.train_metrics_aggr_fn(contents, self.weighted_by_key)


def _moved(array: Array, own: float, others: Sequence[Array], factor: float) -> torch.Tensor:
    """Return ``own * array + factor * sum(others)``."""
    total = torch.from_numpy(weighted_sum(others, [factor] * len(others)))
    return total + own * tensor_of(array) if own else total
