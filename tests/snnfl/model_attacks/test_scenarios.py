"""The paper's two attacks against literal versions, and copies against what they copy."""

from __future__ import annotations

import networks
import pytest
import torch
from references import private_snn_attacks as literal

from snnfl import rng
from snnfl.config import PublishingConfig
from snnfl.conversion import fold, trace
from snnfl.model_attacks.class_images import algorithm_1
from snnfl.model_attacks.copies import Copy, MeanSpikes, Scaled, search_scales
from snnfl.model_attacks.learning import mean_outputs
from snnfl.model_attacks.registry import ModelAttackError
from snnfl.model_attacks.through_spikes import StraightThrough, algorithm_3, deconvolved
from snnfl.models import initialise
from snnfl.neurons import Neuron, unroll
from snnfl.private_snn import Bounds, PublishedNetwork, affine_parameters, convert

BOUNDS = Bounds(torch.full((1, 2, 1, 1), -1.0), torch.ones(1, 2, 1, 1))
STEPS = 7


def ann():
    model = networks.Plain().double().eval()
    initialise(model, rng.generator(3, "weights"))
    return model


def starts(count=3):
    return torch.rand((count, 2, 6, 6), generator=rng.generator(1, "starts"), dtype=torch.float64)


def published(leak=0.9) -> PublishedNetwork:
    graph = trace(ann())
    how = PublishingConfig(steps=STEPS, leak=leak)
    return convert(graph, fold(graph, ann().state_dict()), starts(), BOUNDS, how, rng.generator(2, "spikes"))


def copy_of(network: PublishedNetwork) -> Copy:
    return Copy(network.graph, affine_parameters(network.graph, network.parameters))


def test_attack_1_is_algorithm_1_on_the_copied_network() -> None:
    classes = torch.tensor([0, 2, 1])
    found = algorithm_1(copy_of(published()), classes, starts(), 9)
    for image, start, target in zip(found, starts(), classes.tolist(), strict=True):
        wanted = literal.algorithm_1(ann(), target, start, iterations=9)
        torch.testing.assert_close(image, wanted, rtol=1e-9, atol=1e-9)


def test_attack_2_is_algorithm_3() -> None:
    network = published()
    weights = {name: array for name, array in network.parameters.items() if name.endswith(("weight", "bias"))}
    found = algorithm_3(network, torch.tensor([2]), starts(1), 4, rng.generator(5, "coding"))
    wanted = literal.algorithm_3(
        weights, 2, starts(1)[0], iterations=4, steps=STEPS, leak=0.9,
        thresholds=[network.parameters[f"{layer}.threshold"] for layer in ("relu", "relu_hidden")],
        generator=rng.generator(5, "coding"),
    )  # fmt: skip
    torch.testing.assert_close(found[0], wanted, rtol=1e-9, atol=1e-9)
    assert not torch.equal(found, starts(1))


def test_a_network_whose_image_flows_elsewhere_is_refused() -> None:
    graph = trace(networks.Residual().eval())
    from dataclasses import replace

    nodes = (graph.nodes[1], *graph.nodes[2:])
    network = replace(published(), graph=replace(graph, nodes=nodes))
    with pytest.raises(ModelAttackError, match="more than one convolution"):
        algorithm_3(network, torch.tensor([0]), starts(1), 1, rng.generator(0, "coding"))


def test_a_deconvolution_is_the_layers_transpose() -> None:
    network = published()
    layer, weight = network.graph.affines[0], network.parameters["conv.weight"]
    gradient = torch.rand((3, 4, 6, 6), generator=rng.generator(4, "gradient"), dtype=torch.float64)
    wanted = torch.nn.functional.conv_transpose2d(gradient, weight, padding=1)
    torch.testing.assert_close(deconvolved(layer, weight, gradient, torch.Size((3, 2, 6, 6))), wanted)


def test_a_copy_is_the_ann() -> None:
    torch.testing.assert_close(copy_of(published())(starts()), ann()(starts()))


def test_mean_spikes_without_a_leak_are_what_neurons_give_to_one_spike() -> None:
    current = torch.linspace(-1, 3, 41, dtype=torch.float64)[None]
    threshold, steps = torch.tensor([1.5], dtype=torch.float64), 200
    spikes = unroll(Neuron(threshold=threshold), current, steps).spikes.mean(0)
    torch.testing.assert_close(MeanSpikes(threshold)(current), spikes, rtol=0, atol=1.5 / steps + 1e-9)


def test_mean_spikes_with_a_leak_follow_neurons() -> None:
    current = torch.linspace(-1, 3, 41, dtype=torch.float64)[None]
    threshold, leak = torch.tensor([1.0], dtype=torch.float64), torch.tensor([0.9], dtype=torch.float64)
    noise = torch.randn((2000, 1, 41), generator=rng.generator(0, "noise"), dtype=torch.float64) * 0.3
    spikes = unroll(Neuron(threshold=threshold, leak=0.9), current + noise).spikes.mean(0)
    error = (MeanSpikes(threshold, leak)(current) - spikes).abs()
    assert float(error.mean()) < 0.03
    assert float((MeanSpikes(threshold)(current) - spikes).abs().mean()) > 1.5 * float(error.mean())


def test_mean_outputs_are_those_of_a_run_of_the_whole_network() -> None:
    network = published(leak=1.0)
    found = mean_outputs(network, starts(), rng.generator(6, "coding"))
    weights = network.parameters
    rates = found["relu_hidden"] @ weights["head.weight"].T + weights["head.bias"]
    torch.testing.assert_close(rates, network(starts(), rng.generator(6, "coding")))
    assert set(found) == {"relu", "relu_hidden"}


def test_straight_through_gives_what_the_network_gives_and_a_gradient() -> None:
    network = published()
    images = starts().requires_grad_()
    found = StraightThrough(network, rng.generator(6, "coding"))(images)
    torch.testing.assert_close(found, network(starts(), rng.generator(6, "coding")))
    (gradient,) = torch.autograd.grad(found.sum(), images)
    assert float(gradient.abs().max()) > 0


def test_scales_that_were_multiplied_in_are_found_again() -> None:
    network = published()
    layers = {node.name: Scaled(torch.ones(1, dtype=torch.float64)) for node in network.graph.spikes}
    arrays = affine_parameters(network.graph, network.parameters)
    hidden = {**arrays, "conv.weight": arrays["conv.weight"] * 8, "conv.bias": arrays["conv.bias"] * 8}
    copy, wanted = Copy(network.graph, hidden, layers), ann()(starts())

    def score() -> float:
        with torch.no_grad():
            return -float((copy(starts()) - wanted).square().mean())

    assert score() < -1e-3
    search_scales(list(layers.values()), score)
    torch.testing.assert_close(copy(starts()), wanted)
