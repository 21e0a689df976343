"""Calls of the compiled scans, :mod:`snnfl.neurons.kernel_training`: what isn't given is nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from snnfl.neurons import kernel_training
from snnfl.neurons.dynamics import Neuron
from snnfl.neurons.looped import RESETS, nothing, spike_of

Array = NDArray[Any]


def forward(
    neuron: Neuron,
    leak: float,
    threshold: float,
    current: Array,
    spikes: Array,
    *,
    lanes: Array | None = None,
    also: Array | None = None,
    before: Array | None = None,
    weight: Array | None = None,
    potentials: Array | None = None,
    pool: int = 1,
    inner: int = 1,
    height: int = 1,
) -> None:
    """Run neurons whose leak and threshold are these numbers, as :func:`snnfl.neurons.kernel_training.forward`."""
    number: Any = current.dtype.type
    kernel_training.forward(
        number(leak),
        number(threshold),
        RESETS[neuron.reset],
        neuron.delayed,
        spike_of(neuron).strict,
        pool,
        inner,
        height,
        current,
        nothing(2, number) if lanes is None else lanes,
        nothing(3, number) if also is None else also,
        nothing(2, number) if before is None else before,
        nothing(2, number) if weight is None else weight,
        spikes,
        nothing(3, number) if potentials is None else potentials,
    )


def backward(
    neuron: Neuron,
    leak: float,
    threshold: float,
    current: Array,
    of_current: Array,
    steps: int,
    *,
    of_spikes: Array | None = None,
    of_potentials: Array | None = None,
    lanes: Array | None = None,
    also: Array | None = None,
    before: Array | None = None,
    weight: Array | None = None,
    of_before: Array | None = None,
    of_weight: Array | None = None,
    sums: Array | None = None,
    learned: bool = False,
    pool: int = 1,
    inner: int = 1,
    height: int = 1,
) -> Array:
    """Run :func:`forward` backwards, as :func:`snnfl.neurons.kernel_training.backward`.

    Returns:
        The gradients by leak and threshold, ``[2]``: zeros unless ``learned``.
    """
    number: Any = current.dtype.type
    spike, of_parameters = spike_of(neuron), np.zeros(2)
    kernel_training.backward(
        number(leak),
        number(threshold),
        RESETS[neuron.reset],
        neuron.delayed,
        neuron.detached,
        spike.strict,
        kernel_training.DERIVATIVES[spike.derivative],
        number(spike.slope),
        learned,
        pool,
        inner,
        height,
        steps,
        current,
        nothing(2, number) if lanes is None else lanes,
        nothing(3, number) if also is None else also,
        nothing(2, number) if before is None else before,
        nothing(2, number) if weight is None else weight,
        nothing(3, number) if of_spikes is None else of_spikes,
        nothing(3, number) if of_potentials is None else of_potentials,
        of_current,
        nothing(2, number) if of_before is None else of_before,
        of_parameters,
        nothing(2, np.float64) if sums is None else sums,
        nothing(2, number) if of_weight is None else of_weight,
    )
    return of_parameters
