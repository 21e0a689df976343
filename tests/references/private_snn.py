"""PrivateSNN in one file, literally: one image, one step, one neuron layer after the other, in whatever type is given.

Written from the paper (Kim et al. 2022, eq. 1 to 5, Algorithm 2) and its public code; slow on purpose. Networks are
``conv - relu - average pool - linear - relu - linear`` as ``tests.networks.Plain``; spikes are worth 1, and thresholds
and biases are divided by the thresholds before them, as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional


class DampedTriangle(torch.autograd.Function):
    """``1[x >= 0]`` of ``x = u / V_th - 1`` with the derivative ``0.3 max(0, 1 - |x|)``, as in the authors' code."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * 0.3 * (1 - x.abs()).clamp_min(0)


def poisson_step(image: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one step of signed Poisson spikes: ``1[r < |x|] sign(x)``."""
    draws = torch.rand(image.shape, generator=generator, dtype=image.dtype)
    return (draws < image.abs()).to(image.dtype) * image.sign()


def spiking_logits(
    weights: Mapping[str, Tensor], inputs: Sequence[Tensor], *, leaks: Sequence[float], thresholds: Sequence[Tensor]
) -> Tensor:
    """Run LIF neurons over time and return the last layer's accumulated potential divided by ``T``, ``[N, classes]``.

    Args:
        weights: Of ``Plain``, by name: of the ANN.
        inputs: What flows in at each step, ``[N, C, H, W]``.
        leaks: Of the two layers of neurons.
        thresholds: In units of the ANN's activations, ``[1]`` or ``[C]`` each. With one threshold per layer the paper's
            units are used: each layer's threshold is divided by the one before it.
    """
    first, second = thresholds
    if first.numel() > 1:
        raise ValueError("literal units need one threshold per layer")
    u1 = u2 = out = None
    for x in inputs:
        current = functional.conv2d(x, weights["conv.weight"], weights["conv.bias"], padding=1)
        u1 = current if u1 is None else leaks[0] * u1 + current
        s1 = DampedTriangle.apply(u1 / first - 1)
        u1 = u1 - first * s1.detach()
        pooled = functional.avg_pool2d(s1, 2).flatten(1)
        current = functional.linear(pooled, weights["hidden.weight"], weights["hidden.bias"] / first)
        u2 = current if u2 is None else leaks[1] * u2 + current
        s2 = DampedTriangle.apply(u2 / (second / first) - 1)
        u2 = u2 - (second / first) * s2.detach()
        current = functional.linear(s2, weights["head.weight"], weights["head.bias"] / second)
        out = current if out is None else out + current
    return out * second / len(inputs)


def similarity(weight: Tensor) -> Tensor:
    """Class similarity, one pair after the other: cosines, then each row brought to 0..1."""
    rows = []
    for first in weight:
        row = [float(first @ second / (first.norm() * second.norm())) for second in weight]
        rows.append([(value - min(row)) / (max(row) - min(row)) for value in row])
    return torch.tensor(rows, dtype=weight.dtype)


def image(model, label: Tensor, start: Tensor, *, iterations: int, rate: float, low: float, high: float) -> Tensor:
    """Make one image for a soft label, as the public code does, and keep its pixels where pixels can be."""
    x = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([x], lr=rate)
    for _ in range(iterations):
        optimiser.zero_grad()
        loss = -(label * functional.log_softmax(model(x[None])[0] / 20, dim=0)).sum()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            x.clamp_(low, high)
    return x.detach()


def threshold(currents: Sequence[Tensor]) -> float:
    """Return the largest current of a layer over time, images and neurons."""
    largest = -float("inf")
    for current in currents:
        for value in current.flatten():
            largest = max(largest, float(value))
    return largest


def loss(logits: Tensor, labels: Tensor, taught: Tensor, *, m: float, tau: float) -> Tensor:
    """Eq. 3, image after image and class after class."""
    total = torch.zeros((), dtype=logits.dtype)
    for student, label, teacher in zip(logits, labels, taught, strict=True):
        p = torch.exp(student) / torch.exp(student).sum()
        soft, hard = (torch.exp(each / tau) / torch.exp(each / tau).sum() for each in (student, teacher))
        for index in range(len(p)):
            total = total - (1 - m) * label[index] * torch.log(p[index])
            total = total + m * tau**2 * hard[index] * torch.log(hard[index] / soft[index])
    return total / len(logits)
