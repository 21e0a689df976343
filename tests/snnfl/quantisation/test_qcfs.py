"""Quantised activations: the function, the module, and that conversion turns them into neurons exactly."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import networks
import pytest
import torch
from hypothesis import given
from torch import nn

from snnfl.conversion import ConversionConfig, ConversionError, convert, fold, recover, trace
from snnfl.neurons import Neuron, NeuronState, scan
from snnfl.quantisation import QCFS, SMALLEST_THRESHOLD, clip_floor_shift, fitting_thresholds, with_qcfs


def literal(value: float, levels: int, threshold: float) -> float:
    return threshold / levels * min(max(math.floor(value * levels / threshold + 0.5), 0), levels)


@given(seed=st.integers(0, 2**20), levels=st.integers(1, 32))
def test_the_activation_is_the_papers(seed, levels):
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(3, 4, 5, generator=draw, dtype=torch.float64)
    thresholds = torch.rand(4, generator=draw, dtype=torch.float64) + 0.1
    found = clip_floor_shift(values, levels, thresholds)
    for n in range(3):
        for c in range(4):
            for i in range(5):
                expected = literal(float(values[n, c, i]), levels, float(thresholds[c]))
                assert float(found[n, c, i]) == pytest.approx(expected)


def test_gradients_are_those_of_the_clip_with_the_error_of_rounding():
    values = torch.tensor([-0.3, 0.2, 0.9, 1.4], dtype=torch.float64, requires_grad=True)
    threshold = torch.tensor([1.2], dtype=torch.float64, requires_grad=True)
    found = clip_floor_shift(values, 4, threshold)
    by_value, by_threshold = torch.autograd.grad(found.sum(), (values, threshold))
    assert by_value.tolist() == [0.0, 1.0, 1.0, 0.0]
    inside = [(literal(v, 4, 1.2) - v) / 1.2 for v in (0.2, 0.9)]
    assert float(by_threshold.detach()) == pytest.approx(sum(inside) + 1)


@given(seed=st.integers(0, 2**20), levels=st.integers(1, 20))
def test_neurons_are_the_activation_at_as_many_steps_under_equal_arrival(seed, levels):
    draw = torch.Generator().manual_seed(seed)
    values = 2 * torch.randn(2, 3, 6, generator=draw, dtype=torch.float64)
    threshold = torch.rand(3, generator=draw, dtype=torch.float64) + 0.2
    rounded = values * levels / threshold.view(-1, 1) + 0.5
    values = torch.where((rounded - rounded.round()).abs() < 1e-6, values + 1e-3, values)  # no tie that rounding breaks
    state = NeuronState((0.5 * threshold).view(-1, 1).expand(2, 3, 6).clone())
    spikes = scan(Neuron(threshold=threshold), state, values.expand(levels, *values.shape))
    torch.testing.assert_close(spikes.mean(0), clip_floor_shift(values, levels, threshold), rtol=1e-12, atol=1e-12)


def trained(levels: int, network: type[nn.Module] = networks.Residual) -> nn.Module:
    model, images = networks.trained(network), networks.images(16)
    return with_qcfs(model, levels, fitting_thresholds(model, images, levels)).double().eval()


@pytest.mark.parametrize("levels", [2, 5])
def test_one_layer_converts_exactly(levels):
    """Behind one layer of neurons nothing arrives unevenly: the networks are equal."""
    draw = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    images = torch.randn(50, 4, generator=draw, dtype=torch.float64)
    with_qcfs(model, levels, fitting_thresholds(model, images, levels)).double()
    config = ConversionConfig(steps=levels, calibration="none", initial_potential="half")
    spiking = convert(model, images, config)
    torch.testing.assert_close(spiking(images), model(images).detach())
    torch.testing.assert_close(spiking.analog(images), model(images).detach())


@pytest.mark.parametrize("levels", [3, 8])
def test_bursts_bounded_on_both_sides_make_deep_networks_exact(levels):
    """With as many spikes in a step as it takes, the total is that of all charge at once, layer after layer."""
    model, images = trained(levels), networks.images(16)
    config = ConversionConfig(
        steps=levels, calibration="none", initial_potential="half", signed=True, burst=16, two_sided=True
    )
    spiking = convert(model, images, config)
    torch.testing.assert_close(spiking(images), model(images).detach())
    plain = convert(model, images, ConversionConfig(steps=levels, calibration="none", initial_potential="half"))
    assert float((plain(images) - model(images)).detach().abs().max()) > 0.01, (
        "neurons that fire once see uneven charge"
    )


def test_thresholds_fit_the_relu_network():
    model, images = networks.trained(networks.Plain), networks.images(16)
    expected = model(images)
    fitted = [(with_qcfs(networks.trained(networks.Plain), L, fitting_thresholds(model, images, L)).double(), L)
              for L in (2, 32)]  # fmt: skip
    errors = [float((quantised(images) - expected).detach().abs().mean()) for quantised, _ in fitted]
    assert errors[1] < errors[0] / 4


def test_learned_thresholds_fold_and_come_back():
    model = trained(4)
    graph, state = trace(model), model.state_dict()
    assert {name for name in state if name.endswith("threshold")} == {*graph.learned_thresholds}
    folded = fold(graph, state)
    norms = {
        f"{node.norm}.{ours}": state[f"{node.norm}.{own}"]
        for node in graph.affines
        if node.norm is not None
        for ours, own in {"gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var"}.items()
    }
    recovered = recover(graph, {**folded, **norms}, biases=False)
    for name in graph.learned_thresholds:
        assert torch.equal(recovered[name], state[name])


def test_a_negative_threshold_counts_as_the_smallest():
    layer = QCFS(4, -2.0)
    assert float(layer(torch.ones(1)).detach()) == pytest.approx(SMALLEST_THRESHOLD)


def test_a_shared_activation_is_refused():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.relu = nn.Linear(2, 2), nn.Linear(2, 2), QCFS(4, 1.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.relu(self.two(self.relu(self.one(x))))

    with pytest.raises(ConversionError, match="is called twice"):
        trace(Twice())
