"""PrivateSNN's two attacks in one file, literally: one image, one step, one loop after the other.

Written from the paper (Kim et al. 2022, Algorithms 1 and 3, eq. 5). Networks are ``tests.networks.Plain``; spikes are
worth 1 and thresholds are divided by the ones before them, as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional


def gaussian_blur(image: Tensor) -> Tensor:
    """Blur ``[C, H, W]`` by the kernel ``[1, 2, 1] / 4`` in both directions, pixel by pixel; edges are repeated."""
    channels, height, width = image.shape
    found = torch.zeros_like(image)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                for dy, wy in ((-1, 0.25), (0, 0.5), (1, 0.25)):
                    for dx, wx in ((-1, 0.25), (0, 0.5), (1, 0.25)):
                        pixel = image[c, min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)]
                        found[c, y, x] += wy * wx * pixel
    return found


def algorithm_1(network, target: int, start: Tensor, *, iterations: int, eta: float = 6.0, f_blur: int = 4) -> Tensor:
    """Algorithm 1 for one image ``[C, H, W]``."""
    x = start.clone()
    for n in range(1, iterations + 1):
        if n % f_blur == 0:
            x = gaussian_blur(x)
        x = x.detach().requires_grad_()
        y = network(x[None])[0]
        (gradient,) = torch.autograd.grad(y[target], x)
        x = (x + eta * gradient).detach()
    return x


class Triangle(torch.autograd.Function):
    """``1[x >= 0]`` of ``x = u / V_th - 1`` with the derivative ``max(0, 1 - |x|)``: eq. 5."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (1 - x.abs()).clamp_min(0)


def algorithm_3(
    weights: Mapping[str, Tensor],
    target: int,
    start: Tensor,
    *,
    iterations: int,
    steps: int,
    leak: float,
    thresholds: Sequence[Tensor],
    generator: torch.Generator,
    zeta: float = 0.01,
) -> Tensor:
    """Algorithm 3 for one image ``[C, H, W]``, coded by a spike ``1[r < |x|] sign(x)`` at each step."""
    first, second = thresholds
    x, accumulated = start.clone(), torch.zeros_like(weights["conv.bias"][:, None, None])
    for _ in range(iterations):
        u1 = u2 = out = None
        currents = []
        for _ in range(steps):
            draws = torch.rand((1, *x.shape), generator=generator, dtype=x.dtype)
            spikes = (draws < x.abs()).to(x.dtype) * x.sign()
            current = functional.conv2d(spikes, weights["conv.weight"], weights["conv.bias"], padding=1)
            currents.append(current.detach().requires_grad_())
            u1 = currents[-1] if u1 is None else leak * u1 + currents[-1]
            s1 = Triangle.apply(u1 / first - 1)
            u1 = u1 - first * s1.detach()
            pooled = functional.avg_pool2d(s1, 2).flatten(1)
            current = functional.linear(pooled, weights["hidden.weight"], weights["hidden.bias"] / first)
            u2 = current if u2 is None else leak * u2 + current
            s2 = Triangle.apply(u2 / (second / first) - 1)
            u2 = u2 - (second / first) * s2.detach()
            current = functional.linear(s2, weights["head.weight"], weights["head.bias"] / second)
            out = current if out is None else out + current
        logit = (out * second / steps)[0, target]
        for gradient in torch.autograd.grad(logit, currents):
            accumulated = accumulated + gradient[0] / steps
        x = x + zeta * functional.conv_transpose2d(accumulated[None], weights["conv.weight"], padding=1)[0]
    return x
