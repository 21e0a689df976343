"""The S-variant of any Flower strategy (SNFL section 4.2)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from snnfl.config import ConfigError, ConversionConfig
from snnfl.conversion import recover
from snnfl.conversion.folding import NORM_FIELDS
from snnfl.protocol import ARRAYS, METRICS
from snnfl.spiking import SpikingGraph, SpikingNetwork
from strategies.guarded import Guarded
from strategies.update import MAXIMUM_EXAMPLES, Update, UpdateSpec, spiking_specs


class Spiking(Guarded):
    """Aggregate spiking updates by any base strategy.

    Clients send folded weights ``W_S``, calibrated biases ``b'``, thresholds ``V`` and batch normalisation, and what
    else the conversion calibrates: initial potentials, or biases in time. The server averages the spiking network,
    weighted by examples, and keeps it in :attr:`network`. From each update it recovers the ANN weights
    ``W_A = W_S sigma/gamma``; these, with the batch normalisation, are the replies that the base strategy aggregates
    as if no conversion had been. Biases aren't among them: clients keep their own.

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
        examples: Most training examples that a client may claim.
        test_examples: Most test examples.

    Raises:
        ConfigError: If biases in time are calibrated for fewer steps than the network is simulated.
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
        examples: int = MAXIMUM_EXAMPLES,
        test_examples: int = MAXIMUM_EXAMPLES,
    ) -> None:
        in_time = conversion.calibration == "time_bias"
        if in_time and conversion.calibration_length < conversion.steps:
            raise ConfigError(
                f"conversion.calibration_steps={conversion.calibration_steps}: calibration=time_bias needs a bias for "
                f"each of the conversion.steps={conversion.steps}; give as many, or null"
            )
        arrays = spiking_specs(
            graph,
            state,
            per_channel=conversion.thresholds == "channel_mmse",
            potentials=conversion.calibration in ("potential", "bias_potential"),
            time_biases=conversion.calibration_length if in_time else 0,
        )
        spec = UpdateSpec(arrays=arrays, metrics=metrics, examples=examples, test_examples=test_examples)
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
        """Average the spiking network's arrays by examples (SNFL, "Server Aggregation"; FedAvg, eq. 2)."""
        total = sum(update.examples for update in updates)
        norms = {f"{node.norm}.{name}" for node in self.graph.affines for name in NORM_FIELDS if node.norm}
        wanted = [name for name in self.spec.arrays if name not in norms]
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
