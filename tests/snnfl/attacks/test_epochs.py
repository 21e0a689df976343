"""A client's images in other orders are the same images, and whoever knows the order finds more."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st
from victims import attacked, small_cnn, small_mlp

from snnfl.attacks import Budget, get_attack
from snnfl.attacks.epochs import directions, epoch_distance, merged
from snnfl.config import TrainingConfig
from snnfl.metrics.images import matched, psnr
from snnfl.threat import Knowledge


@given(epochs=st.integers(1, 4), count=st.integers(1, 6), seed=st.integers(0, 100))
def test_epochs_of_the_same_images_are_no_distance_apart(epochs, count, seed):
    draw = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, 3, 3, generator=draw)
    orders = torch.cat([torch.randperm(count, generator=draw) for _ in range(epochs)])
    assert float(epoch_distance(images[orders], epochs, directions((1, 3, 3)))) < 1e-10
    torch.testing.assert_close(merged(images[orders], epochs), images[orders[:count]])
    if epochs > 1:
        other = images[orders].clone()
        other[-1] += 1
        assert float(epoch_distance(other, epochs, directions((1, 3, 3)))) > 1e-3


def test_to_know_the_order_finds_more():
    training = TrainingConfig(epochs=2, batch_size=2, learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    draw = torch.Generator().manual_seed(1)
    orders = torch.stack([torch.randperm(4, generator=draw) for _ in range(2)])
    known = Knowledge(images=4, batch_size=2, epochs=2, learning_rate=0.1, labels=True)
    victim = attacked(small_mlp(), start=20, images=4, training=training, orders=orders, knowledge=known)
    found = {}
    for told in (True, False):
        view = replace(victim.view, orders=orders if told else None)
        generator = torch.Generator().manual_seed(0)
        images = get_attack("inverting_gradients").run(view, budget=Budget(iterations=150), generator=generator).images
        truth = victim.truth.images
        found[told] = float(psnr(images[matched(images, truth)], truth).mean())
    assert found[True] > found[False] + 2, found


def test_there_is_no_order_to_guess_where_it_is_known_or_there_is_none():
    attack = get_attack("order_invariant")
    one = attacked(small_cnn(), images=2).view
    assert "there is no order" in attack.refusal(one)
    training = TrainingConfig(epochs=2, batch_size=2, learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    several = attacked(small_cnn(), images=4, training=training).view
    assert attack.refusal(several) is None
    assert "is known" in attack.refusal(replace(several, orders=torch.arange(4).repeat(2, 1)))
