"""Which layers of a spiking graph are driven by events (:mod:`snnfl.neurons.events`)."""

from __future__ import annotations

import torch

from snnfl.neurons.events import EventLayer
from snnfl.spiking.graph import Affine, Parameters, SpikingGraph


def event_layers(graph: SpikingGraph, parameters: Parameters) -> dict[str, EventLayer]:
    """Lay out the weights of the layers that spikes drive at every time step, of those that :class:`EventLayer` takes.

    Others, and everything off the CPU or in another type than float32 and float64, stay with PyTorch.
    """
    found = {}
    for node in graph.body:
        if isinstance(node, Affine):
            weight = parameters[f"{node.name}.weight"]
            if weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64):
                if node.op == "linear":
                    found[node.name] = EventLayer.of(weight)
                elif node.op == "conv2d" and _is_plain(node):
                    found[node.name] = EventLayer.of(weight, node.arguments["stride"], node.arguments["padding"])
    return found


def _is_plain(node: Affine) -> bool:
    arguments = node.arguments
    return arguments["groups"] == 1 and arguments["dilation"] == (1, 1) and isinstance(arguments["padding"], tuple)
