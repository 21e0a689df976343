"""Neurons over time: the compiled scans against the loop, and both against snnTorch's and spikingjelly's neurons."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from snnfl.neurons import (
    SURROGATES,
    Adaptation,
    Neuron,
    by_subtraction,
    surrogate_spike,
    to_zero,
    unroll,
    without_reset,
)
from snnfl.neurons import unrolled as module
from snnfl.torchvision_guard import guard

guard()

import snntorch  # noqa: E402  (torchvision must be guarded first)
from snntorch import surrogate as snntorch_surrogate  # noqa: E402
from spikingjelly.activation_based import neuron as spikingjelly_neuron  # noqa: E402
from spikingjelly.activation_based import surrogate as spikingjelly_surrogate  # noqa: E402

RESETS = {"subtract": by_subtraction, "zero": to_zero, "none": without_reset}
SNNTORCH = {
    "fast_sigmoid": snntorch_surrogate.fast_sigmoid(slope=25),
    "atan": snntorch_surrogate.atan(alpha=2.0),
    "spike_rate_escape": snntorch_surrogate.spike_rate_escape(beta=1, slope=25),
    "triangular_snntorch": snntorch_surrogate.triangular(),
    "straight_through": snntorch_surrogate.straight_through_estimator(),
    "sigmoid": snntorch_surrogate.sigmoid(slope=25),
}
SPIKINGJELLY = {
    "atan": spikingjelly_surrogate.ATan(alpha=2.0),
    "sigmoid": spikingjelly_surrogate.Sigmoid(alpha=25.0),
    "triangular": spikingjelly_surrogate.PiecewiseQuadratic(alpha=1.0),
}
SEEDS = st.integers(0, 2**20)


def draw(seed: int, *shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


def gradients(
    outputs: tuple[Tensor, ...], inputs: tuple[Tensor, ...], seed: int, **options: bool
) -> tuple[Tensor, ...]:
    """Gradients of a random linear function of outputs, zeros where there are none."""
    pairs = [(output, draw(seed + index, *output.shape).to(output)) for index, output in enumerate(outputs)]
    total = sum((output * weight).sum() for output, weight in pairs)
    found = torch.autograd.grad(total, inputs, allow_unused=True, retain_graph=True, **options)
    return tuple(torch.zeros_like(value) if each is None else each for each, value in zip(found, inputs, strict=True))


def leaves(seed: int, steps: int | None, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    current = draw(seed, *(shape if steps is not None else (6, *shape)), dtype=dtype).requires_grad_()
    leak = torch.tensor(0.9, dtype=dtype, requires_grad=True)
    threshold = torch.tensor([0.7], dtype=dtype, requires_grad=True)
    before = draw(seed + 1, *shape, dtype=dtype).requires_grad_()
    return current, leak, threshold, before


NEURONS = {
    "surrogate": st.sampled_from(SURROGATES.names()),
    "reset": st.sampled_from(list(RESETS.values())),
    "delayed": st.booleans(),
    "detached": st.booleans(),
    "strict": st.booleans(),
    "steps": st.sampled_from([None, 6]),
    "pool": st.sampled_from([1, 2]),
    "shape": st.sampled_from([(2, 3, 4, 4), (2, 3, 5, 7), (3, 8, 2, 2)]),
    "layout": st.sampled_from([torch.contiguous_format, torch.channels_last]),
    "seed": SEEDS,
}


def compare(surrogate, reset, delayed, detached, strict, steps, pool, shape, layout, seed, *, again=False):
    """Spikes and potentials bit for bit, gradients to rounding; if asked, second ones too."""
    dtype = torch.float64
    inputs = leaves(seed, steps, shape, dtype)
    current, leak, threshold, before = inputs
    flow = current
    if layout == torch.channels_last:
        flow = current.movedim(-3, -1).contiguous().movedim(-1, -3)
    spike = surrogate_spike(surrogate, strict=strict)
    neuron = Neuron(
        threshold=threshold, leak=leak, spike=spike, reset=reset, delayed=delayed, detached=detached, unit_spikes=True
    )
    found = unroll(neuron, flow, steps, before=before, potentials=True, pool=pool)
    expected = module.loop(flow, leak, threshold, before, module.How(neuron, steps, True, pool))
    assert found.spikes.any()
    torch.testing.assert_close(found.spikes, expected[0], rtol=1e-15, atol=1e-15)
    assert torch.equal(found.potentials, expected[1])
    for part in (slice(0, 1), slice(1, 2), slice(0, 2)):
        ours = gradients(tuple(found)[part], inputs, seed, create_graph=again)
        theirs = gradients(expected[part], inputs, seed, create_graph=again)
        for first, second in zip(ours, theirs, strict=True):
            torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)
        if again and any(each.requires_grad for each in theirs):
            some = [(a, b) for a, b in zip(ours, theirs, strict=True) if b.requires_grad]
            ours_again = gradients(tuple(a for a, _ in some), inputs, seed + 9)
            for first, second in zip(ours_again, gradients(tuple(b for _, b in some), inputs, seed + 9), strict=True):
                torch.testing.assert_close(first, second, rtol=1e-8, atol=1e-8)


@settings(max_examples=150)
@given(**NEURONS)
def test_the_compiled_scans_equal_the_loop(**case):
    compare(**case)


@settings(max_examples=40)
@given(**NEURONS)
def test_so_do_their_second_derivatives(**case):
    compare(**case, again=True)


def test_float32_fires_as_the_loop_does_and_rounds_as_little():
    shape = (3, 4, 6, 6)
    found = {}
    for dtype in (torch.float32, torch.float64):
        inputs = leaves(3, None, shape, dtype)
        neuron = Neuron(
            threshold=inputs[2], leak=inputs[1], spike=surrogate_spike("atan"), delayed=True, unit_spikes=True
        )
        spikes, potentials = unroll(neuron, inputs[0], before=inputs[3], potentials=True)
        how = module.How(neuron, None, True, 1)
        slow = module.loop(*inputs, how)
        assert torch.equal(spikes, slow[0])
        assert torch.equal(potentials, slow[1])
        found[dtype] = (spikes, gradients((spikes,), inputs, 5))
    assert torch.equal(found[torch.float32][0].double(), found[torch.float64][0])
    for short, long in zip(found[torch.float32][1], found[torch.float64][1], strict=True):
        assert (short - long).abs().max() <= 1e-5 * long.abs().max()


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("surrogate", SNNTORCH)
@pytest.mark.parametrize("reset", RESETS)
@settings(max_examples=10)
@given(seed=SEEDS)
def test_equals_snntorchs_leaky(reset, surrogate, learns, seed):
    current = draw(seed, 7, 2, 3).requires_grad_()
    theirs = snntorch.Leaky(
        beta=0.9,
        threshold=0.7,
        spike_grad=SNNTORCH[surrogate],
        reset_mechanism=reset,
        learn_beta=learns,
        learn_threshold=learns,
    ).double()
    potential, spikes, potentials = torch.zeros(2, 3, dtype=torch.float64), [], []
    for flow in current:
        fired, potential = theirs(flow, potential)
        spikes.append(fired.double())
        potentials.append(potential)
    leak, threshold = (value.detach().clone().requires_grad_(learns) for value in (theirs.beta, theirs.threshold))
    neuron = Neuron(
        threshold=threshold.view(1),
        leak=leak,
        spike=surrogate_spike(surrogate),
        reset=RESETS[reset],
        delayed=True,
        unit_spikes=True,
    )
    found = unroll(neuron, current, potentials=True)
    expected = (torch.stack(spikes), torch.stack(potentials))
    torch.testing.assert_close(found.potentials, expected[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.spikes, expected[0])
    ours = gradients(tuple(found), (current, leak, threshold) if learns else (current,), seed)
    wanted = gradients(expected, (current, theirs.beta, theirs.threshold) if learns else (current,), seed)
    for first, second in zip(ours, wanted, strict=True):
        torch.testing.assert_close(first, second.view(first.shape), rtol=1e-5, atol=1e-4)  # their spikes are float32


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_snntorchs_reset_at_once_and_its_quirk(reset):
    """Without ``reset_delay`` it is ours at once, unless a neuron is above the threshold still after its reset.

    snnTorch then takes off another threshold before it fires, and gives it back afterwards.
    """
    theirs = snntorch.Leaky(beta=0.5, threshold=0.7, reset_mechanism=reset, reset_delay=False).double()
    neuron = Neuron(
        threshold=torch.tensor([0.7], dtype=torch.float64),
        leak=0.5,
        spike=surrogate_spike("atan"),
        reset=RESETS[reset],
        unit_spikes=True,
    )

    def trains(current: Tensor) -> tuple[Tensor, Tensor]:
        potential, spikes = torch.zeros(1, 1, dtype=torch.float64), []
        for flow in current:
            fired, potential = theirs(flow, potential)
            spikes.append(fired.double())
        return unroll(neuron, current).spikes, torch.stack(spikes)

    ours, expected = trains(torch.tensor([0.5, 0.6, 0.2, 0.9, 0.1], dtype=torch.float64).view(-1, 1, 1))
    assert ours.any()
    assert torch.equal(ours, expected)
    ours, expected = trains(torch.tensor([3.0, 0.2], dtype=torch.float64).view(-1, 1, 1))
    assert ours.flatten().tolist() == ([1, 1] if reset == "subtract" else [1, 0])
    assert expected.flatten().tolist() == [1, 0]


@settings(max_examples=20)
@given(seed=SEEDS)
def test_equals_snntorchs_recurrent_leaky(seed):
    """Its reset to zero also loses the step's own current, so reset by subtraction alone is the same neuron."""
    theirs = snntorch.RLeaky(
        beta=0.9, linear_features=4, all_to_all=True, threshold=0.7, spike_grad=SNNTORCH["atan"]
    ).double()
    with torch.no_grad():
        theirs.recurrent.weight.copy_(draw(seed + 3, 4, 4))
    current = draw(seed, 6, 2, 4).requires_grad_()
    fired, potential = (torch.zeros(2, 4, dtype=torch.float64) for _ in range(2))
    spikes = []
    for flow in current:
        fired, potential = theirs(flow, fired, potential)
        fired = fired.double()
        spikes.append(fired)
    neuron = Neuron(
        threshold=torch.tensor([0.7], dtype=torch.float64),
        leak=0.9,
        spike=surrogate_spike("atan"),
        delayed=True,
        unit_spikes=True,
        recurrent=theirs.recurrent,
    )
    found = unroll(neuron, current).spikes
    assert torch.equal(found, torch.stack(spikes))
    inputs = (current, theirs.recurrent.weight)
    expected = gradients((torch.stack(spikes),), inputs, seed)
    for first, second in zip(gradients((found,), inputs, seed), expected, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("surrogate", SPIKINGJELLY)
@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("kind", ["if", "lif", "lif decaying its input", "learned"])
@settings(max_examples=10)
@given(seed=SEEDS)
def test_equals_spikingjellys_neurons(kind, hard, detached, surrogate, seed):
    options = {
        "v_threshold": 0.75,
        "v_reset": 0.0 if hard else None,
        "detach_reset": detached,
        "surrogate_function": SPIKINGJELLY[surrogate],
        "step_mode": "m",
        "store_v_seq": True,
    }
    current = draw(seed, 7, 2, 3).requires_grad_()
    tau, leak, flow = 4.0, None, current
    inputs: tuple[Tensor, ...] = (current,)
    theirs_too: tuple[Tensor, ...] = (current,)
    if kind == "if":
        theirs = spikingjelly_neuron.IFNode(**options)
    elif kind == "learned":
        theirs = spikingjelly_neuron.ParametricLIFNode(init_tau=tau, decay_input=False, **options).double()
        weight = theirs.w.detach().clone().requires_grad_()
        leak = 1 - torch.sigmoid(weight)
        inputs, theirs_too = (current, weight), (current, theirs.w)
    else:
        decays = kind != "lif"
        theirs = spikingjelly_neuron.LIFNode(tau=tau, decay_input=decays, **options)
        leak, flow = 1 - 1 / tau, current / tau if decays else current
    expected = theirs(current)
    neuron = Neuron(
        threshold=torch.tensor([0.75], dtype=torch.float64),
        leak=leak,
        spike=surrogate_spike(surrogate, strict=False),
        reset=to_zero if hard else by_subtraction,
        detached=detached,
        unit_spikes=True,
    )
    found = unroll(neuron, flow).spikes
    assert torch.equal(found, expected)
    ours, wanted = gradients((found,), inputs, seed), gradients((expected,), theirs_too, seed)
    for first, second in zip(ours, wanted, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-8, atol=1e-8)


def test_adaptive_neurons_are_the_papers_equations():
    decay, scale, leak, level = 0.8, 0.6, 0.9, 0.5
    neuron = Neuron(
        threshold=torch.tensor([level], dtype=torch.float64),
        leak=leak,
        spike=surrogate_spike("atan", strict=False),
        unit_spikes=True,
        adaptation=Adaptation(decay=decay, scale=scale),
    )
    current = draw(4, 12, 1, 5).abs()
    found = unroll(neuron, current).spikes
    for unit in range(5):
        potential = fatigue = 0.0
        for step in range(12):
            potential = leak * potential + current[step, 0, unit].item()
            fired = float(potential >= level + scale * fatigue)
            potential -= fired * level
            fatigue = decay * fatigue + fired
            assert found[step, 0, unit].item() == fired
    plain = unroll(replace(neuron, adaptation=None), current).spikes
    assert 0 < found.sum() < plain.sum()


def test_under_torch_func():
    """Per-example gradients by ``vmap``, of the current, the leak and the threshold, equal those of each example."""
    current, leak, threshold, _ = leaves(2, None, (3, 4), torch.float64)
    weights = draw(8, 6, 1, 4)

    def loss(current: Tensor, leak: Tensor, threshold: Tensor) -> Tensor:
        neuron = Neuron(threshold=threshold, leak=leak, spike=surrogate_spike("atan"), delayed=True, unit_spikes=True)
        return (unroll(neuron, current).spikes * weights).sum()

    alone = [
        torch.autograd.grad(loss(current[:, index : index + 1], leak, threshold), (current, leak, threshold))
        for index in range(3)
    ]
    together = torch.vmap(torch.func.grad(loss, argnums=(0, 1, 2)), in_dims=(1, None, None))(
        current.unsqueeze(2), leak, threshold
    )
    for index, (of_current, of_leak, of_threshold) in enumerate(alone):
        torch.testing.assert_close(together[0][index, :, 0], of_current[:, index])
        torch.testing.assert_close(together[1][index], of_leak)
        torch.testing.assert_close(together[2][index], of_threshold)


def test_nothing_that_is_given_changes():
    inputs = leaves(1, 6, (2, 3, 4, 4), torch.float32)
    copies = [value.detach().clone() for value in inputs]
    neuron = Neuron(threshold=inputs[2], leak=inputs[1], spike=surrogate_spike("atan"), unit_spikes=True)
    found = unroll(neuron, inputs[0], 6, before=inputs[3])
    found.spikes.sum().backward()
    assert all(torch.equal(value, copy) for value, copy in zip(inputs, copies, strict=True))
