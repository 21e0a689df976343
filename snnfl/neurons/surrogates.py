"""Surrogate gradients: what takes the place of a spike's derivative, which is zero or infinite, in training.

With ``x = u - V_th`` and a slope ``k``:

========================  ===========================================  =====  ==========================================
name                      derivative of the spike by ``x``             k      the same as
========================  ===========================================  =====  ==========================================
``fast_sigmoid``          ``1 / (1 + k |x|)^2``                        25     snnTorch; spikingjelly's SoftSign x 2/k
``atan``                  ``(k/2) / (1 + (pi k x / 2)^2)``             2      snnTorch, spikingjelly
``sigmoid``               ``k s(kx) (1 - s(kx))``                      25     snnTorch, spikingjelly
``spike_rate_escape``     ``k exp(-|x - 1|)``                          25     snnTorch
``triangular``            ``k max(0, 1 - k |x|)``                      1      spikingjelly's PiecewiseQuadratic
``triangular_damped``     ``0.3 k max(0, 1 - k |x|)``                  1      PrivateSNN's code, with ``k = 1/V_th``
``triangular_snntorch``   ``k`` below the threshold, ``-k`` above it   1      snnTorch's Triangular
``straight_through``      ``1``                                        –      snnTorch
========================  ===========================================  =====  ==========================================

Two of snnTorch's are not what they are called. Its ``Triangular`` is constant, and of the wrong sign above the
threshold. Its ``spike_rate_escape`` is largest at ``u = V_th + 1``, not at the threshold. Its ``sigmoid`` overflows to
NaN in float32 where ``kx < -88``; here it doesn't.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from snnfl.registry import Registry

Derivative: TypeAlias = Callable[[Tensor, float], Tensor]
"""``(u - V_th, slope) -> derivative of the spike``, elementwise, by operations that can be differentiated again."""


@dataclass(frozen=True)
class Surrogate:
    """A surrogate gradient.

    Attributes:
        derivative: Its formula.
        slope: What it takes if nobody says.
    """

    derivative: Derivative
    slope: float


SURROGATES = Registry[Surrogate]("surrogate gradient", "model.surrogate")


def register(name: str, *, slope: float) -> Callable[[Derivative], Derivative]:
    """Make the decorated formula the surrogate gradient ``name``.

    Args:
        name: Not taken yet.
        slope: Its slope if nobody says.

    Raises:
        ValueError: If the name is taken.
    """

    def add(derivative: Derivative) -> Derivative:
        SURROGATES.add(name, Surrogate(derivative, slope), home=derivative.__module__)
        return derivative

    return add


@register("fast_sigmoid", slope=25.0)
def fast_sigmoid(x: Tensor, slope: float) -> Tensor:
    """Return ``1 / (1 + k |x|)^2`` (Zenke & Ganguli 2018)."""
    return (1 + slope * x.abs()).square().reciprocal()


@register("atan", slope=2.0)
def atan(x: Tensor, slope: float) -> Tensor:
    """Return ``(k/2) / (1 + (pi k x / 2)^2)`` (Fang et al. 2021)."""
    return slope / 2 / (1 + (math.pi / 2 * slope * x).square())


@register("sigmoid", slope=25.0)
def sigmoid(x: Tensor, slope: float) -> Tensor:
    """Return ``k s(kx) (1 - s(kx))`` with the logistic function ``s``."""
    rate = torch.sigmoid(slope * x)
    return slope * rate * (1 - rate)


@register("spike_rate_escape", slope=25.0)
def spike_rate_escape(x: Tensor, slope: float) -> Tensor:
    """Return ``k exp(-|x - 1|)`` (after Shrestha & Orchard 2018, as snnTorch has it)."""
    return slope * torch.exp(-(x - 1).abs())


@register("triangular", slope=1.0)
def triangle(x: Tensor, slope: float) -> Tensor:
    """Return ``k max(0, 1 - k |x|)`` (Esser et al. 2016; Bellec et al. 2018)."""
    return slope * (1 - slope * x.abs()).clamp_min(0)


@register("triangular_damped", slope=1.0)
def triangle_damped(x: Tensor, slope: float) -> Tensor:
    """Return ``0.3 k max(0, 1 - k |x|)``: the triangle, damped so that it doesn't explode over many steps.

    With ``k = 1/V_th`` it is the derivative by the potential of a spike whose code differentiates it by ``u/V_th - 1``,
    to ``0.3 max(0, 1 - |u/V_th - 1|)``: Bellec et al. 2018 (damping factor 0.3) and the code of PrivateSNN (Kim et al.
    2022), whose paper has no damping (eq. 5).
    """
    return 0.3 * slope * (1 - slope * x.abs()).clamp_min(0)


@register("triangular_snntorch", slope=1.0)
def triangular_snntorch(x: Tensor, slope: float) -> Tensor:
    """Return ``k`` where ``x < 0``, else ``-k``: snnTorch's Triangular."""
    return torch.where(x < 0, slope, -slope).to(x.dtype)


@register("straight_through", slope=1.0)
def straight_through(x: Tensor, slope: float) -> Tensor:
    """Return 1 everywhere (Bengio et al. 2013)."""
    return torch.ones_like(x)


@dataclass(frozen=True, kw_only=True)
class SurrogateSpike:
    """A spike function with a surrogate gradient.

    Attributes:
        derivative: Of the spike by ``u - V_th``.
        slope: Of the derivative.
        strict: Whether a neuron fires at ``u > V_th`` (snnTorch), and not already at ``u >= V_th`` (spikingjelly).
    """

    derivative: Derivative
    slope: float
    strict: bool = True

    def __call__(self, charged: Tensor, threshold: Tensor) -> Tensor:
        """Return 1 where the neuron fires, else 0, in the potential's type."""
        spikes: Tensor = _Fire.apply(charged - threshold, self)  # type: ignore[no-untyped-call]
        return spikes


def surrogate_spike(name: str, *, slope: float | None = None, strict: bool = True) -> SurrogateSpike:
    """Return the spike function of a registered surrogate gradient.

    Args:
        name: Of the surrogate.
        slope: ``None`` for its own default.
        strict: As in :class:`SurrogateSpike`.

    Raises:
        ConfigError: If nobody has registered the name.
    """
    surrogate = SURROGATES.find(name)
    return SurrogateSpike(
        derivative=surrogate.derivative, slope=surrogate.slope if slope is None else slope, strict=strict
    )


class _Fire(torch.autograd.Function):
    """The step function of ``u - V_th``, with a derivative that autograd can differentiate again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, spike: SurrogateSpike) -> Tensor:
        return (x > 0 if spike.strict else x >= 0).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, SurrogateSpike], output: Tensor) -> None:
        x, ctx.spike = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradient * ctx.spike.derivative(x, ctx.spike.slope), None
