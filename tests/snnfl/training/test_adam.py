"""Adam against PyTorch's own, also where a gradient is laid out otherwise than its parameter."""

from __future__ import annotations

import pytest
import torch

from snnfl.config import TrainingConfig
from snnfl.rng import generator
from snnfl.training.optimisers import AdamState, adam_step, behind_first_step, first_adam_step, optimiser_of


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1.0, 1e5])
def test_the_first_step_and_the_state_behind_it_are_those_from_zeros_to_the_bit(dtype: torch.dtype, scale: float):
    draws = generator(0, "weights")
    shapes = [(count,) for count in (*range(1, 40), 1000)] + [(8, 3, 3, 3), (1, 4, 2, 2), (3, 5)]
    parameters = [torch.randn(shape, generator=draws, dtype=dtype) for shape in shapes]
    parameters[-3] = parameters[-3].contiguous(memory_format=torch.channels_last)
    gradients = [scale * torch.randn(shape, generator=draws, dtype=dtype) for shape in shapes]
    gradients[5][::2] = 0
    expected = [parameter.clone(memory_format=torch.preserve_format) for parameter in parameters]
    state = AdamState.of(expected)
    adam_step(expected, gradients, state, 1e-3)
    behind = first_adam_step(parameters, gradients, 1e-3)
    assert behind is not None
    found = behind_first_step(parameters, behind)
    for mine, other in ((parameters, expected), *zip(found, state, strict=True)):
        assert all(map(torch.equal, mine, other))


def test_where_parameters_lie_apart_the_first_step_is_that_from_zeros():
    parameter = torch.zeros(4, 6)[:, ::2]
    assert first_adam_step([parameter], [torch.ones(4, 3)], 0.1) is None
    assert not parameter.any()


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_an_optimiser_steps_as_pytorchs_fused_one_to_the_bit(name: str, decay: float):
    draws = generator(0, "weights")
    config = TrainingConfig(optimizer=name, weight_decay=decay)
    ours = [torch.randn(shape, generator=draws).requires_grad_() for shape in ((300, 7), (300,))]
    theirs = [array.detach().clone().requires_grad_() for array in ours]
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    mine, other = optimiser_of(ours, 0.01, config), kind(theirs, lr=0.01, weight_decay=decay, fused=True)
    for _ in range(3):
        for first, second in zip(ours, theirs, strict=True):
            gradient = torch.randn(first.shape, generator=draws)
            first.grad, second.grad = gradient, gradient.clone()
        mine.step()
        other.step()
        assert all(map(torch.equal, ours, theirs))
