import math
import random

import numpy as np
import pytest
import torch
from scipy.stats import kstest, uniform
from torch import nn

from snnfl.config import ModelConfig
from snnfl.models import build_model, initialise, names
from snnfl.models.initialisation import materialise
from snnfl.rng import generator


def build(name, seed=0):
    shape = (3, 32, 32)
    return build_model(ModelConfig(name=name), input_shape=shape, classes=10, generator=generator(seed, "weights"))


@pytest.fixture
def poisoned_memory():
    """Fill memory that nobody wrote with NaN, so that a forgotten tensor shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(16, 500, 5), nn.Conv2d(64, 500, 3, groups=4), nn.Linear(300, 2000)], ids=str
)
def test_draws_what_pytorch_draws(layer):
    """The uniform distribution (Kolmogorov-Smirnov) whose bounds are those of PyTorch's own constructor."""
    theirs = {name: p.detach().clone().flatten() for name, p in layer.named_parameters()}
    initialise(layer, generator(0, "weights"))
    bound = 1 / math.sqrt(layer.weight[0].numel())
    for name, ours in layer.named_parameters():
        assert 0.97 * bound < theirs[name].abs().max() <= bound
        assert not torch.equal(ours.flatten(), theirs[name])
        assert kstest(ours.detach().flatten() / bound, uniform(-1, 2).cdf).pvalue > 0.01


def test_batch_norm_starts_as_the_identity():
    norm = nn.BatchNorm2d(3)
    norm(torch.rand(4, 3, 5, 5))
    with torch.no_grad():
        norm.weight.fill_(7), norm.bias.fill_(7)
    initialise(norm, generator(0, "weights"))
    state = {name: tensor.unique().item() for name, tensor in norm.state_dict().items()}
    assert state == {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1, "num_batches_tracked": 0}


@pytest.mark.parametrize("name", names())
@pytest.mark.usefixtures("poisoned_memory")
def test_every_value_is_decided_by_the_generator(name):
    one, same, other = (build(name, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.isfinite(tensor).all() for tensor in one.values())
    assert all(torch.equal(tensor, same[key]) for key, tensor in one.items())
    assert any(not torch.equal(tensor, other[key]) for key, tensor in one.items())


def test_global_random_state_is_neither_read_nor_moved():
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    first = build("resnet20").state_dict()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state[1])
    assert random.getstate() == python_state
    torch.rand(7)
    assert all(torch.equal(tensor, first[key]) for key, tensor in build("resnet20").state_dict().items())


class Scaled(nn.Module):
    def __init__(self, device):
        super().__init__()
        self.register_buffer("scale", torch.full((3,), 2.5, device=device))
        self.frozen = nn.Linear(3, 3)
        self.frozen.weight = nn.Parameter(torch.eye(3, device=device), requires_grad=False)
        self.layer = nn.Linear(3, 2)


def test_constants_keep_their_values():
    with torch.device("meta"):
        model = Scaled("cpu")
    materialise(model, generator(0, "weights"))
    assert torch.equal(model.scale, torch.full((3,), 2.5))
    assert torch.equal(model.frozen.weight, torch.eye(3))
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Scaled("meta"), "scale of a Scaled"),
        (lambda: nn.Sequential(nn.Embedding(3, 3)), "0.weight of a Embedding"),
        (lambda: nn.Sequential(nn.Linear(3, 3).requires_grad_(False)), "0.weight of a Linear"),
    ],
)
def test_a_tensor_without_a_value_is_an_error(make, name):
    with torch.device("meta"):
        model = make()
    with pytest.raises(TypeError, match=f"{name} has no initialisation: create a constant with device"):
        materialise(model, generator(0, "weights"))
