"""Clipping and noise do what they say to an update, and without them an attack would go on as before."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from victims import attacked, small_cnn

from snnfl.auditing.controls import noised, plain_twin
from snnfl.auditing.ground_truth import GroundTruth
from snnfl.auditing.victims import Victim
from snnfl.config import ConversionConfig


def victims(*starts):
    made = (attacked(small_cnn(), start=start) for start in starts)
    return [Victim(server_round=1, partition=n, view=each.view, truth=each.truth) for n, each in enumerate(made)]


def change(victim):
    exchange = victim.view.exchange
    return torch.cat([(exchange.received[name] - array).flatten() for name, array in exchange.sent.items()])


def test_updates_are_clipped_to_their_median_norm():
    before = victims(0, 5, 9)
    limit = torch.stack([change(victim).norm() for victim in before]).median()
    for old, new in zip(before, noised(before, 0.0, 0), strict=True):
        expected = change(old) * min(1.0, float(limit / change(old).norm()))
        torch.testing.assert_close(change(new), expected, rtol=1e-3, atol=1e-6)
        assert new.view.knowledge.clipped == bool(change(old).norm() > limit * 1.0001)


def test_the_noise_has_its_deviation_and_follows_from_the_seed():
    before = victims(0)
    clean, noisy, again, other = (
        change(noised(before, z, seed)[0]) for z, seed in ((0.0, 0), (0.1, 0), (0.1, 0), (0.1, 1))
    )
    deviation = 0.1 * float(change(before[0]).norm())
    torch.testing.assert_close((noisy - clean).std(), torch.tensor(deviation), rtol=0.05, atol=0)
    assert torch.equal(noisy, again)
    assert not torch.equal(noisy, other)


@pytest.mark.parametrize("norm", [False, True])
def test_a_plain_twin_is_the_client_of_a_plain_run(norm):
    plain = attacked(small_cnn(norm=norm), images=4).view
    made = attacked(small_cnn(norm=norm), images=4, conversion=ConversionConfig(steps=4))
    twin = plain_twin(Victim(server_round=1, partition=0, view=made.view, truth=made.truth)).view
    assert twin.format.kind == "plain"
    for side in ("sent", "received"):
        found, expected = getattr(twin.exchange, side), getattr(plain.exchange, side)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            torch.testing.assert_close(found[name], array, rtol=1e-4, atol=1e-6)


def test_nobody_has_a_twin_without_consent_or_in_a_plain_run():
    made, plain = attacked(small_cnn(), conversion=ConversionConfig(steps=4)), attacked(small_cnn())
    client = Victim(server_round=1, partition=0, view=made.view, truth=made.truth)
    images, labels = made.truth.images, made.truth.labels
    old = GroundTruth(images=images, labels=labels, biases=made.truth.biases)  # says nothing of trained biases
    assert plain_twin(client) is not None
    assert plain_twin(replace(client, truth=None)) is None
    assert plain_twin(replace(client, truth=old)) is None
    assert plain_twin(replace(client, view=plain.view)) is None
