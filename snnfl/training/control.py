"""SCAFFOLD's local training: gradients that are corrected by what other clients' gradients are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from snnfl.training.objectives import Objective, cross_entropy


def controlled(model: nn.Module, correction: Mapping[str, Tensor]) -> Objective:
    """Return the cross-entropy, whose gradient is corrected: ``g(y) - c_i + c``.

    Karimireddy et al., "SCAFFOLD: Stochastic controlled averaging for federated learning", ICML 2020, algorithm 1,
    line 10. The correction is the gradient of a linear term ``(c - c_i) y`` that is added without its value: what is
    reported is the cross-entropy.

    Args:
        model: The one that will be trained; decides where the correction lies.
        correction: ``c - c_i`` by parameter. Parameters that it doesn't name follow their own gradient.
    """
    parameters = dict(model.named_parameters())
    slopes = {name: torch.empty_like(parameters[name]).copy_(array).detach() for name, array in correction.items()}

    def objective(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        parameters = dict(model.named_parameters())
        term = torch.stack([(slope * parameters[name]).sum() for name, slope in slopes.items()]).sum()
        return cross_entropy(model, inputs, labels) + (term - term.detach())

    return objective


def control_change(
    received: Mapping[str, Tensor], trained: Mapping[str, Tensor], control: Mapping[str, Tensor], scale: float
) -> dict[str, Tensor]:
    """Return how a client's control variate changes in a round: ``(x - y) / scale - c`` (line 12, option II).

    With ``c_i`` before, ``c_i`` after is ``c_i - c + (x - y) / scale``: the mean of the gradients of the round, without
    their correction.

    Args:
        received: ``x``, the weights before local training.
        trained: ``y``, those after.
        control: ``c``, the server's control variate; its names are those of the result.
        scale: ``K eta``, steps times learning rate; with momentum :func:`~snnfl.training.gradient_weight` in the place
            of the steps, as ``x - y = eta sum_j a_j (g_j - c_i + c)``.
    """
    return {name: (received[name] - trained[name].to(array.device)) / scale - array for name, array in control.items()}
