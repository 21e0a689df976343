"""What a curious server takes for private biases, against the true ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from victims import attacked, small_cnn, small_mlp

from snnfl.attacks import biases
from snnfl.config import ConversionConfig
from snnfl.threat import ThreatModelError

CONVERSION = ConversionConfig(steps=8)
EXPOSED = ConversionConfig(steps=8, calibration="none")


@pytest.mark.parametrize("norm", [False, True])
def test_without_calibration_the_biases_are_inferred_exactly(norm):
    victim = attacked(small_cnn(norm=norm), images=4, conversion=EXPOSED)
    true = victim.truth.trained_biases
    found = biases.inferred(victim.view)
    for name, array in true.items():
        torch.testing.assert_close(found[name], array, rtol=1e-3, atol=1e-4)


def test_calibration_shifts_what_is_inferred_and_it_still_beats_zero():
    victim = attacked(small_cnn(norm=True), images=4, conversion=CONVERSION)
    true = dict(victim.truth.biases)
    exact = biases.bias_distance(
        biases.inferred(attacked(small_cnn(norm=True), images=4, conversion=EXPOSED).view), true
    )
    shifted = biases.bias_distance(biases.inferred(victim.view), true)
    nothing = biases.bias_distance(biases.zero(victim.view), true)
    assert exact < shifted < 0.75 * nothing
    assert nothing == pytest.approx(float(torch.cat(list(true.values())).norm()), rel=1e-5)


def test_biases_as_received_are_the_spiking_networks():
    view = attacked(small_mlp(), conversion=CONVERSION).view
    for name, array in biases.as_received(view).items():
        assert torch.equal(array, view.exchange.received[name])
        assert torch.equal(array, biases.inferred(view)[name])  # no batch normalisation in between


def test_rounds_average_and_initial_weights_are_exact_in_the_first():
    victim = attacked(small_mlp(), conversion=CONVERSION)
    other = attacked(small_mlp(), start=50, conversion=CONVERSION)
    with pytest.raises(ThreatModelError, match="no earlier round"):
        biases.over_rounds(victim.view)
    with pytest.raises(ThreatModelError, match="no initial weights"):
        biases.initial(victim.view)
    initial = {**victim.view.exchange.sent, **victim.truth.biases}
    view = replace(victim.view, earlier=(other.view.exchange,), initial=initial)
    both = [biases.inferred(seen)["fc1.bias"] for seen in (victim.view, other.view)]
    torch.testing.assert_close(biases.over_rounds(view)["fc1.bias"], (both[0] + both[1]) / 2)
    assert biases.bias_distance(biases.initial(view), dict(victim.truth.biases)) == 0


def test_a_plain_update_has_no_spiking_bias():
    with pytest.raises(ThreatModelError, match="plain one"):
        biases.inferred(attacked(small_mlp()).view)
    assert not biases.as_received(attacked(nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False))).view)
