"""Neurons as pure functions of state and current: parameters, state, one time step, and fast scans over many."""

from snnfl.neurons.dynamics import (
    Adaptation,
    Neuron,
    NeuronState,
    Reset,
    SpikeFunction,
    Store,
    at_threshold,
    broadcast,
    by_subtraction,
    to_zero,
    triangular,
    without_reset,
)
from snnfl.neurons.encodings import ENCODINGS, Encoding
from snnfl.neurons.encodings import register as register_encoding
from snnfl.neurons.kernels import KERNELS, Kernel, scan
from snnfl.neurons.looped import loop
from snnfl.neurons.surrogates import SURROGATES, Surrogate, SurrogateSpike, surrogate_spike
from snnfl.neurons.surrogates import register as register_surrogate
from snnfl.neurons.unrolled import Unrolled, unroll

__all__ = [
    "ENCODINGS",
    "KERNELS",
    "SURROGATES",
    "Adaptation",
    "Encoding",
    "Kernel",
    "Neuron",
    "NeuronState",
    "Reset",
    "SpikeFunction",
    "Store",
    "Surrogate",
    "SurrogateSpike",
    "Unrolled",
    "at_threshold",
    "broadcast",
    "by_subtraction",
    "loop",
    "register_encoding",
    "register_surrogate",
    "scan",
    "surrogate_spike",
    "to_zero",
    "triangular",
    "unroll",
    "without_reset",
]
