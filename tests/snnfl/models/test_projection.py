"""MOON's projection head on every model."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from snnfl.config import ConfigError, ConversionConfig, ModelConfig
from snnfl.conversion import convert
from snnfl.models import build_model, names
from snnfl.models.projection import with_projection_head
from snnfl.rng import generator


def build(name: str, *, head: bool, size: int = 32) -> nn.Module:
    config = ModelConfig(name=name, projection_head=head)
    return build_model(config, input_shape=(3, size, size), classes=7, generator=generator(0, "weights"))


@pytest.mark.parametrize("name", names())
def test_two_layers_come_before_the_output(name: str) -> None:
    plain, model = build(name, head=False), build(name, head=True)
    body, (first, relu, second, output) = list(model.named_children())[:-4], list(model.children())[-4:]
    features = list(plain.children())[-1].in_features
    assert [label for label, _ in body] == [label for label, _ in plain.named_children()][:-1]
    assert (first.in_features, first.out_features) == (features, features)
    assert isinstance(relu, nn.ReLU)
    assert (second.in_features, second.out_features) == (features, 256)
    assert (output.in_features, output.out_features) == (256, 7)
    assert list(model.named_children())[-1][0] == list(plain.named_children())[-1][0]
    assert all(float(layer.weight.detach().std()) > 0 for layer in (first, second, output))


def test_it_converts() -> None:
    model, images = build("lenet5", head=True, size=8).eval(), torch.rand(64, 3, 8, 8, generator=generator(1, "images"))
    network = convert(model, images, ConversionConfig(steps=512, thresholds="layer_max", initial_potential="half"))
    errors = [float((network.simulate(images, steps=t)[t] - model(images)).detach().abs().mean()) for t in (8, 64, 512)]
    assert all(later < earlier for earlier, later in pairwise(errors))
    assert errors[-1] < 0.02 * float(model(images).detach().abs().mean())


@pytest.mark.parametrize("model", [nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2), nn.Sequential()])
def test_a_model_that_ends_in_something_else_is_refused(model: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"model.projection_head=true: model.name=mine is no nn.Sequential that ends"):
        with_projection_head(model, "mine")
