"""Maxima are pooled before the ReLU, and nothing else changes."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnfl.training.pooling import pooled_first


def network(pool: nn.Module, layout: torch.memory_format = torch.contiguous_format) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), pool, nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AvgPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(10))
    model(torch.zeros(1, 3, 16, 16))
    return model.to(memory_format=layout)  # type: ignore[call-overload]  # annotated for a single keyword


def computed(model: nn.Module, images: Tensor) -> tuple[list[Tensor], list[int]]:
    """Return loss and gradients, and the numbers that each ReLU was given."""
    model.zero_grad()
    with patch.object(F, "relu", wraps=F.relu) as relu:
        loss = F.cross_entropy(model(images), torch.arange(len(images)) % 10)
    loss.backward()  # type: ignore[no-untyped-call]  # PyTorch leaves it unannotated
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [loss.detach(), *gradients], [call.args[0][0].numel() for call in relu.call_args_list]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("options", "size"), [((2,), 7), ((3, 2, 1), 7), ((3, 1, 1), 14)])
def test_outputs_and_gradients_stay_the_same_to_the_bit(
    options: tuple[int, ...], size: int, layout: torch.memory_format
) -> None:
    model = network(nn.MaxPool2d(*options), layout)
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(8, 3, 16, 16, generator=draw).round().to(memory_format=layout)  # windows with equal maxima
    plain, before = computed(model, images)
    with pooled_first(model.modules()):
        faster, numbers = computed(model, images)
    assert all(map(torch.equal, plain, faster))
    assert before[0] == 8 * 14 * 14
    assert numbers == [8 * size * size, before[1]]
    assert type(model) is nn.Sequential


@pytest.mark.parametrize("case", ["indices", "average", "hook", "subclass"])
def test_other_layers_stay_in_their_order(case: str) -> None:
    pools = {"average": nn.AvgPool2d(2), "subclass": type("Own", (nn.MaxPool2d,), {})(2)}
    model = network(pools.get(case, nn.MaxPool2d(2)))
    seen: list[int] = []
    if case == "hook":
        model[1].register_forward_hook(lambda layer, given, got: seen.append(got[0].numel()))
    if case == "indices":
        model = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2, return_indices=True))
    with pooled_first(model.modules()):
        assert type(model) is nn.Sequential
        model(torch.randn(2, 3, 16, 16))
    assert seen == ([8 * 14 * 14] if case == "hook" else [])
