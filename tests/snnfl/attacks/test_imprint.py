from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from victims import attacked, digits, small_cnn, small_mlp

from snnfl import rng
from snnfl.attacks import Budget, get_attack
from snnfl.attacks.imprint import imprinted
from snnfl.metrics.images import matched, psnr
from snnfl.threat import Knowledge, ThreatModelError


def crafted(hidden: int) -> nn.Module:
    model = small_mlp(hidden)
    pixels, _, mean, std = digits(500, 1000)
    model.load_state_dict(imprinted(model, dict(model.state_dict()), (pixels - mean) / std, seed=0))
    return model


def known(images: int) -> Knowledge:
    return Knowledge(images=images, batch_size=images, epochs=1, learning_rate=0.1, crafted_weights=True)


def found_of(victim):
    result = get_attack("imprint").run(victim.view, budget=Budget(), generator=rng.generator(0, "attack"))
    true = victim.truth.images
    return psnr(result.images[matched(result.images, true)], true)


def test_images_that_are_alone_in_their_bins_are_found_exactly():
    """A batch of 16 in 400 bins: gradients of clients that nobody could invert."""
    scores = found_of(attacked(crafted(400), images=16, knowledge=known(16)))
    assert (scores > 50).float().mean() >= 0.8


def test_a_network_that_nobody_crafted_tells_nothing_that_way():
    assert (found_of(attacked(small_mlp(400), images=16, knowledge=known(16))) < 30).all()


def test_it_is_never_an_honest_servers_attack():
    view = attacked(crafted(50), images=2, knowledge=replace(known(2), crafted_weights=False)).view
    assert "needs crafted_weights" in str(get_attack("imprint").refusal(view))


@pytest.mark.parametrize(
    "model", [small_cnn(), nn.Sequential(nn.Flatten(), nn.Linear(64, 8, bias=False), nn.Linear(8, 2))]
)
def test_a_model_that_cannot_be_imprinted_is_refused(model):
    pixels = digits(10)[0]
    with pytest.raises(ThreatModelError, match="two linear layers"):
        imprinted(model, dict(model.state_dict()), pixels, seed=0)


def test_several_steps_are_refused():
    knowledge = replace(known(4), epochs=2)
    assert "one step" in str(get_attack("imprint").refusal(attacked(crafted(50), images=4, knowledge=knowledge).view))


def test_the_second_layer_has_the_same_slope_by_every_unit():
    state = crafted(50).state_dict()
    assert torch.equal(state["fc2.weight"], state["fc2.weight"][:, :1].expand(-1, 50))
    assert torch.equal(state["fc1.weight"], state["fc1.weight"][:1].expand(50, -1))
    assert (state["fc1.bias"].diff() < 0).all()
