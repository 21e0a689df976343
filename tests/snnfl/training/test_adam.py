"""Adam against PyTorch's own, also where a gradient is laid out otherwise than its parameter."""

from __future__ import annotations

import torch

from snnfl.rng import generator
from snnfl.training.optimisers import AdamState, adam_step


def test_steps_equal_pytorchs_in_any_layout() -> None:
    draws = generator(0, "weights")
    start = [torch.randn((4, 3, 2, 2), generator=draws), torch.randn(5, generator=draws)]
    for layout in (torch.contiguous_format, torch.channels_last):
        ours = [array.clone() for array in start]
        theirs = [array.clone().requires_grad_() for array in start]
        state, optimiser = AdamState.of(ours), torch.optim.Adam(theirs, lr=0.1)
        for _ in range(4):
            gradients = [torch.randn(array.shape, generator=draws) for array in start]
            for parameter, gradient in zip(theirs, gradients, strict=True):
                parameter.grad = gradient
            optimiser.step()
            adam_step(ours, [gradients[0].contiguous(memory_format=layout), gradients[1]], state, 0.1)
        for mine, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, expected.detach())
