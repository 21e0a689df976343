"""Spiking networks: neurons as pure functions, the spiking graph, its simulation."""

from snnfl.spiking.graph import Affine, LinearMap, MaxPool, Spike, SpikingGraph
from snnfl.spiking.network import SpikingNetwork
from snnfl.spiking.trace import trace, trace_with_state
from snnfl.spiking.ways_out import ConversionError

__all__ = [
    "Affine",
    "ConversionError",
    "LinearMap",
    "MaxPool",
    "Spike",
    "SpikingGraph",
    "SpikingNetwork",
    "trace",
    "trace_with_state",
]
