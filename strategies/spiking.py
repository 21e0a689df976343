"""The S-variant of any Flower strategy (SNFL section 4.2)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from snnfl.config import ConversionConfig
from snnfl.conversion import recover
from snnfl.protocol import ARRAYS, METRICS
from snnfl.spiking import SpikingGraph, SpikingNetwork
from strategies.guarded import Guarded
from strategies.update import Update, UpdateSpec, spiking_specs


class Spiking(Guarded):
    """Aggregate spiking updates by any base strategy.

    Clients send folded weights ``W_S``, calibrated biases ``b'``, thresholds ``V`` and batch normalisation. The
    server averages the spiking network, weighted by examples, and keeps it in :attr:`network`. From each update it
    recovers the ANN weights ``W_A = W_S sigma/gamma``; these, with the batch normalisation, are the replies that
    the base strategy aggregates as if no conversion had been. Biases aren't among them: clients keep their own.

    With ``bias_back`` the server also infers each client's biases from ``b'`` and the batch normalisation and
    returns their aggregate (SNFL, Table 3).

    Args:
        base: Any Flower strategy.
        graph: Structure of the network, from :func:`snnfl.spiking.trace`.
        state: An ANN state of the model, for names and shapes.
        conversion: How clients convert.
        metrics: Names of the metrics that clients send.
        bias_back: Whether biases are returned.
        seed: Seed of the run.
        minimum_replies: Valid replies below which nothing is aggregated.
    """

    def __init__(
        self,
        base: Strategy,
        graph: SpikingGraph,
        state: Mapping[str, Tensor],
        conversion: ConversionConfig,
        *,
        metrics: frozenset[str],
        bias_back: bool = False,
        seed: int = 0,
        minimum_replies: int = 1,
    ) -> None:
        arrays = spiking_specs(graph, state, per_channel=conversion.thresholds == "channel_mmse")
        spec = UpdateSpec(arrays=arrays, metrics=metrics)
        super().__init__(base, spec, seed=seed, minimum_replies=minimum_replies)
        self.graph = graph
        self.conversion = conversion
        self.bias_back = bias_back
        self.network: SpikingNetwork | None = None
        self._sent: dict[str, Tensor] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember what is sent: it stands in for channels whose weight cannot be recovered."""
        self._sent = dict(arrays.to_torch_state_dict())
        return super().configure_train(server_round, arrays, config, grid)

    def prepare(self, valid: list[Message], updates: list[Update]) -> list[Message]:
        """Average the spiking network and recover each client's ANN weights."""
        self.network = SpikingNetwork(
            self.graph, self._average(updates), initial_potential=self.conversion.initial_potential
        )
        return [self._recovered(message, update) for message, update in zip(valid, updates, strict=True)]

    def _average(self, updates: list[Update]) -> dict[str, Tensor]:
        """Average weights, biases and thresholds by examples (SNFL, "Server Aggregation"; FedAvg, eq. 2)."""
        total = sum(update.examples for update in updates)
        names = [node.name for node in self.graph.affines]
        wanted = [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]
        wanted += [f"{node.name}.threshold" for node in self.graph.spikes]
        parts = [(update.examples / total, update.arrays) for update in updates]
        return {name: torch.stack([share * arrays[name] for share, arrays in parts]).sum(0) for name in wanted}

    def _recovered(self, message: Message, update: Update) -> Message:
        state = recover(
            self.graph,
            update.arrays,
            biases=self.bias_back,
            minimum_scale=self.conversion.minimum_scale,
            fallback=self._sent,
        )
        reply = copy.copy(message)  # the received message stays as it is for whoever recorded it
        reply.content = RecordDict({ARRAYS: ArrayRecord(state), METRICS: MetricRecord({**update.metrics})})
        return reply
