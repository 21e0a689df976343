"""SCAFFOLD's corrected gradient, and how a control variate is renewed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from snnfl.config import TrainingConfig
from snnfl.training import (
    control_change,
    controlled,
    cross_entropy,
    exchangeable,
    gradient_weight,
    learning_rate,
    train_locally,
)


def build() -> nn.Sequential:
    draw = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    with torch.no_grad():
        for array in model.parameters():
            array.copy_(torch.randn(array.shape, generator=draw))
    return model.to(memory_format=torch.channels_last)


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(6, 1, 4, 4, generator=draw), torch.randint(3, (6,), generator=draw)


def test_the_gradient_is_corrected_and_the_loss_is_the_cross_entropy() -> None:
    model, (inputs, labels) = build(), batch(1)
    draw = torch.Generator().manual_seed(5)
    correction = {name: torch.randn(model.state_dict()[name].shape, generator=draw) for name in ("0.weight", "2.bias")}
    loss = controlled(model, correction)(model, inputs, labels)
    assert loss == cross_entropy(model, inputs, labels)
    names, parameters = zip(*model.named_parameters(), strict=True)
    plain = torch.autograd.grad(cross_entropy(model, inputs, labels), parameters)
    for name, found, own in zip(names, torch.autograd.grad(loss, parameters), plain, strict=True):
        torch.testing.assert_close(found, own + correction[name] if name in correction else own, msg=name)


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_a_control_variate_becomes_the_mean_of_the_gradients(momentum: float) -> None:
    """Of the steps, weighed as they enter what is trained, whatever corrected them."""
    config = TrainingConfig(learning_rate=0.01, momentum=momentum, weight_decay=0.1, milestones=(2,))
    model, draw = build(), torch.Generator().manual_seed(9)
    received = {name: array.clone() for name, array in exchangeable(model).items()}
    c, c_i = ({n: torch.randn(a.shape, generator=draw) for n, a in received.items()} for _ in range(2))
    gradients: list[dict[str, torch.Tensor]] = []
    corrected = controlled(model, {name: c[name] - c_i[name] for name in c})

    def watched(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        names, parameters = zip(*model.named_parameters(), strict=True)
        own = torch.autograd.grad(cross_entropy(model, inputs, labels), parameters)
        gradients.append({n: g + 0.1 * p.detach() for n, g, p in zip(names, own, parameters, strict=True)})
        return corrected(model, inputs, labels)

    steps = train_locally(
        model, [[batch(n) for n in range(3)], [batch(7)]], config, server_round=2, objective=watched
    ).steps
    scale = learning_rate(config, 2) * gradient_weight(steps, momentum)
    change = control_change(received, exchangeable(model), c, scale)
    weights = [sum(momentum**m for m in range(steps - j)) for j in range(steps)]
    for name in c:
        mean = sum(w * g[name] for w, g in zip(weights, gradients, strict=True)) / sum(weights)
        torch.testing.assert_close(c_i[name] + change[name], mean, rtol=1e-3, atol=1e-3, msg=name)
