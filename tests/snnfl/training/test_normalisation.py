"""Training in the layout that runs is as precise as arithmetic in float32 can be."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnfl.config import ModelConfig, TrainingConfig
from snnfl.models import build_model, names
from snnfl.models.over_time import fold_time
from snnfl.rng import generator
from snnfl.training import precise_batch_norm, train_locally

LAST = torch.channels_last
IMAGE_MODELS = [name for name in names() if name != "mlp"]


def resident(name: str) -> nn.Module:
    """Build a network as a run lays it out."""
    built = build_model(ModelConfig(name=name), input_shape=(3, 32, 32), classes=10, generator=generator(0, "weights"))
    return built.to(memory_format=LAST)


def first_batch(size: int = 64) -> tuple[Tensor, Tensor]:
    """Return images that are no noise: smooth, and of different brightness and contrast."""
    draw = generator(0, "images")
    coarse = torch.randn(size, 3, 4, 4, generator=draw) * torch.rand(size, 1, 1, 1, generator=draw)
    images = F.interpolate(coarse, size=32, mode="bicubic") + torch.randn(size, 3, 1, 1, generator=draw)
    return images, torch.arange(size) % 10


def gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    model.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


def error_of(model: nn.Module, *, size: int = 64, precise: bool = True) -> float:
    """Return ``|g - g64| / |g64|`` of a first batch, with the units that fire in float32 firing in float64, too.

    Rounding flips a few of the millions of ReLUs that are nearly zero, in whichever layout, and their gradients jump:
    that is the kink's, not the arithmetic's.
    """
    images, labels = first_batch(size)
    exact, fires = copy.deepcopy(model).double().to(memory_format=torch.contiguous_format), dict[str, Tensor]()
    for name, module in model.named_modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda _, i, o, name=name: fires.__setitem__(name, o > 0))
    with precise_batch_norm(model.modules()) if precise else nullcontext():
        found = gradient(model, images.contiguous(memory_format=LAST), labels)
    for name, module in exact.named_modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda _, i, o, name=name: i[0] * fires[name])
    true = gradient(exact, images.double(), labels)
    return float((found - true).norm() / true.norm())


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_the_gradient_of_every_network_is_within_a_hundred_thousandth_of_float64(name):
    assert error_of(resident(name), size=16 if name == "vgg16" else 64) < 1e-5  # which takes its time


def test_pytorchs_own_normalisation_of_this_layout_is_not():
    """Else there were no reason for ours."""
    assert error_of(resident("resnet20"), precise=False) > max(1e-5, 3 * error_of(resident("resnet20")))


@pytest.mark.parametrize("shape", [(5, 3, 4, 6), (2, 1, 3, 3), (7, 4, 1, 1), (1, 3, 2, 1)])
@pytest.mark.parametrize("momentum", [0.1, 0.7])
def test_in_float64_it_is_pytorchs_forward_backward_and_running_statistics(shape, momentum):
    draw = generator(3, "batch")
    images = (3 + 2 * torch.randn(shape, dtype=torch.float64, generator=draw)).contiguous(memory_format=LAST)
    theirs = nn.BatchNorm2d(shape[1], momentum=momentum, dtype=torch.float64)
    with torch.no_grad():
        theirs.weight.uniform_(-1, 2, generator=draw)
        theirs.bias.uniform_(-1, 1, generator=draw)
    ours = copy.deepcopy(theirs)
    weights = torch.randn(shape, dtype=torch.float64, generator=draw)
    results = []
    for norm in (ours, theirs):
        inputs = images.clone(memory_format=torch.preserve_format).requires_grad_()
        with precise_batch_norm(norm.modules()) if norm is ours else nullcontext():
            for _ in range(2):
                normalised = norm(inputs)
            (normalised * weights).sum().backward()
        state = [norm.running_mean, norm.running_var, norm.num_batches_tracked.double()]
        results.append([normalised, inputs.grad, norm.weight.grad, norm.bias.grad, *state])
        assert normalised.is_contiguous(memory_format=LAST)
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "layout"),
    [
        ({}, torch.contiguous_format),
        ({"affine": False}, LAST),
        ({"track_running_stats": False}, LAST),
        ({"momentum": None}, LAST),
    ],
)
def test_whatever_else_is_normalised_is_pytorchs_to_the_bit(options, layout):
    images = torch.randn(4, 3, 5, 5, generator=generator(0, "batch")).contiguous(memory_format=layout)
    theirs = nn.BatchNorm2d(3, **options)
    ours = copy.deepcopy(theirs)
    with precise_batch_norm(ours.modules()):
        assert torch.equal(ours(images), theirs(images))
        ours.eval(), theirs.eval()
        assert torch.equal(ours(images), theirs(images))


def test_one_value_per_channel_is_an_error_as_ever_and_the_layers_come_back():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"), precise_batch_norm(model.modules()):
        model[0](torch.zeros(1, 3, 1, 1))
    assert [type(module) for module in model] == [nn.BatchNorm2d, nn.BatchNorm1d]


def test_layers_that_fold_time_are_as_precise():
    """A layer of a spiking network sees T times as many values per channel."""
    draw = generator(0, "batch")
    layer = nn.BatchNorm2d(4)
    fold_time(nn.ModuleList([layer]))
    exact = copy.deepcopy(layer).double()
    images = torch.randn(8 * 32, 4, 32, 32, generator=draw) + 3
    values = images.contiguous(memory_format=LAST).unflatten(0, (8, 32))
    weights = torch.randn(values.shape, generator=draw)

    def gradients(norm: nn.Module, kind: torch.dtype) -> Tensor:
        norm.zero_grad()
        inputs = values.to(kind).requires_grad_()
        (norm(inputs) * weights.to(kind)).sum().backward()
        return torch.cat([norm.weight.grad, norm.bias.grad]).double()

    true = gradients(exact, torch.float64)
    kind, errors = type(layer), {}
    for precise in (True, False):
        with precise_batch_norm(layer.modules()) if precise else nullcontext():
            errors[precise] = float((gradients(layer, torch.float32) - true).norm() / true.norm())
    assert errors[True] < 1e-5
    assert errors[False] > 3 * errors[True]
    assert type(layer) is kind


def test_local_training_normalises_so():
    """One step of rate 1 without momentum is the gradient, to the bit."""
    images, labels = first_batch()
    batch, model = (images.contiguous(memory_format=LAST), labels), resident("lenet5")
    steps = {}
    for precise in (True, False):
        moved = copy.deepcopy(model)
        with precise_batch_norm(moved.modules()) if precise else nullcontext():
            gradient(moved, *batch)
        steps[precise] = [parameter.detach() - parameter.grad for parameter in moved.parameters()]
    training = TrainingConfig(epochs=1, learning_rate=1.0, momentum=0.0, weight_decay=0.0)
    train_locally(model, [[batch]], training, server_round=1)
    assert all(map(torch.equal, model.parameters(), steps[True]))
    assert not all(map(torch.equal, model.parameters(), steps[False]))
    assert {type(module) for module in model.modules() if "Norm" in type(module).__name__} == {nn.BatchNorm2d}
