"""Flower's strategies that take a step of their own on the server, with batch normalisation's statistics left out.

The running mean and variance of batch normalisation are measurements: an optimiser that takes them for weights carries
them past every value that a client measured, and a variance below zero. They are averaged, whatever moves the weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid, strategy

from snnfl.protocol import ARRAYS
from snnfl.training import is_statistic
from strategies.own import shares, weighted_sum


class AveragedStatistics(strategy.FedAvg):
    """To be put before one of Flower's classes that remembers in ``current_arrays`` what is sent.

    That class neither sees the running statistics of the replies, which are averaged by what ``weighted_by_key`` names,
    nor those that are sent.
    """

    current_arrays: Any  # a record or a dictionary of them, as the class has it

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the class remember the weights alone."""
        messages = super().configure_train(server_round, arrays, config, grid)
        kept = {name: array for name, array in self.current_arrays.items() if not is_statistic(name)}
        self.current_arrays = type(self.current_arrays)(kept)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the class's step with the weights, and average the statistics, which are taken out of the replies."""
        replies = list(replies)
        contents = [reply.content for reply in replies]
        records: list[Any] = [content[ARRAYS] for content in contents]
        names = list(records[0]) if records else []
        factors = shares(contents, self.weighted_by_key)
        average = {
            name: Array(weighted_sum([record.pop(name) for record in records], factors))
            for name in names
            if is_statistic(name)
        }
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is None:
            return None, metrics
        return ArrayRecord({name: average[name] if name in average else arrays[name] for name in names}), metrics


class ServerMomentum(AveragedStatistics, strategy.FedAvgM):
    """Flower's FedAvgM, whose step starts from what the clients received.

    Flower's starts from its own last result, which is another thing where noise has been added to that.
    """

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember what is sent."""
        self.current_arrays = arrays
        return super().configure_train(server_round, arrays, config, grid)


class ServerAdam(AveragedStatistics, strategy.FedAdam):
    """Flower's FedAdam."""


class ServerYogi(AveragedStatistics, strategy.FedYogi):
    """Flower's FedYogi."""


class ServerAdagrad(AveragedStatistics, strategy.FedAdagrad):
    """Flower's FedAdagrad."""


class FairAvg(AveragedStatistics, strategy.QFedAvg):
    """Flower's q-FedAvg; statistics enter neither its step nor the norms that the step is divided by."""
