"""Neurons as pure functions of state and current: parameters, state, one time step, and fast scans over many."""

from snnfl.neurons.dynamics import (
    Neuron,
    NeuronState,
    Reset,
    SpikeFunction,
    at_threshold,
    broadcast,
    by_subtraction,
    to_zero,
    triangular,
)
from snnfl.neurons.kernels import KERNELS, Kernel, scan

__all__ = [
    "KERNELS",
    "Kernel",
    "Neuron",
    "NeuronState",
    "Reset",
    "SpikeFunction",
    "at_threshold",
    "broadcast",
    "by_subtraction",
    "scan",
    "to_zero",
    "triangular",
]
