"""Average pooling of the flat graph against PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from snnfl.attacks.pooling import DECOMPOSITIONS

POOLINGS = (torch.ops.aten.avg_pool2d.default, torch.ops.aten.avg_pool2d_backward.default)


def pooled_and_slope(options):
    def function(pictures, weights):
        def value(pictures):
            pooled = functional.avg_pool2d(pictures, **options)
            return (pooled * weights).sum(), pooled

        return torch.func.grad(value, has_aux=True)(pictures)

    return function


@pytest.mark.parametrize(
    ("options", "decomposed"),
    [
        ({"kernel_size": 2}, True),
        ({"kernel_size": (3, 2), "stride": (3, 2)}, True),
        ({"kernel_size": 2, "stride": 1}, False),
        ({"kernel_size": 2, "padding": 1}, False),
        ({"kernel_size": 5}, False),
        ({"kernel_size": 2, "divisor_override": 3}, False),
    ],
    ids=str,
)
def test_values_and_slopes_are_those_of_pytorch(options, decomposed):
    draw = torch.Generator().manual_seed(0)
    pictures = torch.randn(2, 3, 12, 8, generator=draw)
    weights = torch.randn(functional.avg_pool2d(pictures, **options).shape, generator=draw)
    function = pooled_and_slope(options)
    graph = make_fx(function, decomposition_table=DECOMPOSITIONS)(pictures, weights)
    torch.testing.assert_close(graph(pictures, weights), function(pictures, weights))
    assert decomposed != any(node.target in POOLINGS for node in graph.graph.nodes)
