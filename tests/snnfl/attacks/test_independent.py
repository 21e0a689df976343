"""Attacks find what a second implementation finds, written from the papers in plain loops, without attack code.

Both get the same victims, budget and random starts. Compared is the mean PSNR over victims: signed steps are chaotic,
so single ones differ by more.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from victims import Victim, attacked, small_cnn, small_mlp

from snnfl.attacks import Budget
from snnfl.attacks.registry import get_attack
from snnfl.config import ConversionConfig

AGREEMENT = 0.5
"""Difference of mean PSNR in dB that is allowed."""

VICTIMS = 4

RATE = 0.1
"""Of the victims' only step."""


def network(victim: Victim) -> nn.Module:
    """Return what the server sent; biases that it didn't send, as to an S-client, are those that it received."""
    model, exchange = copy.deepcopy(victim.view.model).to_empty(device="cpu"), victim.view.exchange
    known = {**exchange.received, **exchange.sent}
    names = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
    model.load_state_dict({name: array for name, array in known.items() if name in names}, strict=False)
    return model


def gradients(victim: Victim, model: nn.Module) -> dict[str, Tensor]:
    """Return the gradient of the only step, of what the update tells."""
    sent, received = victim.view.exchange.sent, victim.view.exchange.received
    return {n: (sent[n] - received[n]) / RATE for n, _ in model.named_parameters() if n in sent and n in received}


def label_of(gradient: dict[str, Tensor]) -> Tensor:
    """Return the one class whose row of the last layer has a negative gradient, for its inputs are positive."""
    last = [name for name in gradient if name.endswith("weight")][-1]
    return gradient[last].sum(1).argmin().view(1)


def total_variation(images: Tensor) -> Tensor:
    across, down = images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]
    return across.abs().mean() + down.abs().mean()


def distance(model: nn.Module, images: Tensor, label: Tensor, wanted: dict[str, Tensor], graph: bool = True) -> Tensor:
    """Return one minus the cosine of the angle between the gradient of images and the observed one."""
    parameters = dict(model.named_parameters())
    loss = nn.functional.cross_entropy(model(images), label)
    found = torch.autograd.grad(loss, [parameters[name] for name in wanted], create_graph=graph)
    pairs = list(zip(found, wanted.values(), strict=True))
    product = sum((a * b).sum() for a, b in pairs)
    lengths = sum(a.square().sum() for a, _ in pairs).sqrt() * sum(b.square().sum() for _, b in pairs).sqrt()
    return 1 - product / lengths


def invert(victim: Victim, model: nn.Module, iterations: int, start: Tensor) -> Tensor:
    """Invert as Geiping et al.: signed Adam of 0.1 that falls at 3/8, 5/8 and 7/8, total variation of 0.01, a box."""
    wanted, (mean, std) = gradients(victim, model), (victim.view.mean, victim.view.std)
    label = label_of(wanted)
    low, high = (0 - mean) / std, (1 - mean) / std
    images = start.clamp(low.item(), high.item()).requires_grad_()
    optimizer, best, least = torch.optim.Adam([images], lr=0.1), images.detach().clone(), math.inf
    for iteration in range(iterations):
        if iteration in (iterations * 3 // 8, iterations * 5 // 8, iterations * 7 // 8):
            optimizer.param_groups[0]["lr"] /= 10
        value = distance(model, images, label, wanted) + 0.01 * total_variation(images)
        if value.item() < least:
            best, least = images.detach().clone(), value.item()
        (slope,) = torch.autograd.grad(value, [images])
        images.grad = slope.sign()
        optimizer.step()
        images.data.clamp_(low.item(), high.item())
    return best * std + mean


def inverting_gradients(victim: Victim, iterations: int, start: Tensor) -> Tensor:
    return invert(victim, network(victim).train(), iterations, start)


def huang(victim: Victim, iterations: int, start: Tensor) -> Tensor:
    """Invert with the statistics of the update, in evaluation mode."""
    model, received = network(victim), victim.view.exchange.received
    model.load_state_dict({name: array for name, array in received.items() if "running" in name}, strict=False)
    return invert(victim, model.eval(), iterations, start)


def rank_one(victim: Victim, iterations: int, start: Tensor) -> Tensor:
    """Take the direction of the first layer's gradient by power iteration, and the length that matches the rest."""
    model = network(victim)
    wanted = gradients(victim, model)
    label, matrix = label_of(wanted), wanted["fc1.weight"].double().numpy()
    direction = start.double().flatten().numpy()
    for _ in range(50):
        direction = matrix.T @ (matrix @ direction)
        direction /= np.linalg.norm(direction)
    model, double = model.double(), {name: array.double() for name, array in wanted.items()}

    def miss(length: float) -> float:
        images = torch.from_numpy(length * direction).view(1, 1, 8, 8)
        return float(distance(model, images, label, double, graph=False).detach())

    lengths = np.linspace(-30, 30, 400)
    start = min(lengths, key=miss)
    step = lengths[1] - lengths[0]
    length = minimize_scalar(miss, bounds=(start - step, start + step), method="bounded", options={"xatol": 1e-9}).x
    pixels: Tensor = torch.from_numpy(length * direction).view(1, 1, 8, 8) * victim.view.std + victim.view.mean
    return pixels


def psnr(found: Tensor, true: Tensor) -> float:
    return -10 * math.log10(float((found.double().clamp(0, 1) - true.double()).square().mean()))


def cnn(start: int) -> Victim:
    return attacked(small_cnn(), start=start)


def normalised(start: int) -> Victim:
    return attacked(small_cnn(norm=True), start=start)


def spiking_mlp(start: int) -> Victim:
    return attacked(small_mlp(), start=start, conversion=ConversionConfig(steps=16))


@pytest.mark.parametrize(
    ("name", "second", "make", "iterations"),
    [
        ("inverting_gradients", inverting_gradients, cnn, 60),
        ("huang", huang, normalised, 60),
        ("closed_form", rank_one, spiking_mlp, 1),
    ],
)
def test_a_second_implementation_finds_as_much(
    name: str, second: Callable[[Victim, int, Tensor], Tensor], make: Callable[[int], Victim], iterations: int
) -> None:
    victims = [make(start) for start in range(VICTIMS)]
    draws = torch.Generator().manual_seed(0)
    starts = torch.randn(VICTIMS, 1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    attack, budget = get_attack(name), Budget(iterations=iterations, compiled=False)
    found = attack.run_many([victim.view for victim in victims], budget=budget, generator=draws)
    ours = [psnr(one.images, victim.truth.images) for one, victim in zip(found, victims, strict=True)]
    theirs = [
        psnr(second(victim, iterations, start), victim.truth.images)
        for victim, start in zip(victims, starts, strict=True)
    ]
    assert np.mean(ours) > 13  # noise has less
    assert np.mean(ours) == pytest.approx(np.mean(theirs), abs=AGREEMENT), (np.round(ours, 1), np.round(theirs, 1))
