from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import Tensor

from snnfl.spiking import MaxPool
from snnfl.spiking.maximum import gate, gated_maximum


def pool(op: str, **arguments: Any) -> MaxPool:
    return MaxPool(name="pool", inputs=("x",), op=op, arguments=arguments)


@st.composite
def poolings(draw: st.DrawFn) -> tuple[MaxPool, tuple[int, ...]]:
    """Draw a pooling of either dimension, and the size of a picture that it takes."""
    axes = draw(st.sampled_from([1, 2]))
    size = tuple(draw(st.integers(4, 9)) for _ in range(axes))

    def per_axis(low: int, high: int) -> Any:
        values = tuple(draw(st.integers(low, high)) for _ in range(axes))
        return values if draw(st.booleans()) else values[0]

    if draw(st.booleans()):
        return pool(f"adaptive_max_pool{axes}d", output_size=per_axis(1, 4)), size
    arguments: dict[str, Any] = {"kernel_size": per_axis(2, 3), "padding": draw(st.integers(0, 1))}
    if draw(st.booleans()):
        arguments["stride"] = per_axis(1, 3)
    if arguments["padding"] == 0 and draw(st.booleans()):
        arguments["dilation"] = draw(st.integers(1, 1 if max(size) < 5 else 2)) if min(size) > 4 else 1
    return pool(f"max_pool{axes}d", ceil_mode=draw(st.booleans()), **arguments), size


@given(
    pooling=poolings(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    last=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_chunks_of_time_and_both_implementations_agree(pooling, dtype, last, seed):
    """Its sum over time is the maximum of the sums at every step, however time is cut."""
    node, size = pooling
    draw = torch.Generator().manual_seed(seed)
    value = torch.randn(7, 2, 3, *size, generator=draw, dtype=dtype)
    if last:
        value = value.movedim(2, -1).contiguous().movedim(-1, 2)
    whole, remembered = gated_maximum(node, value, None)
    parts, before = list[Tensor](), None
    for part in value.split([1, 4, 2]):
        passed, before = gated_maximum(node, part, before)
        parts.append(passed)
    assert torch.equal(torch.cat(parts), whole)
    by_torch, after = gate(node, value, None)
    assert torch.equal(by_torch, whole)
    sums = value.double().cumsum(0)
    for step in range(7):
        expected = node.apply([sums[step]], {})
        torch.testing.assert_close(whole.double()[: step + 1].sum(0), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(after.largest, node.apply([sums[-1]], {}))
    assert remembered.total.dtype == torch.float64


@pytest.mark.parametrize("level", [0.1, 1 / 3, 123.456])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_spikes_single_spikes_pass(level, dtype):
    """As many as the neuron of the window fires that fires most; in single precision each is worth a spike's bits."""
    draw = torch.Generator().manual_seed(0)
    rates = torch.rand(2, 3, 4, 6, generator=draw)
    fired = torch.rand(600, *rates.shape, generator=draw) < rates
    spikes = fired.to(dtype) * torch.tensor(level, dtype=dtype)
    passed, _ = gated_maximum(pool("max_pool2d", kernel_size=2), spikes, None)
    counts = (passed / level).round()
    assert set(counts.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(counts.sum(0), F.max_pool2d(fired.sum(0).to(dtype), 2))
    if dtype == torch.float32:
        assert set(passed.unique().tolist()) == {0.0, torch.tensor(level).item()}


def test_the_maximum_at_each_step_would_not_converge():
    """Two neurons of rate 1/2 that take turns: the larger rate is 1/2, and at each step one of them fires."""
    turns = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(50, 1).view(100, 1, 1, 2)
    node = pool("max_pool1d", kernel_size=2)
    assert node.apply([turns[:, 0]], {}).mean() == 1
    assert gated_maximum(node, turns, None)[0].mean() == 0.5


def test_a_gradient_flows_through_the_gate():
    value = torch.randn(5, 1, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    passed, _ = gate(pool("max_pool1d", kernel_size=2), value, None)
    passed.sum().backward()
    chosen = F.max_pool1d(value.sum(0), 2, return_indices=True)[1]
    expected = torch.zeros(4, dtype=torch.float64)
    expected[chosen.flatten()] = 1
    assert torch.equal(value.grad, expected.expand_as(value))
