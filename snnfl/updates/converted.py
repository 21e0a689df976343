"""An S-client's update: the ANN converted to a calibrated spiking network (SNFL section 4.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from snnfl.config import ConfigError, ConversionConfig
from snnfl.conversion import convert_state, recover
from snnfl.conversion.folding import NORM_FIELDS, fold
from snnfl.quantisation import symmetric
from snnfl.spiking import SpikingGraph, SpikingNetwork
from snnfl.updates.arrays import ArraySpec, ann_specs
from snnfl.updates.format import UpdateFormat


class Converted(UpdateFormat):
    """Folded weights ``W_S``, calibrated biases ``b'``, thresholds ``V`` and batch normalisation.

    Thresholds are found on the client's images, or learned with the ANN, which then has them under the same names.
    Names are ``<layer>.weight``, ``<layer>.bias``, ``<relu>.threshold``, ``.potential`` or ``.time_bias`` where those
    are calibrated, and ``<norm>.gamma``, ``.beta``, ``.mean`` and ``.var``. The server recovers
    ``W_A = W_S sigma/gamma`` by each update's own batch normalisation, and sends the ANN without the biases of layers,
    which clients keep.

    Args:
        graph: Structure of the network, from :func:`snnfl.spiking.trace`.
        state: An ANN state of the model, for names and shapes.
        conversion: How clients convert.
        bias_back: Whether the server infers biases from ``b'`` and sends them (SNFL, Table 3).
        weight_bits: Of the weights that clients compute with; 0 where they aren't quantised. What travels are the
            float32 weights that are trained; the network that is calibrated, and the server's, has quantised ones.

    Raises:
        ConfigError: If biases in time are calibrated for fewer steps than the network is simulated.
    """

    kind = "converted"
    hides_biases = True
    needs_individual = "weights are recovered by dividing by each update's own gamma/sigma"
    graph: SpikingGraph
    conversion: ConversionConfig

    def __init__(
        self,
        graph: SpikingGraph,
        state: Mapping[str, Tensor],
        conversion: ConversionConfig,
        *,
        bias_back: bool = False,
        weight_bits: int = 0,
    ) -> None:
        if conversion.calibration == "time_bias" and conversion.calibration_length < conversion.steps:
            raise ConfigError(
                f"conversion.calibration_steps={conversion.calibration_steps}: calibration=time_bias needs a bias for "
                f"each of the conversion.steps={conversion.steps}; give as many, or null"
            )
        self.graph = graph
        self.conversion = conversion
        self.bias_back = bias_back
        self.weight_bits = weight_bits
        biases = [f"{node.name}.bias" for node in graph.affines if node.has_bias]
        self.private_names = () if bias_back else tuple(name for name in biases if name in state)
        self.specs = converted_specs(graph, state, conversion)
        self.sent_specs = ann_specs({name: array for name, array in state.items() if name not in self.private_names})
        self.sent_specs |= {name: self.specs[name] for name in graph.learned_thresholds}
        self.threshold_names = tuple(f"{node.name}.threshold" for node in graph.spikes)
        self.weight_names = tuple(f"{node.name}.weight" for node in graph.affines if node.op != "scale")
        norms = [node.norm for node in graph.affines if node.norm is not None]
        self.norm_arrays = {f"{norm}.{own}": f"{norm}.{ours}" for norm in norms for own, ours in NORM_FIELDS.items()}
        self.norm_names = frozenset(self.norm_arrays)
        self.statistic_names = {
            f"{norm}.{NORM_FIELDS[field]}": f"{norm}.{field}" for norm in norms for field in ("mean", "var")
        }

    @property
    def network_names(self) -> tuple[str, ...]:
        """Which of ``specs`` are the spiking network's: all but the batch normalisation."""
        return tuple(name for name in self.specs if name not in self.norm_names)

    def encode(self, state: Mapping[str, Tensor], images: Tensor) -> dict[str, Tensor]:
        """Convert and calibrate ("Client Encryption", SNFL section 4.2)."""
        network = convert_state(self.graph, self._quantised(state), images, self.conversion)
        norms = {
            f"{node.norm}.{field}": state[f"{node.norm}.{name}"]
            for node in self.graph.affines
            if node.norm is not None
            for field, name in NORM_FIELDS.items()
        }
        update = {**network.parameters, **norms}
        if self.weight_bits:
            trained = fold(self.graph, state)
            update |= {name: trained[name] for name in self.weight_names}
        return update

    def decode(
        self, received: Mapping[str, Tensor], sent: Mapping[str, Tensor], *, biases: bool | None = None
    ) -> dict[str, Tensor]:
        """Recover the ANN ("Server Aggregation"); a channel that cannot be recovered is as it was sent."""
        return recover(
            self.graph,
            received,
            biases=self.bias_back if biases is None else biases,
            minimum_scale=self.conversion.minimum_scale,
            fallback=sent,
        )

    def rebuilt(self, rest: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Fold weights of the ANN by the update's own batch normalisation."""
        norms = {ours: rest[own] for own, ours in self.norm_arrays.items()}
        folded = fold(self.graph, {**state, **norms})
        return {**rest, **{name: folded[name] for name in self.weight_names}}

    def deployed(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters of the server's network: aggregated ones, whose weights it quantises as clients do.

        A scale per channel is multiplied with the channel, so folded weights are quantised as those of the ANN are.
        """
        return self._quantised(parameters)

    def _quantised(self, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return arrays of which the weights, of an ANN or folded ones, take as few levels as clients' do."""
        found = dict(arrays)
        if self.weight_bits:
            weights = {name: symmetric(found[name], self.weight_bits, per_channel=True) for name in self.weight_names}
            found |= weights
        return found

    def server_network(self, parameters: Mapping[str, Tensor]) -> SpikingNetwork:
        """Return the spiking network of some parameters, as the run simulates it."""
        return SpikingNetwork.configured(self.graph, parameters, self.conversion)


def converted_specs(
    graph: SpikingGraph, state: Mapping[str, Tensor], conversion: ConversionConfig
) -> dict[str, ArraySpec]:
    """Describe the update of an S-client.

    Args:
        graph: Structure of the network.
        state: An ANN state, for the shapes.
        conversion: Decides whether thresholds are per channel, and what is calibrated.
    """
    per_channel = conversion.thresholds == "channel_mmse"
    potentials = conversion.calibration in ("potential", "bias_potential")
    time_biases = conversion.calibration_length if conversion.calibration == "time_bias" else 0
    specs: dict[str, ArraySpec] = {}
    weights = {f"{node.name}.weight": node.outputs_first(state[f"{node.name}.weight"]) for node in graph.affines}
    for node in graph.affines:
        weight = weights[f"{node.name}.weight"]
        specs[f"{node.name}.weight"] = ArraySpec(shape=tuple(weight.shape))
        specs[f"{node.name}.bias"] = ArraySpec(shape=(len(weight),))
        if node.norm is not None:
            for field in NORM_FIELDS:
                values: Literal["finite", "non-negative"] = "non-negative" if field == "var" else "finite"
                specs[f"{node.norm}.{field}"] = ArraySpec(shape=(len(weight),), values=values)
    for spike in graph.spikes:
        channels = graph.channels(spike.name, weights) if per_channel or potentials or time_biases else 1
        shape = (channels if per_channel and spike.levels is None else 1,)
        specs[f"{spike.name}.threshold"] = ArraySpec(shape=shape, values="positive")
        if potentials:
            specs[f"{spike.name}.potential"] = ArraySpec(shape=(channels,))
        if time_biases:
            specs[f"{spike.name}.time_bias"] = ArraySpec(shape=(time_biases, channels))
    return specs
