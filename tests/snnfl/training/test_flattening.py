"""Gradients of flattened batches lie as these lay, and are the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnfl.training.flattening import LARGE, laid_out_gradients

LAST = torch.channels_last


def pooled(channels: int, batch: int) -> tuple[nn.Module, Tensor]:
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, 16, 16, generator=draw).to(memory_format=LAST)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, channels, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(49 * channels, 10)
    )
    return model.to(memory_format=LAST), images


def gradients(model: nn.Module, images: Tensor, seen: list[Tensor] | None = None) -> list[Tensor]:
    if seen is not None:
        model[2].register_full_backward_hook(lambda layer, given, got: seen.append(got[0]))  # type: ignore[index]
    model.zero_grad()
    F.cross_entropy(model(images), torch.arange(len(images)) % 10).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(("channels", "batch", "laid_out"), [(64, 16, True), (4, 2, False)])
def test_the_gradient_of_a_large_batch_lies_as_the_batch(channels: int, batch: int, laid_out: bool) -> None:
    assert (batch * channels * 49 >= LARGE) is laid_out
    model, images = pooled(channels, batch)
    plain = gradients(copy.deepcopy(model), images)
    with laid_out_gradients(model.modules()):
        faster = gradients(copy.deepcopy(model), images)
        seen: list[Tensor] = []
        gradients(model, images, seen)
    assert all(map(torch.equal, plain, faster))
    assert seen[0].is_contiguous(memory_format=LAST) is laid_out
    assert type(model[3]) is nn.Flatten  # type: ignore[index]


def test_a_contiguous_batch_is_left_as_it_is() -> None:
    batch = torch.randn(8, 64, 8, 8, requires_grad=True)
    layer = nn.Flatten()
    with laid_out_gradients([layer]):
        flat = layer(batch)
        assert not batch._backward_hooks
        flat.sum().backward()
    assert batch.grad is not None
    assert batch.grad.is_contiguous()
    with torch.no_grad(), laid_out_gradients([layer]):
        last = batch.detach().to(memory_format=LAST)
        assert torch.equal(layer(last), batch.flatten(1))
