"""Convolutions in blocks of pixels against the layers that they stand for."""

from __future__ import annotations

import copy

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from snnfl.attacks.blocks import in_blocks
from snnfl.config import ModelConfig
from snnfl.models import build_model


class Skipping(nn.Sequential):
    """Reads what the convolution returns beside what the pooling does."""

    def forward(self, images):
        convolved = self[0](images)
        return self[2](self[1](convolved)).mean() + convolved.mean()


def stage(convolution, pooling=None):
    return nn.Sequential(convolution, nn.ReLU(), pooling or nn.AvgPool2d(2))


def slopes_of(network, parameters, images):
    """Differentiate the squared norm of the gradient by the parameters: what gradient matching does."""

    def norm(images):
        gradient = torch.func.grad(lambda own: torch.func.functional_call(network, own, images).square().sum())
        return sum(slope.square().sum() for slope in gradient(parameters).values())

    return torch.func.grad_and_value(norm)(images)


@settings(deadline=None, max_examples=30)
@given(
    channels=st.integers(1, 4),
    outputs=st.integers(1, 8),
    kernel=st.tuples(st.sampled_from((1, 3, 5)), st.sampled_from((1, 3, 5))),
    padding=st.one_of(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.just("same")),
    size=st.tuples(st.integers(6, 11), st.integers(6, 11)),
    bias=st.booleans(),
    seed=st.integers(0, 9),
)
def test_values_and_second_slopes_are_those_of_the_layers(channels, outputs, kernel, padding, size, bias, seed):
    draw = torch.Generator().manual_seed(seed)
    plain = stage(nn.Conv2d(channels, outputs, kernel, padding=padding, bias=bias)).double()
    parameters = {
        name: torch.randn(array.shape, generator=draw, dtype=torch.float64) for name, array in plain.named_parameters()
    }
    images = torch.randn(2, channels, *size, generator=draw, dtype=torch.float64)
    blocked = in_blocks(copy.deepcopy(plain))
    assert not isinstance(blocked[0], nn.Conv2d)
    assert [name for name, _ in blocked.named_parameters()] == [name for name, _ in plain.named_parameters()]
    wanted, found = (torch.func.functional_call(network, parameters, images) for network in (plain, blocked))
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(slopes_of(blocked, parameters, images), slopes_of(plain, parameters, images))


@pytest.mark.parametrize(
    "network",
    [
        stage(nn.Conv2d(3, 9, 3)),
        stage(nn.Conv2d(5, 8, 3)),
        stage(nn.Conv2d(3, 6, 4)),
        stage(nn.Conv2d(3, 6, 3, stride=2)),
        stage(nn.Conv2d(3, 6, 3, dilation=2)),
        stage(nn.Conv2d(3, 6, 3, groups=3)),
        stage(nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect")),
        stage(nn.Conv2d(3, 6, 3), nn.AvgPool2d(2, padding=1)),
        stage(nn.Conv2d(3, 6, 3), nn.AvgPool2d(2, stride=1)),
        stage(nn.Conv2d(3, 6, 3), nn.AvgPool2d(2, ceil_mode=True)),
        stage(nn.Conv2d(3, 6, 3), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2)),
        Skipping(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AvgPool2d(2)),
    ],
    ids=lambda network: str(network[0]) + str(network[-1]),
)
def test_other_layers_stay(network):
    assert str(in_blocks(copy.deepcopy(network))) == str(network)


def test_the_first_layer_of_lenet_runs_in_blocks():
    config = ModelConfig(name="lenet5", batch_norm=False)
    model = build_model(config, input_shape=(3, 32, 32), classes=10, generator=torch.Generator().manual_seed(0))
    changed = in_blocks(copy.deepcopy(model))
    kept = [name for name, module in changed.named_modules() if isinstance(module, nn.Conv2d)]
    assert kept == ["conv2"]
