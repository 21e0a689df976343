"""Large products, of spikes and others, by each processor's way, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from snnfl.models import products
from snnfl.models.over_time import fold_time
from snnfl.models.products import LARGE, Processor, product
from snnfl.neurons.events import EventLayer
from snnfl.rng import generator

DESCRIPTION = "processor\t: 0\nvendor_id\t: {}\ncpu family\t: {}\nmodel\t\t: 1\nflags\t\t: fpu {}\n\n"


def draw(*shape: int, purpose: str = "values") -> Tensor:
    return torch.randn(shape, generator=generator(0, purpose))


@pytest.fixture(params=[True, False], ids=["oneDNN", "MKL"])
def processor(request, monkeypatch):
    """Let products be those of a processor on which oneDNN is faster, or isn't."""
    monkeypatch.setattr(products, "processor", lambda: Processor(onednn=request.param, most_events=0.2))


@pytest.mark.parametrize(
    ("vendor", "family", "flags", "expected"),
    [
        ("AuthenticAMD", 26, "avx2 avx512f", Processor(onednn=True, most_events=0.08)),
        ("AuthenticAMD", 25, "avx2 avx512f avx512bw", Processor(onednn=False, most_events=0.2)),
        ("AuthenticAMD", 25, "avx2", Processor(onednn=False, most_events=0.08)),
        ("GenuineIntel", 6, "avx2 avx512f", Processor(onednn=False, most_events=0.08)),
    ],
)
def test_ways_are_those_that_were_measured(vendor, family, flags, expected):
    assert Processor.of(DESCRIPTION.format(vendor, family, flags) * 2) == expected


def test_an_unknown_processor_multiplies_as_pytorch_does():
    assert not Processor.of("").onednn


@pytest.mark.parametrize("density", [1.0, 0.25, 0.1])
def test_large_products_are_as_exact_as_pytorchs(density, processor, monkeypatch):
    fired = torch.rand(200, 512, generator=generator(0, "fired")) < density
    left, right = (draw(200, 512, purpose="left") * fired).requires_grad_(), draw(256, 512, purpose="right")
    assert len(left) * right.numel() >= LARGE
    layer = nn.Linear(512, 256)
    layer.weight.data.copy_(right)
    fold_time(layer)
    driven, apply = list[bool](), EventLayer.apply
    monkeypatch.setattr(EventLayer, "apply", lambda *given: driven.append(True) or apply(*given))
    found = layer(left.view(20, 10, 512)).flatten(0, 1)
    assert driven == [True] * (density == 0.1)
    weights = draw(200, 256, purpose="weights")
    (found * weights).sum().backward()
    exact = left.detach().double() @ right.double().T + layer.bias.detach().double()
    for value, expected in (
        (found, exact),
        (left.grad, weights.double() @ right.double()),
        (layer.weight.grad, weights.double().T @ left.detach().double()),
        (layer.bias.grad, weights.double().sum(0)),
    ):
        assert (value - expected).abs().max() < 1e-5 * expected.abs().max()
    with torch.no_grad():
        assert torch.equal(layer(left.view(20, 10, 512)).flatten(0, 1), found)


def test_products_differentiate_twice_and_under_vmap(processor):
    left, right = draw(3, 4).double().requires_grad_(), draw(5, 4, purpose="right").double()
    # the layer takes float32 alone; the formula of the gradients doesn't
    found = product(left.float(), right.float())
    (first,) = torch.autograd.grad(found.square().sum(), left, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), left)
    gram = right.T @ right
    torch.testing.assert_close(second, 8 * left.detach() @ gram @ gram, rtol=1e-5, atol=1e-5)
    several, bias = draw(2, 3, 4), draw(5, purpose="bias")
    together = torch.vmap(product, in_dims=(0, None))(several, right.float())
    torch.testing.assert_close(together, several @ right.float().T)
    together = torch.vmap(product, in_dims=(0, None, None))(several, right.float(), bias)
    torch.testing.assert_close(together, functional.linear(several, right.float(), bias))


def test_large_products_under_autocast_are_pytorchs():
    layers = nn.Sequential(nn.Linear(512, 512))
    inputs = draw(1, 64, 512)
    assert 64 * layers[0].weight.numel() >= LARGE
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = layers(inputs)
        fold_time(layers)
        assert torch.equal(layers(inputs), expected)
