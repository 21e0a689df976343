"""The S-variant of any Flower strategy (SNFL section 4.2)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from flwr.app import ArrayRecord, Message
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from snnfl.conversion.folding import fold, unexplained_biases
from snnfl.spiking import SpikingNetwork
from snnfl.updates import ArraySpec, Converted, Packing
from snnfl.updates.coordinates import update_of
from strategies.arrays import tensors_of, with_tensors
from strategies.bounds import changes
from strategies.guarded import Guarded
from strategies.update import MAXIMUM_EXAMPLES, Update, UpdateSpec
from strategies.weighting import Weighing, by_examples

logger = logging.getLogger(__name__)


class Spiking(Guarded):
    """Aggregate spiking updates by any base strategy.

    Clients send folded weights ``W_S``, calibrated biases ``b'``, thresholds ``V`` and batch normalisation, and what
    else the conversion calibrates: initial potentials, or biases in time. From each update the server recovers the ANN
    weights ``W_A = W_S sigma/gamma``; these, with the batch normalisation, are the replies that the base strategy
    aggregates as if no conversion had been. Biases aren't among them: clients keep their own.

    The server also aggregates the spiking networks and keeps the result in :attr:`network`. It averages them by the
    base strategy's weights (SNFL, "Server Aggregation"). Where the base strategy is a robust one, a second instance of
    it does that: a liar whom the first one withstands must not get into the spiking network. Where it is neither, the
    network ``follows`` what the base strategy made: its weights are the new ANN's, folded with the new batch
    normalisation, and of the clients' networks it takes what the ANN's arrays don't tell, which is thresholds and, of
    biases, what folding leaves unexplained (:func:`~snnfl.conversion.unexplained_biases`).

    With ``format.bias_back`` the server also infers each client's biases from ``b'`` and the batch normalisation and
    returns their aggregate (SNFL, Table 3).

    Args:
        base: Any Flower strategy.
        format: What clients send.
        metrics: Names of the metrics that come with it.
        seed: Seed of the run.
        minimum_replies: Valid replies below which nothing is aggregated.
        participation: Probability that a selected client takes part in a round.
        scales: As in :class:`~strategies.update.UpdateSpec`.
        update_bound: As in :class:`~strategies.guarded.Guarded`, for the recovered ANN and for the spiking network.
        weighing: What an update counts in an average, that of the ANN and that of the spiking networks.
        examples: Most training examples that a client may claim.
        test_examples: Most test examples.
        steps: As in :class:`~strategies.update.UpdateSpec`.
        control: Likewise.
        packing: Likewise.
        network_base: Aggregates the spiking networks; ``None`` averages them.
        follows: Whether the network's weights are those of what the base strategy made.
    """

    def __init__(
        self,
        base: Strategy,
        format: Converted,
        *,
        metrics: frozenset[str],
        scales: Mapping[str, float] | None = None,
        seed: int = 0,
        minimum_replies: int = 1,
        participation: float = 1.0,
        update_bound: float | None = 100.0,
        weighing: Weighing = by_examples,
        examples: int = MAXIMUM_EXAMPLES,
        test_examples: int = MAXIMUM_EXAMPLES,
        steps: Callable[[int], int] | None = None,
        control: Mapping[str, ArraySpec] | None = None,
        packing: Packing | None = None,
        network_base: Strategy | None = None,
        follows: bool = False,
    ) -> None:
        spec = UpdateSpec(
            arrays=format.specs,
            metrics=metrics,
            scales=scales or {},
            examples=examples,
            test_examples=test_examples,
            steps=steps,
            control=control or {},
            packing=packing,
        )
        super().__init__(
            base,
            spec,
            seed=seed,
            minimum_replies=minimum_replies,
            participation=participation,
            update_bound=update_bound,
            weighing=weighing,
        )
        self.network_base = network_base
        self.follows = follows
        self.format = format
        self.graph = format.graph
        self._network_names = {name: f"spiking {name}" for name in format.network_names}
        unexplained = {f"unexplained {node.name}.bias" for node in self.graph.affines}
        self.lenient = frozenset(self._network_names.values()) | unexplained
        self.scales |= {own: self.scales.get(name, 1.0) for name, own in self._network_names.items()}

    def prepare(self, valid: list[Message], updates: list[Update]) -> list[Message]:
        """Recover each client's ANN weights, in the order in which the server sent them."""
        return [self._recovered(message, update) for message, update in zip(valid, updates, strict=True)]

    def aggregated(self, server_round: int, arrays: ArrayRecord, valid: list[Message], updates: list[Update]) -> None:
        """Aggregate the spiking network too; the last one stays if the new one isn't finite."""
        if self.privacy is not None and self.privacy.releases:
            released = update_of(self.format, self.privacy.settle(tensors_of(arrays)))
            network = {name: released[name] for name in self.format.network_names}
            self.network = self.network_of(self.format.deployed(network))
            return
        parameters = self._combined(server_round, valid, updates)
        if parameters is None:
            return
        if self.follows:
            folded = fold(self.graph, tensors_of(arrays))
            parameters |= {n: parameters[n] + a if n.endswith(".bias") else a for n, a in folded.items()}
            if wrong := [name for name, array in parameters.items() if not torch.isfinite(array).all()]:
                message = "round %d: %s of the spiking network isn't finite; the last network is kept"
                logger.warning(message, server_round, wrong[0])
                return
        self.network = self.network_of(self.format.deployed(parameters))

    def _combined(self, server_round: int, valid: list[Message], updates: list[Update]) -> dict[str, Tensor] | None:
        """Average the clients' networks, or what of them is to be added to the one that follows."""
        wanted = list(self.format.network_names)
        networks = [update.arrays for update in updates]
        weights = [self.weighing(update) for update in updates]
        if self.follows:
            weight_names = {f"{node.name}.weight" for node in self.graph.affines}
            wanted = [name for name in wanted if name not in weight_names]
            networks = [{**n, **unexplained_biases(self.graph, n, biases=self.format.bias_back)} for n in networks]
        if self.network_base is None:
            return _average(networks, weights, wanted)
        pairs = zip(valid, networks, weights, strict=True)
        replies = [with_tensors(message, network, wanted, weight) for message, network, weight in pairs]
        arrays, _ = self.network_base.aggregate_train(server_round, replies)
        return None if arrays is None else tensors_of(arrays)

    def network_of(self, parameters: Mapping[str, Tensor]) -> SpikingNetwork:
        """Return the spiking network of some parameters, as the run simulates it."""
        return self.format.server_network(parameters)

    def state_of(self, update: Update) -> Mapping[str, Tensor]:
        """Recover a client's ANN; what was sent stands in for channels whose weight cannot be recovered."""
        return self.format.decode(update.arrays, self._sent)

    def magnitudes(self, update: Update, state: Mapping[str, Tensor]) -> dict[str, float]:
        """Return how far the recovered ANN goes, and how large the spiking network is."""
        network = {own: update.arrays[name] for name, own in self._network_names.items()}
        if self.follows:  # it adds what is left of the biases to those of another network
            left = unexplained_biases(self.graph, update.arrays, biases=self.format.bias_back)
            network |= {f"unexplained {name}": array for name, array in left.items()}
        return super().magnitudes(update, state) | changes(network, {})

    def _recovered(self, message: Message, update: Update) -> Message:
        return with_tensors(message, update.state or self.state_of(update), self._sent, self.weighing(update))


def _average(networks: Sequence[Mapping[str, Tensor]], weights: list[float], names: list[str]) -> dict[str, Tensor]:
    """Average arrays by weight (SNFL, "Server Aggregation")."""
    total = sum(weights) or math.nan
    parts = [(weight / total, arrays) for weight, arrays in zip(weights, networks, strict=True)]
    return {name: torch.stack([share * arrays[name] for share, arrays in parts]).sum(0) for name in names}
