"""Thresholds of published networks against a literal search, and by the conversion of S-clients."""

from __future__ import annotations

import networks
import pytest
import torch
from references import private_snn as literal
from torch import Tensor
from torch.nn import functional

from snnfl.config import ConversionConfig, PublishingConfig
from snnfl.conversion import convert as convert_client
from snnfl.conversion import fold, trace
from snnfl.models import initialise
from snnfl.private_snn import Bounds, affine_parameters, convert, spike_counts, unfolded
from snnfl.private_snn.conversion import IMAGES_AT_ONCE
from snnfl.rng import generator

BOUNDS = Bounds(torch.full((1, 2, 1, 1), -0.5), torch.full((1, 2, 1, 1), 1.5))


def ann(kind=networks.Plain):
    model = kind().double().eval()
    initialise(model, generator(3, "weights"))
    return model


def images(count: int = 6) -> Tensor:
    return torch.rand((count, 2, 6, 6), generator=generator(1, "images"), dtype=torch.float64) * 2 - 0.5


def converted(config: PublishingConfig, model=None):
    model = ann() if model is None else model
    graph = trace(model)
    return convert(graph, fold(graph, model.state_dict()), images(), BOUNDS, config, generator(2, "spikes"))


@pytest.mark.parametrize("leak", [1.0, 0.9])
def test_thresholds_are_the_largest_currents_of_a_literal_simulation(leak: float) -> None:
    steps = 11
    network, weights, pictures = converted(PublishingConfig(steps=steps, leak=leak)), ann().state_dict(), images()
    draws, currents = generator(2, "spikes"), []
    assert network.input_scale == 1.5
    for _ in range(steps):
        spikes = literal.poisson_step(pictures / 1.5, draws) * 1.5
        currents.append(functional.conv2d(spikes, weights["conv.weight"], weights["conv.bias"], padding=1))
    first = literal.threshold(currents)
    assert float(network.parameters["relu.threshold"]) == pytest.approx(first, rel=1e-12)
    u, currents = torch.zeros(6, 4, 6, 6, dtype=torch.float64), []
    for _ in range(steps):  # with further draws
        spikes = literal.poisson_step(pictures / 1.5, draws) * 1.5
        u = leak * u + functional.conv2d(spikes, weights["conv.weight"], weights["conv.bias"], padding=1)
        fired = (u >= first).double()
        u = u - fired * first
        pooled = functional.avg_pool2d(fired * first, 2).flatten(1)
        currents.append(functional.linear(pooled, weights["hidden.weight"], weights["hidden.bias"]))
    assert float(network.parameters["relu_hidden.threshold"]) == pytest.approx(literal.threshold(currents), rel=1e-12)
    assert float(network.parameters["relu.leak"]) == leak


def test_weights_are_the_anns() -> None:
    network, graph = converted(PublishingConfig(steps=5)), trace(ann())
    ours, theirs = affine_parameters(graph, network.parameters), fold(graph, ann().state_dict())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", [networks.Plain, networks.Residual])
def test_with_mmse_it_is_the_network_that_clients_convert(kind) -> None:
    model, config = ann(kind), PublishingConfig(steps=16, thresholds="mmse", encoding="direct")
    network = converted(config, model)
    how = ConversionConfig(steps=16, thresholds="channel_mmse", initial_potential="half")
    expected = convert_client(model, images(), how)
    torch.testing.assert_close(network(images()), expected(images()))


def test_many_steps_approach_the_ann() -> None:
    model = ann()
    expected = model(images()).detach()
    few, many = (
        float((converted(PublishingConfig(steps=steps))(images(), generator(5, "spikes")) - expected).abs().mean())
        for steps in (20, 1000)
    )
    assert many < 0.3 * few
    assert many < 0.1 * float(expected.std())


def test_unfolding_is_the_inverse_of_folding() -> None:
    model = ann(networks.Residual)
    graph = trace(model)
    folded = fold(graph, model.state_dict())
    again = fold(*unfolded(graph, folded))
    assert again.keys() == folded.keys()
    assert all(torch.equal(again[name], folded[name]) for name in folded)


def test_spikes_are_counted_as_a_recording_shows_them() -> None:
    config = PublishingConfig(steps=9, thresholds="mmse", encoding="direct")
    network, pictures = converted(config), images(IMAGES_AT_ONCE + 2)
    how = ConversionConfig(steps=9, thresholds="channel_mmse", initial_potential="half")
    recording = convert_client(ann(), images(), how).record(pictures)
    counts, shapes = spike_counts(network, pictures, None)
    assert set(counts) == {"relu", "relu_hidden"}
    for layer, count in counts.items():
        expected = (recording.spikes[layer] != 0).double().sum(0).mean(0, keepdim=True)
        torch.testing.assert_close(count, expected)
        assert shapes[layer] == count.shape


def test_spikes_of_the_input_are_counted_where_it_is_spikes() -> None:
    counts, _ = spike_counts(converted(PublishingConfig(steps=400)), images(), generator(7, "spikes"))
    expected = 400 * images().div(1.5).abs().mean(0, keepdim=True)
    torch.testing.assert_close(counts["input"], expected, rtol=0.2, atol=10.0)
