"""Fake quantisers: float32 values that take few levels, with gradients to train through."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 1e-10
"""Of the largest magnitude that a scale is made of, as in brevitas: a weight of zeros has none to divide by."""


def straight_through(values: Tensor) -> Tensor:
    """Round to whole numbers, halves to even, with the gradient of the identity (Bengio et al. 2013)."""
    rounded: Tensor = values.round().detach() + (values - values.detach())
    return rounded


def symmetric(weight: Tensor, bits: int, *, per_channel: bool = False) -> Tensor:
    """Quantise a weight to ``2^b - 1`` levels about zero.

    ``q = s round(w / s)`` with ``s = max|w| / (2^(b-1) - 1)``. Rounding counts as the identity in the gradient, the
    maximum as what it is: the largest weight also moves the scale. At 2 bits weights are ternary. This is the default
    of brevitas's ``QuantLinear`` and ``QuantConv2d`` (``Int8WeightPerTensorFloat``), bit for bit, forward and backward.

    With a scale per channel it commutes with whatever multiplies channels, as batch normalisation does that is folded.

    Args:
        weight: Shape ``[out, in, *kernel]``.
        bits: ``b``, at least 2.
        per_channel: Whether each output channel has a scale of its own.

    >>> symmetric(torch.tensor([[1.0, -0.6, 0.4]]), 2)
    tensor([[ 1., -1.,  0.]])
    """
    magnitudes = weight.abs()
    if per_channel:
        largest = magnitudes.flatten(1).max(dim=1).values.view(-1, *[1] * (weight.dim() - 1))
    else:
        largest = magnitudes.max()
    scale = largest.clamp_min(SMALLEST) / (2 ** (bits - 1) - 1)
    quantised: Tensor = straight_through(weight / scale) * scale
    return quantised


def rectified(values: Tensor, bits: int, largest: Tensor | float) -> Tensor:
    """Rectify, clip and quantise activations to ``2^b`` levels from zero.

    ``q = s round(clip(a, 0, a_max) / s)`` with ``s = a_max / (2^b - 1)``: Moshruba et al., eq. 1 with ``a_min = 0``. A
    learned ``a_max`` receives 1 of what is clipped and the rounding error of the rest, ``(round(a/s) - a/s) s / a_max``
    (Esser et al., "Learned step size quantization", ICLR 2020, eq. 3), as that of brevitas's ``QuantReLU``.

    Args:
        values: Of any shape.
        bits: ``b``.
        largest: ``a_max``, positive.

    >>> rectified(torch.tensor([-1.0, 0.4, 0.6, 9.0]), 2, 3.0)
    tensor([0., 0., 1., 3.])
    """
    top = torch.as_tensor(largest, dtype=values.dtype, device=values.device)
    step = top / (2**bits - 1)
    quantised: Tensor = straight_through(torch.minimum(values.clamp_min(0), top) / step) * step
    return quantised


def affine(values: Tensor, bits: int, low: float, high: float) -> Tensor:
    """Quantise to ``2^b`` levels of equal distance, with the gradient of the identity, also of what is clipped.

    ``q = low + s round((clip(v, low, high) - low) / s)`` with ``s = (high - low) / (2^b - 1)``: Moshruba et al., eq. 1.
    From ``-q`` to ``1.2 q`` it is snnTorch's ``state_quant(b, uniform=True, threshold=q)``, which looks the nearest of
    a list of levels up, value for value.

    Args:
        values: Of any shape.
        bits: ``b``.
        low: Smallest level.
        high: Largest level.
    """
    step = (high - low) / (2**bits - 1)
    levels: Tensor = ((values.clamp(low, high) - low) / step).round() * step + low
    quantised: Tensor = levels.detach() + (values - values.detach())
    return quantised


def clip_floor_shift(values: Tensor, levels: int, threshold: Tensor) -> Tensor:
    """Quantise, clip, floor and shift activations: what ``L`` steps of an integrate-and-fire neuron tell of them.

    ``q = V_th / L clip(floor(a L / V_th + 1/2), 0, L)`` (QCFS: Bu et al., "Optimal ANN-SNN conversion for high-accuracy
    and ultra-low-latency spiking neural networks", ICLR 2022, arXiv 2303.04347, eq. 15). A neuron of that threshold
    which starts at half of it, and receives ``a`` in equal parts over ``T = L`` steps, has this mean output.

    The gradient is the authors' code's: floor counts as the identity, so an activation between 0 and ``V_th`` receives
    1 and any other 0; the threshold receives 1 of what is clipped at it and ``(q - a) / V_th`` of what lies below.

    Args:
        values: Of any shape; with a threshold per channel ``[N, C, *space]``.
        levels: ``L``, at least 1.
        threshold: ``V_th``, positive, shape ``[1]`` or ``[C]``.

    >>> clip_floor_shift(torch.tensor([-1.0, 0.2, 0.3, 0.8, 9.0]), 2, torch.tensor([1.0]))
    tensor([0.0000, 0.0000, 0.5000, 1.0000, 1.0000])
    """
    top = threshold if len(threshold) == 1 else threshold.view(-1, *[1] * (values.dim() - 2))
    share = (values / top).clamp(0, 1)
    with torch.no_grad():  # in place: a sixth of the memory traffic of as many expressions
        rounding = share.mul(levels).add_(0.5).floor_().div_(levels).sub_(share)
    quantised: Tensor = (share + rounding) * top
    return quantised
