"""Fake quantisers against their formulas, brevitas and snnTorch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from snntorch.functional.quant import state_quant
from torch import Tensor

from snnfl.quantisation import affine, rectified, straight_through, symmetric

BITS = (2, 4, 8)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Round(torch.autograd.Function):
    """Rounding whose gradient is said to be one, written as PyTorch's documentation writes such a function."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        return torch.round(values)

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return gradients[0]


def literal(weight: Tensor, bits: int, per_channel: bool) -> Tensor:
    scale = torch.abs(weight).flatten(1).max(1)[0][:, None, None, None] if per_channel else torch.abs(weight).max()
    scale = scale / (2 ** (bits - 1) - 1)
    whole: Tensor = Round.apply(weight / scale)  # type: ignore[no-untyped-call]
    return whole * scale


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("per_channel", [False, True])
def test_weights_are_the_four_lines_bit_for_bit(bits: int, per_channel: bool) -> None:
    results = []
    for quantised in (lambda w: symmetric(w, bits, per_channel=per_channel), lambda w: literal(w, bits, per_channel)):
        weight = drawn(5, 3, 3, 3).requires_grad_()
        made = quantised(weight)
        made.backward(drawn(5, 3, 3, 3, seed=1))
        results.append((made.detach(), weight.grad))
    (made, gradient), (expected, wanted) = results
    assert torch.equal(made, expected)
    assert gradient is not None
    assert wanted is not None
    assert torch.equal(gradient, wanted)
    assert not torch.equal(gradient, drawn(5, 3, 3, 3, seed=1))  # the scale's part is there


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", ["linear", "conv2d", "conv2d per channel"])
def test_weights_are_those_of_brevitas_bit_for_bit(bits: int, kind: str) -> None:
    nn = pytest.importorskip("brevitas.nn", reason="brevitas isn't installed: pip install 'snnfl[brevitas]'")
    options = {"bias": False, "weight_bit_width": bits}
    if kind == "linear":
        layer, inputs = nn.QuantLinear(20, 7, **options), drawn(4, 20, seed=2)
    else:
        options["weight_scaling_per_output_channel"] = "channel" in kind
        layer, inputs = nn.QuantConv2d(3, 6, 3, **options), drawn(2, 3, 8, 8, seed=2)
    weight = layer.weight.detach().clone().requires_grad_()
    made = symmetric(weight, bits, per_channel="channel" in kind)
    convolves = kind.startswith("conv2d")
    outputs = torch.nn.functional.conv2d(inputs, made) if convolves else torch.nn.functional.linear(inputs, made)
    expected = layer(inputs)
    assert torch.equal(made, layer.quant_weight().value)
    assert torch.equal(outputs, expected)
    slope = drawn(*outputs.shape, seed=3)
    outputs.backward(slope)
    expected.backward(slope)
    assert torch.equal(weight.grad, layer.weight.grad)  # type: ignore[arg-type]


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30), st.sampled_from(BITS), st.booleans())
def test_weights_keep_to_their_levels(values: list[float], bits: int, per_channel: bool) -> None:
    weight = torch.tensor([values])
    made, most = symmetric(weight, bits, per_channel=per_channel), 2 ** (bits - 1) - 1
    assert torch.isfinite(made).all()
    scale = float(weight.abs().max()) / most
    if scale > 1e-9:
        levels = made.double() / scale
        assert torch.allclose(levels, levels.round(), atol=1e-4)
        assert levels.abs().max() <= most + 1e-4
        assert ((made - weight).abs() <= scale * (0.5 + 1e-4)).all()


def test_a_scale_per_channel_commutes_with_what_multiplies_channels() -> None:
    weight, factor = drawn(6, 3, 3, 3), drawn(6, seed=1)[:, None, None, None]
    for bits in BITS:
        multiplied = symmetric(weight * factor, bits, per_channel=True)
        expected = symmetric(weight, bits, per_channel=True) * factor
        assert torch.allclose(multiplied, expected, rtol=1e-5)
        per_tensor = symmetric(weight * factor, bits)
        assert not torch.allclose(per_tensor, symmetric(weight, bits) * factor, rtol=1e-2)


def test_a_weight_of_zeros_stays_one() -> None:
    assert not symmetric(torch.zeros(3, 4), 8).any()
    assert not symmetric(torch.zeros(3, 4), 2, per_channel=True).any()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("largest", [0.5, 1.5])
def test_activations_are_equation_1(bits: int, largest: float) -> None:
    values = 2 * drawn(500)
    step = largest / (2**bits - 1)
    expected = [round(min(max(value, 0.0), largest) / step) * step for value in values.double().tolist()]
    assert torch.allclose(rectified(values, bits, largest).double(), torch.tensor(expected).double(), atol=1e-6)
    assert len(rectified(10 * drawn(100_000), bits, largest).unique()) == 2**bits


@pytest.mark.parametrize("bits", BITS)
def test_a_learned_range_has_the_gradient_of_learned_steps(bits: int) -> None:
    values, top, slope = (2 * drawn(300)).requires_grad_(), torch.tensor([1.5], requires_grad=True), drawn(300, seed=1)
    rectified(values, bits, top).backward(slope)
    step, most = 1.5 / (2**bits - 1), 2**bits - 1
    wanted = 0.0
    for value, weight in zip(values.tolist(), slope.tolist(), strict=True):
        scaled = value / step  # Esser et al., eq. 3: by the step, of which the range is 2^b - 1
        wanted += weight * (0 if scaled <= 0 else most if scaled >= most else round(scaled) - scaled) / most
    assert top.grad is not None
    assert math.isclose(float(top.grad), wanted, rel_tol=1e-4)
    inside = (values > 0) & (values < 1.5)
    assert values.grad is not None
    assert torch.allclose(values.grad[inside], slope[inside])
    assert not values.grad[~inside].any()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("q", [0.5, 1.0, 1.5])
def test_potentials_are_snntorchs(bits: int, q: float) -> None:
    values, slope = drawn(2000), drawn(2000, seed=1)
    results = []
    for quantised in (lambda v: affine(v, bits, -q, 1.2 * q), state_quant(num_bits=bits, uniform=True, threshold=q)):
        given_values = values.clone().requires_grad_()
        made = quantised(given_values)
        made.backward(slope)
        results.append((made.detach(), given_values.grad))
    (made, gradient), (expected, wanted) = results
    assert torch.allclose(made, expected, atol=1e-6)
    assert gradient is not None
    assert wanted is not None
    assert torch.equal(gradient, wanted)


def test_values_are_rounded_exactly_and_differentiated_twice() -> None:
    values = torch.tensor([-0.5, 0.5, 1.5, 126.5, 1e6, -3.2], requires_grad=True)
    assert torch.equal(straight_through(values), values.detach().round())
    (first,) = torch.autograd.grad((straight_through(values) ** 3).sum(), values, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), values)
    assert torch.equal(second, 6 * values.detach().round())
