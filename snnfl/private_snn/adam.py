"""Adam as a function of explicit state, so that what was interrupted goes on with the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.adam import adam


class AdamState(NamedTuple):
    """Of each parameter: mean and mean square of its gradients, and the steps taken."""

    means: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]

    @classmethod
    def of(cls, parameters: Sequence[Tensor]) -> AdamState:
        """Return the state before the first step."""
        means, squares = ([torch.zeros_like(parameter) for parameter in parameters] for _ in range(2))
        return cls(means, squares, [torch.zeros((), device=parameter.device) for parameter in parameters])


@torch.no_grad()
def adam_step(parameters: Sequence[Tensor], gradients: Sequence[Tensor], state: AdamState, rate: float) -> None:
    """Take a step of ``torch.optim.Adam`` (Kingma & Ba 2015, PyTorch's constants): parameters and state, in place.

    PyTorch's fused step goes through memory, whatever the layout: a gradient in another one than its parameter's, as a
    convolution may give, would move other weights than its own. So each is laid out as its parameter.
    """
    adam(
        list(parameters),
        [_laid_out(*pair) for pair in zip(gradients, parameters, strict=True)],
        state.means,
        state.squares,
        [],
        state.steps,
        amsgrad=False,
        beta1=0.9,
        beta2=0.999,
        lr=rate,
        weight_decay=0.0,
        eps=1e-8,
        maximize=False,
        fused=True,
    )


def _laid_out(gradient: Tensor, parameter: Tensor) -> Tensor:
    return gradient if gradient.stride() == parameter.stride() else torch.empty_like(parameter).copy_(gradient)
