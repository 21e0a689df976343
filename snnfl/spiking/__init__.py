"""Spiking networks: the graph, its simulation in time, what its neurons do, files and other libraries."""

from snnfl.spiking.export import ExportError
from snnfl.spiking.export_nir import to_nir
from snnfl.spiking.export_spikingjelly import to_spikingjelly
from snnfl.spiking.export_trained import trained_to_nir
from snnfl.spiking.graph import Affine, LinearMap, MaxPool, Spike, SpikingGraph
from snnfl.spiking.network import SpikingNetwork
from snnfl.spiking.recording import Recording
from snnfl.spiking.state import State, Step
from snnfl.spiking.storage import NetworkFileError, load, save
from snnfl.spiking.trace import trace, trace_with_state
from snnfl.spiking.ways_out import ConversionError

__all__ = [
    "Affine",
    "ConversionError",
    "ExportError",
    "LinearMap",
    "MaxPool",
    "NetworkFileError",
    "Recording",
    "Spike",
    "SpikingGraph",
    "SpikingNetwork",
    "State",
    "Step",
    "load",
    "save",
    "to_nir",
    "to_spikingjelly",
    "trace",
    "trace_with_state",
    "trained_to_nir",
]
