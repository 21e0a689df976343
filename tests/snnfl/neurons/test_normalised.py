"""Neurons on batch-normalised currents: a scan that normalises against normalisation and neurons one by one."""

from __future__ import annotations

import copy

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

from snnfl.config import ModelConfig
from snnfl.models import build_model
from snnfl.models.spiking_layers import FEEDS_NEURONS
from snnfl.neurons import Neuron, by_subtraction, surrogate_spike, to_zero, unroll, without_reset
from snnfl.neurons.normalised import Moments, Normalised, moments, spikes_of
from snnfl.rng import generator
from snnfl.training import precise_batch_norm

LAST = torch.channels_last


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def laid_out(values: Tensor) -> Tensor:
    """Lay values ``[T, N, C, H, W]`` out channels last."""
    return values.flatten(0, 1).contiguous(memory_format=LAST).view(values.shape)


def by_formula(values: Tensor, gamma: Tensor, beta: Tensor, also: Tensor | None) -> Tensor:
    """Normalise as Ioffe and Szegedy write it: of a single image PyTorch 2.13 gives wrong gradients in this layout."""
    spread = values.var((0, 1, 3, 4), correction=0)
    centred = values - values.mean((0, 1, 3, 4))[:, None, None]
    normalised = centred * (gamma / torch.sqrt(spread + 1e-5))[:, None, None] + beta[:, None, None]
    return normalised if also is None else normalised + also


def ours(values: Tensor, gamma: Tensor, beta: Tensor, also: Tensor | None) -> Normalised:
    current = Normalised(values, gamma, beta, moments(values.flatten(0, 1)), 1e-5)
    if also is None:
        return current
    found = current + also
    assert isinstance(found, Normalised)
    return found


@given(
    seed=st.integers(0, 2**20),
    shape=st.sampled_from([(4, 2, 3, 4, 6), (3, 1, 8, 5, 5), (5, 3, 2, 2, 3), (2, 7, 16, 4, 4)]),
    constant=st.booleans(),
    added=st.booleans(),
    pool=st.sampled_from([1, 2]),
    reset=st.sampled_from([by_subtraction, to_zero, without_reset]),
    delayed=st.booleans(),
    detached=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_spikes_and_gradients_are_those_of_one_after_the_other(
    seed, shape, constant, added, pool, reset, delayed, detached
):
    if constant:
        shape = (1, *shape[1:])
    values = laid_out(3 + 2 * draw(seed, *shape)).requires_grad_()
    also = laid_out(draw(seed + 1, *shape)).requires_grad_() if added else None
    gamma, beta = (draw(seed + 2 + index, shape[2]).requires_grad_() for index in range(2))
    leak = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    threshold = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    neuron = Neuron(
        threshold=threshold,
        leak=leak,
        spike=surrogate_spike("fast_sigmoid"),
        reset=reset,
        delayed=delayed,
        detached=detached,
        unit_spikes=True,
    )
    steps = 6 if constant else None
    drive = by_formula(values, gamma, beta, also)
    one_by_one = unroll(neuron, drive if steps is None else drive[0], steps, pool=pool).spikes
    at_once = spikes_of(neuron, ours(values, gamma, beta, also), steps, pool=pool)
    assert torch.equal(at_once, one_by_one)
    inputs = [each for each in (values, also, gamma, beta, leak, threshold) if each is not None]
    weights = draw(seed + 4, *one_by_one.shape)
    theirs = torch.autograd.grad((one_by_one * weights).sum(), inputs)
    mine = torch.autograd.grad((at_once * weights).sum(), inputs)
    for found, expected in zip(mine, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_moments_lose_no_digits(mean):
    images = (mean + draw(0, 40, 6, 9, 7)).float().contiguous(memory_format=LAST)
    found, exact = moments(images), images.double().var((0, 2, 3), correction=0)
    torch.testing.assert_close(found.mean.double(), images.double().mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.variance.double(), exact, rtol=1e-6, atol=0)


def test_in_float32_spikes_are_bit_for_bit_those_of_one_after_the_other():
    values, also = (laid_out(draw(seed, 4, 8, 16, 8, 8, dtype=torch.float32)) for seed in range(2))
    neuron = Neuron(threshold=torch.tensor([1.0]), leak=0.95, spike=surrogate_spike("fast_sigmoid"), unit_spikes=True)
    current = ours(values, torch.rand(16) + 0.5, torch.zeros(16), also)
    assert torch.equal(spikes_of(neuron, current), unroll(neuron, current.tensor()).spikes)


def test_what_lies_otherwise_is_added_after_all():
    values = laid_out(draw(0, 2, 2, 3, 4, 4))
    current = Normalised(values, torch.ones(3).double(), torch.zeros(3).double(), Moments(*values.new_ones(2, 3)), 0.0)
    other = draw(1, 2, 2, 3, 4, 4)
    found = current + other
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found, values - 1 + other)


def test_a_residual_network_trains_as_with_one_after_the_other():
    """All its normalisations but those of the projections are read by neurons alone."""
    config = ModelConfig(name="resnet20", neuron="lif", time_steps=3)
    model = build_model(config, input_shape=(3, 8, 8), classes=10, generator=generator(0, "weights"))
    model.to(memory_format=LAST)
    feeding = [name for name, module in model.named_modules() if getattr(module, FEEDS_NEURONS, False)]
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert sorted(feeding) == sorted(name for name in norms if "shortcut" not in name)
    images = draw(0, 4, 3, 8, 8, dtype=torch.float32).contiguous(memory_format=LAST)
    results = []
    for at_once in (True, False):
        trained = copy.deepcopy(model)
        for module in trained.modules():
            if getattr(module, FEEDS_NEURONS, False):
                setattr(module, FEEDS_NEURONS, at_once)
        with precise_batch_norm(trained.modules()):
            F.cross_entropy(trained(images), torch.arange(4)).backward()
        gradients = torch.cat([parameter.grad.flatten() for parameter in trained.parameters()])
        results.append((gradients, [buffer.clone() for buffer in trained.buffers()]))
    (mine, my_buffers), (theirs, their_buffers) = results
    assert float((mine - theirs).norm() / theirs.norm()) < 1e-5
    assert all(map(torch.equal, my_buffers, their_buffers))
