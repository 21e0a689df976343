"""What the exports to other libraries share: there a spike is worth 1, here it is worth the threshold."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType

import torch
from torch import Tensor

from snnfl.spiking.graph import Affine, GraphNode, LinearMap, MaxPool, Spike, SpikingGraph
from snnfl.spiking.linear_maps import LINEAR_OPS
from snnfl.spiking.network import SpikingNetwork
from snnfl.spiking.node_operations import MAX_OPS, Form


class ExportError(ValueError):
    """A network that a library or format cannot express, or a library that is missing: names it and the way out."""


def optional_library(name: str, requirement: str) -> ModuleType:
    """Import a library that only an export needs.

    Raises:
        ExportError: If it isn't installed, with the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(f"{name} cannot be imported ({error}); type: pip install '{requirement}'") from None


def check_single_spikes(network: SpikingNetwork, reader: str) -> None:
    """Check that neurons fire once a step and take nothing back, and that nothing comes before a simulation.

    Raises:
        ExportError: Naming the option and the way out.
    """
    for option, is_set in (
        ("signed", network.signed),
        ("burst", network.burst > 1),
        ("correction", network.correction != "none"),
    ):
        if is_set:
            value = str(getattr(network, option)).lower()
            raise ExportError(
                f"{option}={value}: {reader} neurons that fire at most once a step, take no spike back and start alike "
                "for all images; convert without it, for more steps, such as ConversionConfig.fast(steps=32)"
            )


def unit_spikes(network: SpikingNetwork) -> tuple[SpikingGraph, dict[str, Tensor]]:
    """Rewrite a network for neurons whose spikes are worth 1: equal currents, equal spikes.

    The thresholds, which spikes are worth here, go into the weights of the affine layers that read them, directly or
    through what a factor passes, such as pooling and flattening: ``W (V_th s) = (W V_th) s``. Where neurons are read
    otherwise, as by a residual addition or by other neurons, a node ``<value>_amplitude`` multiplies by the threshold
    (an affine ``scale``).
    Currents equal those of :meth:`SpikingNetwork.simulate` up to rounding: products are rounded before they are added.

    Args:
        network: The spiking network.

    Returns:
        The graph and its parameters; thresholds are unchanged.
    """
    graph, parameters = network.graph, dict(network.parameters)
    forms = graph.forms({node.name: len(parameters[f"{node.name}.weight"]) for node in graph.affines})
    rewrite = _Rewrite(graph, parameters, forms)
    for node in network.graph.nodes:
        rewrite.visit(node)
    return rewrite.finish()


@dataclass
class _Rewrite:
    graph: SpikingGraph
    parameters: dict[str, Tensor]
    forms: Mapping[str, Form]
    nodes: list[GraphNode] = field(default_factory=list)
    amplitudes: dict[str, Tensor] = field(default_factory=dict)
    """What a value has to be multiplied by, ``[1]`` or ``[C]``; of a flattened value, by channel of what it was."""

    def visit(self, node: GraphNode) -> None:
        if isinstance(node, Affine):
            if node.inputs[0] in self.amplitudes:
                weight = self.parameters[f"{node.name}.weight"]
                self.parameters[f"{node.name}.weight"] = _scaled(node, weight, self.amplitudes[node.inputs[0]])
        elif isinstance(node, LinearMap | MaxPool) and self._passes(node):
            if node.inputs[0] in self.amplitudes:
                self.amplitudes[node.name] = self.amplitudes[node.inputs[0]]
        else:
            node = replace(node, inputs=tuple(self._multiplied(name) for name in node.inputs))
        self.nodes.append(node)
        if isinstance(node, Spike):
            self.amplitudes[node.name] = self.parameters[f"{node.name}.threshold"]

    def finish(self) -> tuple[SpikingGraph, dict[str, Tensor]]:
        self._multiplied(self.graph.output)  # the last node is the output
        return replace(self.graph, nodes=tuple(self.nodes)), self.parameters

    def _passes(self, node: LinearMap | MaxPool) -> bool:
        """Tell whether what a node computes commutes with the factor, and whoever reads it can take the factor."""
        operation = (LINEAR_OPS if isinstance(node, LinearMap) else MAX_OPS)[node.op]
        source, *others = node.inputs
        if others or operation.constant(node.arguments):
            return False
        one = len(self.amplitudes.get(source, ())) <= 1
        if one or operation.by_channel(node.arguments, self.forms[source].rank):
            return True
        flat = self.forms[node.name].rank == 2 and node.op in ("flatten", "reshape")
        readers = self.graph.consumers[node.name]
        return flat and bool(readers) and all(isinstance(r, Affine) and r.op == "linear" for r in readers)

    def _multiplied(self, name: str) -> str:
        """Return the name of a value with its factor, for a reader that cannot take the factor itself."""
        if name not in self.amplitudes:
            return name
        made = f"{name}_amplitude"
        while made in self.graph.by_name:
            made += "_"
        if f"{made}.weight" not in self.parameters:
            amplitude = self.amplitudes[name]
            self.nodes.append(Affine(name=made, inputs=(name,), op="scale"))
            self.parameters[f"{made}.weight"] = amplitude
            self.parameters[f"{made}.bias"] = torch.zeros_like(amplitude)
        return made


def _scaled(node: Affine, weight: Tensor, amplitude: Tensor) -> Tensor:
    """Multiply the columns of a weight that read each channel; behind a flatten several columns read one."""
    if node.op == "scale":
        return weight * amplitude
    groups = node.arguments.get("groups", 1)
    columns = amplitude.repeat_interleave(weight.shape[1] * groups // len(amplitude))
    by_output = columns.view(groups, -1).repeat_interleave(len(weight) // groups, dim=0)
    return weight * by_output.view(*by_output.shape, *[1] * (weight.dim() - 2))
