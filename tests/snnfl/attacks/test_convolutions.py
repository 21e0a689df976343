"""Convolutions of the flat graph against PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from snnfl.attacks import convolutions
from snnfl.attacks.convolutions import choose_kernel

KERNELS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


def gradient_matching(options):
    """Differentiate twice, as gradient matching does: by weights and bias, then by pictures."""

    def function(pictures, weights, bias, wanted):
        def slopes(pictures):
            def value(weights, bias):
                return functional.conv2d(pictures, weights, bias, **options).tanh().square().sum()

            return torch.func.grad(value, argnums=(0, 1))(weights, bias)

        def distance(pictures):
            by_weights, by_bias = slopes(pictures)
            return (by_weights * wanted).sum() + by_bias.square().sum()

        return torch.func.grad_and_value(distance)(pictures)

    return function


def tensors(groups=1):
    draw = torch.Generator().manual_seed(0)
    pictures = torch.randn(2, 4, 9, 8, generator=draw).transpose(2, 3).contiguous().transpose(2, 3)
    weights, wanted = (torch.randn(6, 4 // groups, 3, 2, generator=draw) for _ in range(2))
    return pictures, weights, torch.randn(6, generator=draw), wanted


def chosen(options, given):
    """Return the graph with its kernels chosen, and the targets of all nodes before and after."""
    graph = make_fx(gradient_matching(options))(*given)
    before = [node.target for node in graph.graph.nodes]
    for node in graph.graph.nodes:
        choose_kernel(node)
    graph.recompile()
    return graph, before, [node.target for node in graph.graph.nodes]


@pytest.mark.parametrize(
    "options", [{}, {"padding": 1}, {"padding": (2, 0)}, {"stride": (2, 1)}, {"stride": 2, "padding": 1}], ids=str
)
def test_second_slopes_of_small_convolutions_are_those_of_pytorch(options):
    given = tensors()
    graph, before, after = chosen(options, given)
    torch.testing.assert_close(graph(*given), gradient_matching(options)(*given), rtol=1e-4, atol=1e-4)
    assert {*KERNELS} <= {*before}
    assert {convolutions.convolution, convolutions.convolution_backward} <= {*after}
    assert options.get("stride") or not {*KERNELS} & {*after}


@pytest.mark.parametrize(
    ("options", "given"),
    [({"dilation": 2}, tensors()), ({"groups": 2}, tensors(groups=2)), ({}, tuple(t.double() for t in tensors()))],
    ids=["dilation", "groups", "float64"],
)
def test_others_are_left_to_pytorch(options, given):
    graph, _, after = chosen(options, given)
    torch.testing.assert_close(graph(*given), gradient_matching(options)(*given), rtol=1e-4, atol=1e-4)
    assert {*KERNELS} & {*after}


def test_large_ones_are_left_to_pytorch(monkeypatch):
    monkeypatch.setattr(convolutions, "SMALL", 0)
    _, before, after = chosen({}, tensors())
    assert before == after
