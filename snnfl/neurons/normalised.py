"""Neurons whose current is batch-normalised: one scan reads what is normalised and writes spikes.

The normalised current, as large as all the spikes, is never written, nor kept for the backward pass. Spikes and
gradients are those of :func:`normalised` and :func:`snnfl.neurons.unroll`, one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from snnfl.neurons import kernel_normalised as kernel
from snnfl.neurons import scans
from snnfl.neurons.dynamics import Neuron
from snnfl.neurons.looped import How, fuses, scalar
from snnfl.neurons.order import Order, row_of_channels
from snnfl.neurons.unrolled import unroll


class Moments(NamedTuple):
    """Of a batch's channels: mean, and biased variance, ``[C]`` each."""

    mean: Tensor
    variance: Tensor


def lies_channels_last(images: Tensor) -> bool:
    """Tell whether images ``[N, C, H, W]`` lie channels last on a CPU, and no other way."""
    last = images.dim() == 4 and images.is_contiguous(memory_format=torch.channels_last)
    return last and images.device.type == "cpu" and not images.is_contiguous()


@dataclass(frozen=True)
class Normalised:
    """``gamma (values - mean) / sqrt(variance + eps) + beta``, and what is added, not computed yet.

    Attributes:
        values: Shape ``[..., C, H, W]``; as images they lie channels last.
        gamma: Shape ``[C]``.
        beta: Shape ``[C]``.
        moments: Of the values, by :func:`moments`: gradients flow through them.
        eps: What keeps a constant channel's scale finite.
        also: What is added, of the values' shape.
    """

    values: Tensor
    gamma: Tensor
    beta: Tensor
    moments: Moments
    eps: float
    also: Tensor | None = None

    def __add__(self, other: Tensor) -> Normalised | Tensor:
        """Add to what is normalised."""
        if self.also is not None or other.shape != self.values.shape or other.stride() != self.values.stride():
            return self.tensor() + other
        return replace(self, also=other)

    def tensor(self) -> Tensor:
        """Compute it."""
        inverse = (self.moments.variance + self.eps).rsqrt()
        found: Tensor = _Normalise.apply(self.values, self.gamma, self.beta, self.moments.mean, inverse)  # type: ignore[no-untyped-call]
        return found if self.also is None else found + self.also


@torch.no_grad()
def moments(images: Tensor) -> Moments:
    """Return mean and biased variance of each channel of images ``[N, C, H, W]`` that lie channels last."""
    rows = _rows(images)
    width, channels = rows.shape[1], images.shape[1]
    mean, squares = np.empty(width), np.empty(width)
    kernel.moments(rows, mean, squares)
    means, squares = mean.reshape(-1, channels), squares.reshape(-1, channels).sum(0)
    middle = means.mean(0)
    variance = (squares + len(rows) * np.square(means - middle).sum(0)) / (len(rows) * len(means))
    return Moments(torch.from_numpy(middle).to(images.dtype), torch.from_numpy(variance).to(images.dtype))


def spikes_of(neuron: Neuron, current: Normalised, steps: int | None = None, *, pool: int = 1) -> Tensor:
    """Run the neurons of one layer from rest, as :func:`snnfl.neurons.unroll`; first derivatives alone.

    Args:
        neuron: Their parameters, which may be trained.
        current: Shape ``[T, N, C, H, W]``, or ``[1, N, C, H, W]``, constant in time, with ``steps``.
        steps: Time steps of a constant current.
        pool: Side of the squares over which spikes are averaged; 1: none.
    """
    values = current.values
    if not fuses(neuron, values) or (pool > 1 and min(values.shape[-2:]) < pool):
        drive = current.tensor()
        return unroll(neuron, drive if steps is None else drive[0], steps, pool=pool).spikes
    leak, threshold = scalar(1.0 if neuron.leak is None else neuron.leak, values), scalar(neuron.threshold, values)
    inverse = (current.moments.variance + current.eps).rsqrt()
    found: Tensor = _Spikes.apply(  # type: ignore[no-untyped-call]
        values,
        current.gamma,
        current.beta,
        current.also,
        leak,
        threshold,
        current.moments.mean,
        inverse,
        How(neuron, steps, False, pool),
    )
    return found


