"""Surrogate gradients against snnTorch's and spikingjelly's own, and against their formulas' second derivatives."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from snnfl.config import ConfigError
from snnfl.neurons import SURROGATES, register_surrogate, surrogate_spike
from snnfl.torchvision_guard import guard

guard()

from snntorch import surrogate as snntorch_surrogate  # noqa: E402  (torchvision must be guarded first)
from spikingjelly.activation_based import surrogate as spikingjelly_surrogate  # noqa: E402

SNNTORCH = {
    "fast_sigmoid": lambda k: snntorch_surrogate.fast_sigmoid(slope=k),
    "atan": lambda k: snntorch_surrogate.atan(alpha=k),
    "sigmoid": lambda k: snntorch_surrogate.sigmoid(slope=k),
    "spike_rate_escape": lambda k: snntorch_surrogate.spike_rate_escape(beta=1, slope=k),
    "triangular_snntorch": lambda k: snntorch_surrogate.triangular(threshold=k),
    "straight_through": lambda k: snntorch_surrogate.straight_through_estimator(),
}
SPIKINGJELLY = {
    "atan": lambda k: (spikingjelly_surrogate.ATan(alpha=k), 1.0),
    "sigmoid": lambda k: (spikingjelly_surrogate.Sigmoid(alpha=k), 1.0),
    "triangular": lambda k: (spikingjelly_surrogate.PiecewiseQuadratic(alpha=k), 1.0),
    "fast_sigmoid": lambda k: (spikingjelly_surrogate.SoftSign(alpha=k), k / 2),  # theirs is larger by this factor
    "triangular_damped": lambda k: (spikingjelly_surrogate.PiecewiseQuadratic(alpha=k), 1 / 0.3),
}
VALUES = st.lists(st.floats(-3, 3), min_size=1, max_size=20)
SLOPES = st.floats(0.25, 25)


def derivative(spike, values):
    potential = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    fired = spike(potential)
    return fired.detach(), torch.autograd.grad(fired.sum(), potential)[0]


def test_every_surrogate_has_an_independent_one():
    assert {*SNNTORCH, *SPIKINGJELLY} == set(SURROGATES.names())


@pytest.mark.parametrize("name", SNNTORCH)
@given(values=VALUES, slope=SLOPES)
def test_equals_snntorchs(name, values, slope):
    one = torch.ones(1, dtype=torch.float64)
    fired, found = derivative(lambda u: surrogate_spike(name, slope=slope)(u + 1, one), values)
    their_spikes, expected = derivative(
        SNNTORCH[name](slope), (torch.tensor(values, dtype=torch.float64) + 1 - 1).tolist()
    )
    assert torch.equal(fired, their_spikes.double())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)  # their spikes are float32


@pytest.mark.parametrize("name", SPIKINGJELLY)
@given(values=VALUES, slope=SLOPES)
def test_equals_spikingjellys(name, values, slope):
    theirs, factor = SPIKINGJELLY[name](slope)
    zero = torch.zeros(1, dtype=torch.float64)
    fired, found = derivative(lambda u: surrogate_spike(name, slope=slope, strict=False)(u, zero), values)
    their_spikes, expected = derivative(theirs, values)
    assert torch.equal(fired, their_spikes)
    torch.testing.assert_close(found * factor, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("strict", "expected"), [(True, 0.0), (False, 1.0)])
def test_at_the_threshold_exactly(strict, expected):
    level = torch.tensor([0.5])
    assert surrogate_spike("atan", strict=strict)(level, level).item() == expected


def test_snntorchs_sigmoid_overflows_where_ours_does_not():
    below = torch.tensor([-4.0], requires_grad=True)
    assert math.isnan(torch.autograd.grad(snntorch_surrogate.sigmoid(25)(below).sum(), below)[0].item())
    fired = surrogate_spike("sigmoid")(below, torch.zeros(1))
    assert torch.autograd.grad(fired.sum(), below)[0].item() == pytest.approx(0.0)


@pytest.mark.parametrize("name", SURROGATES.names())
def test_the_second_derivative_is_that_of_the_formula(name):
    spike = surrogate_spike(name)
    potential = torch.linspace(-0.9, 0.93, 31, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    (first,) = torch.autograd.grad(spike(potential, zero).sum(), potential, create_graph=True)
    step = 1e-6
    expected = (
        (spike.derivative(potential + step, spike.slope) - spike.derivative(potential - step, spike.slope)) / step / 2
    )
    if not first.requires_grad:
        assert not expected.any()
        return
    found = torch.autograd.grad(first.sum(), potential, allow_unused=True)[0]
    torch.testing.assert_close(
        torch.zeros_like(expected) if found is None else found, expected.detach(), rtol=1e-4, atol=1e-5
    )


def test_one_of_a_users_own_is_found_by_its_name():
    @register_surrogate("box_of_test", slope=2.0)
    def box(x, slope):
        return (x.abs() < 1 / slope).to(x.dtype)

    try:
        _, found = derivative(
            lambda u: surrogate_spike("box_of_test")(u, torch.zeros(1, dtype=torch.float64)), [-0.6, 0.4]
        )
        assert found.tolist() == [0, 1]
    finally:
        SURROGATES.items.pop("box_of_test")
        SURROGATES.homes.pop("box_of_test")
    with pytest.raises(ConfigError, match=r"model.surrogate=fast_sigmod: .* did you mean 'fast_sigmoid'"):
        surrogate_spike("fast_sigmod")
