"""Updates of which a server learns the sum: how one stands in a vector, and what is read from the sum of several."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnfl.config import Config, sampled_clients
from snnfl.conversion.folding import fold, unexplained_biases
from snnfl.masking import Field, FieldError
from snnfl.protocol import summed_metrics
from snnfl.updates.converted import Converted
from snnfl.updates.format import UpdateFormat

FEW_CLIENTS = 1024
"""Up to which 32 bits leave a client 2^20 levels; beyond, the field has 64."""

DEFAULT_RANGE = 64.0
"""Of ``strategy.secure_range``: weights, running statistics and thresholds of the networks here stay below it."""

METRIC_LIMITS = {"accuracy": 1.0, "snn-accuracy": 1.0}
LOSS_LIMIT, SECONDS_LIMIT = 128.0, 86_400.0
"""To which metrics are clipped: shares, losses, and a day."""


@dataclass(frozen=True, kw_only=True)
class Sum:
    """What the sum of updates tells.

    Attributes:
        state: Weighted mean of the ANN's arrays.
        network: Of what else Spiking averages (:attr:`Summed.network_specs`); empty where updates are of no network.
        metrics: Means: of the losses by weight, of the others over clients.
        weight: Sum of the weights, in units of the largest possible one.
        clipped: How many values were beyond the limit, of all clients together.
    """

    state: dict[str, Tensor]
    network: dict[str, Tensor]
    metrics: dict[str, float]
    weight: float
    clipped: int


class Summed:
    """The layout of the vector.

    First the client's weight ``m``, a whole number, and how many of its values were clipped; then its metrics; then by
    how much each array of the ANN has changed against what was sent, weighed by ``m / M``; last, of a converted update,
    the spiking network. So a client does what the server does with an update that it sees, which no sum allows: it
    divides by its own ``gamma/sigma``.

    Where the server's network ``follows`` the aggregated ANN, its weights need not travel twice: what is left of the
    biases when folding is taken away, and the thresholds, are enough (:class:`~strategies.spiking.Spiking`).

    Args:
        format: Of the updates.
        metrics: Which of a client's metrics are summed.
        clients: Most clients of a round.
        examples: Most training examples that a client may have; 1 if all updates weigh alike.
        limit: To which values and changes are clipped.
        follows: Whether the server's spiking network follows the ANN.

    Raises:
        FieldError: If there are no examples, or too few or too many clients.
    """

    def __init__(
        self,
        format: UpdateFormat,
        metrics: Collection[str],
        *,
        clients: int,
        examples: int,
        limit: float,
        follows: bool = False,
    ) -> None:
        if examples < 1:
            raise FieldError(f"examples={examples}: expected at least 1")
        self.format, self.follows, self.limit = format, follows, limit
        self.field = Field(clients=clients, bits=32 if clients <= FEW_CLIENTS else 64)
        self.metrics = tuple(sorted(metrics))
        self.examples = examples
        self.most = min(examples, self.field.levels)
        self.state_shapes = {name: spec.shape for name, spec in format.sent_specs.items()}
        self.network_shapes: dict[str, tuple[int, ...]] = {}
        if isinstance(format, Converted):
            left_out = {f"{node.name}.weight" for node in format.graph.affines} if follows else set[str]()
            names = [name for name in format.network_names if name not in left_out]
            self.network_shapes = {name: format.specs[name].shape for name in names}
        shapes = [*self.state_shapes.values(), *self.network_shapes.values()]
        self.length = 2 + len(self.metrics) + sum(map(math.prod, shapes))

    def expect(self, examples: int) -> None:
        """Weigh by so many examples at most, as soon as that is known; where all weigh alike it changes nothing."""
        if self.examples > 1:
            self.examples, self.most = examples, min(examples, self.field.levels)

    def weight(self, examples: int) -> int:
        """Return the whole number that a client weighs: its examples, or that many of :attr:`most` in proportion."""
        if self.examples == 1:
            return 1
        exact = self.most == self.examples
        return min(self.most, max(1, examples if exact else round(examples * self.most / self.examples)))

    def encode(
        self,
        update: Mapping[str, Tensor],
        sent: Mapping[str, Tensor],
        metrics: Mapping[str, float],
        examples: int,
        draw: np.random.Generator | None = None,
    ) -> NDArray[np.unsignedinteger[Any]]:
        """Return a client's vector.

        Args:
            update: In the format.
            sent: What the server had sent.
            metrics: Those of :attr:`metrics`.
            examples: That the client has trained on.
            draw: Rounds stochastically; ``None`` to the nearest.

        Raises:
            FieldError: For a value that isn't finite.
        """
        weight, field = self.weight(examples), self.field
        state = self.format.decode(update, sent)
        parts = [state[name] - sent[name] for name in self.state_shapes]
        network = dict(update)
        if isinstance(self.format, Converted) and self.follows:
            network |= unexplained_biases(self.format.graph, update, biases=self.format.bias_back)
        parts += [network[name] for name in self.network_shapes]
        values = torch.cat([part.flatten() for part in parts]).numpy() if parts else np.zeros(0, np.float32)
        share = weight / self.most
        encoded = field.encode(values, limit=self.limit, weight=share, draw=draw)
        clipped = min(int(np.count_nonzero((values > self.limit) | (values < -self.limit))), field.levels)
        told = [
            field.encode(np.array([metrics[name]]), limit=_limit(name), weight=share if _weighs(name) else 1.0)
            for name in self.metrics
        ]
        return np.concatenate([np.array([weight, clipped], field.dtype), *told, encoded])

    def decode(self, total: NDArray[np.unsignedinteger[Any]], sent: Mapping[str, Tensor], clients: int) -> Sum:
        """Read the sum of so many clients' vectors.

        Raises:
            FieldError: If it is the sum of none.
        """
        field, most, head = self.field, clients * self.field.levels, 2 + len(self.metrics)
        weight, clipped = (int(number) for number in total[:2])
        if not clients <= weight <= clients * self.most:
            raise FieldError(f"the weights of {clients} clients add up to {weight}: one has sent what is no update")
        share = weight / self.most
        # Weighed values add up to no more than that many levels, and what rounding adds.
        sums = field.signed(total[head:], min(most, math.ceil(share * field.levels) + clients))
        means = sums * (self.limit / (field.levels * share))
        metrics = {}
        for name, number in zip(self.metrics, field.signed(total[2:head], most).tolist(), strict=True):
            metrics[name] = number * _limit(name) / field.levels / (share if _weighs(name) else clients)
        arrays = torch.from_numpy(means)
        state, start = dict[str, Tensor](), 0
        for name, shape in self.state_shapes.items():
            size = math.prod(shape)
            state[name] = (sent[name].double() + arrays[start : start + size].view(shape)).float()
            start += size
        network = dict[str, Tensor]()
        for name, shape in self.network_shapes.items():
            size = math.prod(shape)
            network[name] = arrays[start : start + size].view(shape).float()
            start += size
        return Sum(state=state, network=network, metrics=metrics, weight=share, clipped=clipped)

    def as_update(self, found: Sum) -> dict[str, Tensor]:
        """Return the update of one client of which the sum is the same.

        Of a single client it is its own, to the error of rounding. Of several its ANN and thresholds are their means;
        folded weights are those of the mean ANN, and so are of no client.
        """
        if not isinstance(self.format, Converted):
            return found.state
        graph, state = self.format.graph, found.state
        rest = dict(found.network) | {own: state[ours] for own, ours in self.format.norm_arrays.items()}
        if self.follows:
            own = {n: a for n, a in fold(graph, state).items() if n.endswith(".bias")}
            rest |= {name: rest[name] + bias for name, bias in own.items()}
        return self.format.rebuilt(rest, state)

    def error(self, share: float, clients: int, *, stochastic: bool = False) -> float:
        """Return the bound on the error of each value of :meth:`decode`'s means, but for float32.

        Args:
            share: The mean weight of the clients, in units of the largest possible one.
            clients: In the sum.
            stochastic: As the clients have rounded.
        """
        return self.field.error(self.limit, clients=clients, stochastic=stochastic) / (clients * share)


def summed(config: Config, format: UpdateFormat, *, examples: int, follows: bool) -> Summed:
    """Return the layout of a run.

    Args:
        config: Of the run.
        format: Of its updates.
        examples: Most training examples that a client may have; 1 if all updates weigh alike.
        follows: Whether the server's spiking network follows its ANN.
    """
    limit = DEFAULT_RANGE if config.strategy.secure_range is None else config.strategy.secure_range
    clients, metrics = sampled_clients(config), summed_metrics(config)
    return Summed(format, metrics, clients=clients, examples=examples, limit=limit, follows=follows)


def _weighs(metric: str) -> bool:
    return metric.endswith("loss")


def _limit(metric: str) -> float:
    return METRIC_LIMITS.get(metric, LOSS_LIMIT if _weighs(metric) else SECONDS_LIMIT)
