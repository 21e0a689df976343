"""The error of a spiking layer's mean output, and what is added to the layer so that it vanishes."""

from __future__ import annotations

import torch
from torch import Tensor

from snnfl.neurons import Neuron, NeuronState, at_threshold, broadcast, scan
from snnfl.spiking.in_time import add_drive

TIME_BIAS_RATE = 0.5
"""Part of an error that one correction of a bias in time takes back, as in the code of Wu et al. (2024)."""

TIME_BIAS_CORRECTIONS = 4
"""Corrections at each time step. Wu et al. make one for each of ten batches; here one batch is corrected repeatedly."""


def channel_sum(value: Tensor, channel: int) -> Tensor:
    """Sum over every dimension but ``channel``; returns float64 ``[C]``."""
    return value.sum([dim for dim in range(value.dim()) if dim != channel]).double()


def channel_mean(value: Tensor, channel: int = 1) -> Tensor:
    """Average over every dimension but ``channel``; returns float64 ``[C]``."""
    return channel_sum(value, channel) / (value.numel() // value.shape[channel])


def correct_in_time(current: Tensor, neuron: Neuron, potential: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Find the bias of one time step, and take the step with it.

    Repeats ``b_c <- b_c + alpha (mean(a)_c - mean(s(t))_c)``, where ``s(t)`` are the spikes that the potential before
    this step fires with the bias so far (Forward Temporal Bias Correction, Wu et al. 2024, arXiv 2403.18388,
    algorithm 1; ``alpha`` is :data:`TIME_BIAS_RATE`).

    Args:
        current: Of this step, shape ``[1, N, C, *space]``.
        neuron: The layer's neurons.
        potential: Membrane potential before the step, ``[N, C, *space]``; updated in place to that after it.
        target: Mean activation of each channel, ``[C]``.

    Returns:
        The bias, shape ``[C]``, and the binary spikes of this step, shape ``[1, N, C, *space]``.
    """
    bias, charged = torch.zeros_like(target), potential + current[0]
    fired = torch.empty_like(charged)
    for _ in range(TIME_BIAS_CORRECTIONS):
        at_threshold(charged, broadcast((neuron.threshold - bias).to(charged), charged.shape), out=fired)
        bias += TIME_BIAS_RATE * (target - channel_mean(fired) * neuron.threshold)
    bias = bias.to(charged)
    return bias, scan(neuron, NeuronState(potential), add_drive(current, bias[None]), binary=True)
