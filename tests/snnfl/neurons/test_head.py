"""The last layers of a spiking network as one function, against the layers one after the other."""

from __future__ import annotations

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
    without_reset,
)
from snnfl.neurons.head import Head

RESETS = (by_subtraction, to_zero, without_reset)
STEPS, SAMPLES = 6, 3


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def make(seed: int, *, features=5, outputs=3, steps=1, samples=SAMPLES, bias=True, dtype=torch.float64):
    """Current, weight, bias, and leak and threshold of the neurons and of their readers."""
    values = [
        draw(seed, steps, samples, features, dtype=dtype),
        draw(seed + 1, outputs, features, dtype=dtype) / features**0.5,
        draw(seed + 2, outputs, dtype=dtype) if bias else None,
        *(torch.tensor(value, dtype=dtype) for value in (0.9, [0.7], 0.8, [0.6])),
    ]
    return [None if value is None else value.requires_grad_() for value in values]


def gradients(found: Tensor, inputs: list[Tensor | None], seed: int) -> list[Tensor]:
    some = [value for value in inputs if value is not None]
    wanted = torch.autograd.grad((found * draw(seed, *found.shape).to(found)).sum(), some, allow_unused=True)
    return [torch.zeros_like(at) if each is None else each for at, each in zip(some, wanted, strict=True)]


@settings(max_examples=150)
@given(
    surrogate=st.sampled_from(SURROGATES.names()),
    reset=st.sampled_from(RESETS),
    of_reader=st.sampled_from(RESETS),
    delayed=st.booleans(),
    detached=st.booleans(),
    strict=st.booleans(),
    features=st.sampled_from([1, 5, 32, 43]),
    outputs=st.sampled_from([1, 3, 16]),
    steps=st.sampled_from([1, STEPS]),
    samples=st.sampled_from([1, SAMPLES]),
    bias=st.booleans(),
    wanted=st.sampled_from(["outputs", "potentials", "rates"]),
    seed=st.integers(0, 2**20),
)
def test_it_equals_its_layers_one_after_the_other(
    surrogate,
    reset,
    of_reader,
    delayed,
    detached,
    strict,
    features,
    outputs,
    steps,
    samples,
    bias,
    wanted,
    seed,
):
    inputs = make(seed, features=features, outputs=outputs, steps=steps, samples=samples, bias=bias)
    current, weight, offset, leak, threshold, reader_leak, reader_threshold = inputs
    how = {
        "spike": surrogate_spike(surrogate, strict=strict),
        "delayed": delayed,
        "detached": detached,
        "unit_spikes": True,
    }
    neuron = Neuron(leak=leak, threshold=threshold, reset=reset, **how)
    reader = Neuron(leak=reader_leak, threshold=reader_threshold, reset=of_reader, **how)
    head = Head(neuron, STEPS, weight, offset, None if wanted == "outputs" else reader, wanted == "potentials")
    assert head.takes(current)
    found, expected = head.apply(current), head.layer_by_layer(current)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients(found, inputs, seed), gradients(expected, inputs, seed), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("potentials", [False, True])
def test_float32_is_as_near_as_it_rounds(potentials):
    inputs = make(7, features=300, outputs=10, samples=16, dtype=torch.float32)
    current, weight, bias, leak, threshold, reader_leak, reader_threshold = inputs
    spike = surrogate_spike("fast_sigmoid")
    neuron, reader = (
        Neuron(leak=of, threshold=level, spike=spike, delayed=True, unit_spikes=True)
        for of, level in ((leak, threshold), (reader_leak, reader_threshold))
    )
    head = Head(neuron, 25, weight, bias, reader, potentials)
    found, expected = head.apply(current), head.layer_by_layer(current)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients(found, inputs, 3), gradients(expected, inputs, 3), strict=True):
        assert float((ours - theirs).norm()) <= 2e-5 * float(theirs.norm())  # with AVX-512 1.05e-5


def test_what_it_does_not_take():
    """Nor does it compute what its scans don't: a wide layer, long rows, another type, neurons that adapt."""
    current, weight, bias, *_ = make(0)
    neuron = Neuron(threshold=torch.ones(1), spike=surrogate_spike("atan"), unit_spikes=True)
    adapting = Neuron(
        threshold=torch.ones(1), spike=surrogate_spike("atan"), unit_spikes=True, adaptation=Adaptation(0.9, 1.0)
    )
    assert Head(neuron, STEPS, weight, bias, neuron).takes(current)
    assert not Head(neuron, STEPS, draw(0, 17, 5), None).takes(current)
    assert not Head(neuron, STEPS, draw(0, 3, 1025), None).takes(draw(0, 1, 3, 1025))
    assert not Head(neuron, STEPS, weight, bias).takes(current.float())
    assert not Head(neuron, STEPS, weight, bias).takes(current[..., None])
    assert not Head(neuron, STEPS, weight[:, 1:], bias).takes(current)  # which PyTorch says is wrong
    assert not Head(adapting, STEPS, weight, bias).takes(current)
    assert not Head(neuron, STEPS, weight, bias, adapting).takes(current)


@pytest.mark.parametrize("wanted", ["outputs", "potentials", "rates"])
def test_its_second_derivatives_are_those_of_its_layers(wanted):
    inputs = make(0)
    current, weight, bias, leak, threshold, reader_leak, reader_threshold = inputs
    how = {"spike": surrogate_spike("atan"), "unit_spikes": True}
    neuron = Neuron(leak=leak, threshold=threshold, **how)
    reader = None if wanted == "outputs" else Neuron(leak=reader_leak, threshold=reader_threshold, **how)
    head = Head(neuron, STEPS, weight, bias, reader, wanted == "potentials")
    second = []
    for found in (head.apply(current), head.layer_by_layer(current)):
        some = inputs[: 5 if reader is None else 7]
        first = torch.autograd.grad(found.square().sum(), some, create_graph=True)
        second.append(gradients(torch.cat([each.flatten() for each in first]), some, 1))
    assert any(bool(each.any()) for each in second[0])
    for ours, theirs in zip(*second, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_where_functions_are_transformed_layers_are_computed_one_by_one():
    current, weight, bias, *_ = make(0)
    neuron = Neuron(threshold=torch.ones(1), spike=surrogate_spike("atan"), unit_spikes=True)
    seen = list[bool]()

    def total(current: Tensor) -> Tensor:
        seen.append(Head(neuron, STEPS, weight, bias).takes(current))
        return current.sum()

    torch.func.grad(total)(current)
    assert seen == [False]