class _Normalise(torch.autograd.Function):
    """``y = gamma inverse (x - mean) + beta`` (Ioffe and Szegedy 2015, alg. 1), with mean and inverse of ``x``."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(values, gamma, mean, inverse)
        out = torch.empty_like(values)
        rows = _rows(values)
        kernel.normalise_rows(rows, *_lanes(rows.shape[1], mean, inverse * gamma, beta), _rows(out))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, gamma, mean, inverse = ctx.saved_tensors
        gradient = _as(gradient, values)
        rows, width = _rows(values), _rows(values).shape[1]
        sums = np.empty((2, width))
        kernel.gradient_moments(_rows(gradient), rows, *_lanes(width, mean), sums)
        return (*_gradients(gradient, values, gamma, mean, inverse, sums, torch.empty_like(values)), None, None)


class _Spikes(torch.autograd.Function):
    """:class:`_Normalise`, the sum with another current, and the neurons' scan."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        gamma: Tensor,
        beta: Tensor,
        also: Tensor | None,
        leak: Tensor,
        threshold: Tensor,
        mean: Tensor,
        inverse: Tensor,
        how: How,
    ) -> Tensor:
        ctx.how = how
        ctx.save_for_backward(values, gamma, beta, also, leak, threshold, mean, inverse)
        order = Order(values, how.pool, channels=True)
        spikes = order.empty(len(values) if how.steps is None else how.steps, values, pooled=True)
        rows = order.rows(values)
        scans.forward(
            how.neuron,
            leak.item(),
            threshold.item(),
            rows,
            order.rows(spikes, pooled=True),
            lanes=_lanes(rows.shape[2], mean, inverse * gamma, beta),
            also=None if also is None else order.rows(also),
            pool=how.pool,
            inner=order.inner,
            height=order.height,
        )
        return spikes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_spikes: Tensor) -> tuple[Tensor | None, ...]:
        values, gamma, beta, also, leak, threshold, mean, inverse = ctx.saved_tensors
        how: How = ctx.how
        order = Order(values, how.pool, channels=True)
        rows, of_drive = order.rows(values), order.empty(len(values), values)
        sums = np.zeros((2, rows.shape[2]))
        of_parameters = scans.backward(
            how.neuron,
            leak.item(),
            threshold.item(),
            rows,
            order.rows(of_drive),
            len(values) if how.steps is None else how.steps,
            of_spikes=order.rows(of_spikes, pooled=True),
            lanes=_lanes(rows.shape[2], mean, inverse * gamma, beta),
            also=None if also is None else order.rows(also),
            sums=sums,
            learned=ctx.needs_input_grad[4] or ctx.needs_input_grad[5],
            pool=how.pool,
            inner=order.inner,
            height=order.height,
        )
        of_leak, of_threshold = torch.from_numpy(of_parameters).to(leak).unbind()
        into = of_drive if also is None else order.empty(len(values), values)
        found = _gradients(of_drive, values, gamma, mean, inverse, sums, into)
        return *found, None if also is None else of_drive, of_leak, of_threshold, None, None, None


def _gradients(
    gradient: Tensor,
    values: Tensor,
    gamma: Tensor,
    mean: Tensor,
    inverse: Tensor,
    sums: NDArray[np.float64],
    out: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients by values, gamma and beta of a normalisation; the first one is written to ``out``."""
    width, channels = sums.shape[1], len(gamma)
    of_beta, product = torch.from_numpy(sums.reshape(2, -1, channels).sum(1))
    count = values.numel() // channels
    of_deviation = inverse.double().square() * product / count
    lanes = _lanes(width, mean, gamma * inverse, (of_beta / count).to(mean), of_deviation.to(mean))
    kernel.gradient_rows(_flat(gradient, width), _flat(values, width), *lanes, _flat(out, width))
    return out, (product * inverse).to(gamma), of_beta.to(gamma)


def _lanes(width: int, *channels: Tensor) -> NDArray[Any]:
    """Repeat arrays ``[C]`` until they fill a row: ``[len(channels), width]``."""
    found: NDArray[Any] = torch.stack(channels).detach().repeat(1, width // len(channels[0])).numpy()
    return found


def _rows(images: Tensor) -> NDArray[Any]:
    """Return values ``[..., C, H, W]`` that lie channels last as rows of several times all channels."""
    return _flat(images, row_of_channels(images.numel(), images.shape[-3]))


def _flat(images: Tensor, width: int) -> NDArray[Any]:
    rows: NDArray[Any] = images.detach().movedim(-3, -1).view(-1, width).numpy()
    return rows


def _as(gradient: Tensor, values: Tensor) -> Tensor:
    """Lay a gradient out as what it belongs to."""
    return gradient if gradient.stride() == values.stride() else torch.empty_like(values).copy_(gradient)
