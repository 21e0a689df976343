from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from victims import attacked, digits, small_cnn, sorting_cnn

from snnfl import rng
from snnfl.attacks import Budget, get_attack
from snnfl.attacks.loki import SCALE, layers_of, loki_weights
from snnfl.config import TrainingConfig
from snnfl.metrics.images import matched, psnr
from snnfl.threat import Exchange, Knowledge, ServerView, ThreatModelError

IMAGES = 32


def crafted(client: int, scale: float = SCALE) -> nn.Module:
    model = sorting_cnn()
    pixels, _, mean, std = digits(500, 1000)
    state = loki_weights(model, dict(model.state_dict()), (pixels - mean) / std, seed=0, client=client, scale=scale)
    model.load_state_dict(state)
    return model


def summed(models: list[nn.Module], *, batch: int = IMAGES) -> tuple[ServerView, list[Tensor]]:
    """Return what a server has of a sum of clients, one with each model, and the images of each."""
    training = TrainingConfig(epochs=1, batch_size=batch, learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    victims = [attacked(model, start=IMAGES * n, images=IMAGES, training=training) for n, model in enumerate(models)]
    sent, count = victims[0].view.exchange.sent, len(victims)
    means = {
        name: sum((v.view.exchange.received[name] - v.view.exchange.sent[name]).double() for v in victims) / count
        for name in sent
    }
    exchange = Exchange(
        server_round=1, sent=sent, received={name: (array + means[name]).float() for name, array in sent.items()}
    )
    known = Knowledge(
        images=IMAGES * count, batch_size=batch * count, epochs=1, learning_rate=0.1, clients=count,
        crafted_weights=True,
    )  # fmt: skip
    view = replace(victims[0].view, exchange=exchange, knowledge=known)
    return view, [victim.truth.images for victim in victims]


def share(view: ServerView, true: Tensor) -> float:
    """Return the part of some images that are found exactly."""
    result = get_attack("loki").run(view, budget=Budget(), generator=rng.generator(0, "attack"))
    return float((psnr(result.images[matched(result.images, true)], true) > 40).float().mean())


def test_three_clients_in_one_sum_are_found_each_in_columns_of_its_own():
    view, images = summed([crafted(client) for client in range(3)])
    assert share(view, torch.cat(images)) > 0.7
    alone = []
    for client in range(3):
        others = torch.ones(9 * 64, dtype=torch.bool)
        others[client * 192 : (client + 1) * 192] = False
        received = dict(view.exchange.received)
        received["fc2.weight"] = torch.where(others, view.exchange.sent["fc2.weight"], received["fc2.weight"])
        only = replace(view, exchange=replace(view.exchange, received=received))
        alone.append([share(only, true) for true in images])
    assert all((alone[one][other] > 0.6) == (one == other) for one in range(3) for other in range(3)), alone
    assert all(alone[one][other] < 0.2 for one in range(3) for other in range(3) if one != other), alone


def test_clients_that_are_sent_the_same_weights_are_mixed():
    apart, images = summed([crafted(client) for client in range(3)])
    alike, _ = summed([crafted(0)] * 3)
    assert share(alike, torch.cat(images)) < share(apart, torch.cat(images)) - 0.1


def test_several_steps_are_read_apart_with_the_scaling_factor_alone():
    view, images = summed([crafted(client) for client in range(3)], batch=8)
    assert view.knowledge.steps == 4
    assert share(view, torch.cat(images)) > 0.5
    unscaled, _ = summed([crafted(client, scale=1.0) for client in range(3)], batch=8)
    assert share(unscaled, torch.cat(images)) < 0.3


def test_a_network_that_nobody_crafted_tells_nothing_that_way():
    view, images = summed([sorting_cnn()] * 2)
    assert share(view, torch.cat(images)) < 0.05


def test_a_client_for_whom_no_maps_are_left_adds_nothing():
    model = crafted(3)
    inputs = torch.rand(4, 1, 8, 8, generator=rng.generator(0, "inputs"))
    assert not model[:2](inputs).any()
    first, images = summed([crafted(0)])
    both, _ = summed([crafted(0), model])
    assert share(first, images[0]) == share(both, images[0]) > 0.7


def test_it_is_never_an_honest_servers_attack():
    view = summed([crafted(0)])[0]
    denied = replace(view, knowledge=replace(view.knowledge, crafted_weights=False))
    assert "needs crafted_weights" in str(get_attack("loki").refusal(denied))


def layered(convolution: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (small_cnn(), "a convolution, then two linear layers"),
        (layered(nn.Conv2d(1, 4, 3), 4 * 36), "keeps each pixel where it is"),
        (layered(nn.Conv2d(1, 4, 3, padding=1, stride=2), 4 * 16), "keeps each pixel where it is"),
        (layered(nn.Conv2d(1, 4, 3, padding=1, bias=False), 4 * 64), "with biases"),
        (layered(nn.Conv2d(1, 2, 3, padding=1), 2 * 64), "needs 3 maps a client for 1 channels, and the model has 2"),
    ],
)
def test_a_model_that_cannot_be_crafted_is_refused(model, reason):
    with pytest.raises(ThreatModelError, match=reason):
        layers_of(model, (1, 8, 8))
