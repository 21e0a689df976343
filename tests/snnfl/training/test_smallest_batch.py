"""Which models PyTorch refuses to train on a batch of one sample."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from snnfl.config import ConfigError, ModelConfig
from snnfl.models import build_model, names
from snnfl.rng import generator
from snnfl.training import needs_two

SHAPES = ((4,), (1, 8, 8), (1, 28, 28), (3, 32, 32), (1, 4, 4))


@pytest.mark.parametrize("neuron", ["relu", "lif"])
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("name", names())
def test_it_is_found_exactly_where_pytorch_raises(name: str, batch_norm: bool, neuron: str) -> None:
    tried = 0
    for shape in SHAPES:
        steps = {} if neuron == "relu" else {"neuron": neuron, "time_steps": 2}
        config = ModelConfig(name=name, batch_norm=batch_norm, **steps)
        try:
            model = build_model(config, input_shape=shape, classes=10, generator=generator(0, "weights"))
        except ConfigError:
            continue  # too small for it
        state = {key: array.clone() for key, array in model.state_dict().items()}
        found = needs_two(model, torch.zeros(1, *shape))
        assert model.training
        assert all(torch.equal(array, state[key]) for key, array in model.state_dict().items())
        sample = torch.rand(1, *shape, generator=generator(1, "sample"))
        if found is None:
            model(sample)
        else:
            with pytest.raises(ValueError, match="more than 1 value per channel"):
                model(sample)
            assert isinstance(model.get_submodule(found), nn.BatchNorm1d | nn.BatchNorm2d)
        tried += 1
    assert tried > 0
