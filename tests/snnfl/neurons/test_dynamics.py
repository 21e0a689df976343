"""One step of a neuron against its equations in plain Python, spikingjelly's neurons and the derivative's formula."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from snnfl.neurons import Neuron, NeuronState, by_subtraction, to_zero, triangular
from snnfl.torchvision_guard import guard

guard()

from spikingjelly.activation_based.neuron import IFNode, LIFNode  # noqa: E402  (torchvision must be guarded first)


def draw_currents(seed: int) -> Tensor:
    """Quarters, so that potentials meet thresholds exactly."""
    draw = torch.Generator().manual_seed(seed)
    return (torch.randn(12, 2, 3, 5, generator=draw, dtype=torch.float64) * 3.2).round() / 4


@pytest.mark.parametrize("leak", [None, 0.75])
@pytest.mark.parametrize("hard", [False, True])
@given(seed=st.integers(0, 2**20), per_channel=st.booleans())
def test_a_step_is_the_equation(leak, hard, seed, per_channel):
    currents = draw_currents(seed)
    threshold = torch.tensor([0.5, 1.0, 0.3] if per_channel else [0.7], dtype=torch.float64)
    neuron = Neuron(threshold=threshold, leak=leak, reset=to_zero if hard else by_subtraction)
    state = NeuronState(torch.full((2, 3, 5), 0.1, dtype=torch.float64))
    literal = state.potential.tolist()
    for current in currents:
        before = state.potential.clone()
        after, spikes = neuron.step(state, current)
        assert torch.equal(state.potential, before)
        for n in range(2):
            for c in range(3):
                level = threshold[c % len(threshold)].item()
                for j in range(5):
                    charged = current[n, c, j].item() + (1.0 if leak is None else leak) * literal[n][c][j]
                    fired = charged >= level
                    literal[n][c][j] = (0.0 if hard else charged - level) if fired else charged
                    assert spikes[n, c, j].item() == (level if fired else 0.0)
        assert after.potential.tolist() == literal
        state = after


@pytest.mark.parametrize("leaky", [False, True])
@pytest.mark.parametrize("hard", [False, True])
def test_spikingjellys_neurons_step_likewise(leaky, hard):
    reset = 0.0 if hard else None
    theirs = IFNode(v_threshold=0.75, v_reset=reset)
    if leaky:
        theirs = LIFNode(v_threshold=0.75, v_reset=reset, tau=4.0, decay_input=False)
    ours = Neuron(
        threshold=torch.tensor([0.75], dtype=torch.float64),
        leak=0.75 if leaky else None,
        reset=to_zero if hard else by_subtraction,
    )
    state, fired = NeuronState(torch.zeros(2, 3, 5, dtype=torch.float64)), 0
    for current in draw_currents(1):
        state, spikes = ours.step(state, current)
        assert torch.equal(spikes != 0, theirs(current) != 0)
        torch.testing.assert_close(state.potential, theirs.v, rtol=1e-14, atol=1e-14)
        fired += int(spikes.count_nonzero())
    assert fired > 30


def test_the_derivative_is_the_triangle():
    potential = torch.linspace(-1, 5, 101, dtype=torch.float64, requires_grad=True)
    threshold = torch.tensor(1.5, dtype=torch.float64)
    fired = triangular(potential, threshold)
    (slope,) = torch.autograd.grad(fired.sum(), potential, create_graph=True)
    torch.testing.assert_close(slope * 1.5, (1 - (potential.detach() - 1.5).abs() / 1.5).clamp_min(0))
    assert torch.equal(fired.detach(), (potential.detach() >= 1.5).double())
    assert torch.autograd.grad(slope.square().sum(), potential)[0].any()


def test_a_spike_at_the_threshold_has_no_derivative_of_its_own():
    potential = torch.full((1, 1), 0.4, requires_grad=True)
    state, spikes = Neuron(threshold=torch.tensor([0.3])).step(NeuronState(potential), torch.zeros(1, 1))
    assert not spikes.requires_grad
    assert spikes.item() == pytest.approx(0.3)
    assert torch.autograd.grad(state.potential.sum(), potential)[0].item() == 1
