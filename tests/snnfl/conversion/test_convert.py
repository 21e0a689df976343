from __future__ import annotations

import importlib

import networks
import pytest
import torch
from torch import Tensor, nn

from snnfl.conversion import ConversionConfig, convert, fold, mmse_threshold, trace
from snnfl.spiking import Spike

convert_module = importlib.import_module("snnfl.conversion.convert")
NETWORKS = [networks.Plain, networks.Residual, networks.Joined]


def literal(model: nn.Module, images: Tensor, config: ConversionConfig) -> dict[str, Tensor]:
    """Algorithm 1 as it stands: for every layer, rerun the whole network, step by step (O(L^2 T))."""
    graph = trace(model)
    original = fold(graph, model.state_dict())
    parameters = dict(original)

    def run(upto: str, *, spiking: bool) -> Tensor:
        """Return the mean over time of a layer's output, or the activation of the ANN."""
        total, potentials = 0, {}
        for _ in range(config.steps if spiking else 1):
            values = {graph.input: images}
            for node in graph.nodes:
                inputs = [values[name] for name in node.inputs]
                if not isinstance(node, Spike):
                    values[node.name] = node.apply(inputs, parameters if spiking else original)
                elif not spiking:
                    values[node.name] = inputs[0].relu()
                else:
                    level = parameters[f"{node.name}.threshold"].view(-1, *[1] * (inputs[0].dim() - 2))
                    start = level * (0.5 if config.initial_potential == "half" else 0) + torch.zeros_like(inputs[0])
                    v = potentials.get(node.name, start) + inputs[0]
                    spikes = (v >= level) * level
                    potentials[node.name] = v - spikes
                    values[node.name] = spikes
                if node.name == upto:
                    break
            total = total + values[upto]
        return total / (config.steps if spiking else 1)

    def channel_mean(value: Tensor) -> Tensor:
        return value.transpose(0, 1).flatten(1).mean(1)

    for node in [*graph.spikes, graph.by_name[graph.output]]:
        activation = run(node.name, spiking=False)
        source = node.name
        if isinstance(node, Spike):
            source = node.inputs[0]
            layerwise = config.thresholds == "layer_mmse"
            rows = activation.flatten()[None] if layerwise else activation.transpose(0, 1).flatten(1)
            parameters[f"{node.name}.threshold"] = mmse_threshold(rows, config.steps)
        site = graph.calibration_site(source)
        if config.calibration == "bias" and site is not None:
            error = channel_mean(activation) - channel_mean(run(node.name, spiking=True))
            parameters[f"{site.name}.bias"] = parameters[f"{site.name}.bias"] + error
    return parameters


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("calibration", ["none", "bias"])
@pytest.mark.parametrize(("thresholds", "initial"), [("layer_mmse", "zero"), ("channel_mmse", "half")])
def test_conversion_equals_the_literal_algorithm(network, calibration, thresholds, initial):
    model, images = networks.trained(network), networks.images(7)
    config = ConversionConfig(steps=12, thresholds=thresholds, calibration=calibration, initial_potential=initial)
    expected = literal(model, images, config)
    spiking = convert(model, images, config)
    assert spiking.parameters.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(spiking.parameters[name], tensor, rtol=1e-10, atol=1e-12, msg=name)
    folded = fold(spiking.graph, model.state_dict())
    moved = [name for name, tensor in folded.items() if not torch.equal(tensor, spiking.parameters[name])]
    assert bool(moved) == (calibration == "bias")
    assert all(name.endswith(".bias") for name in moved)


def test_storing_currents_and_chunks_change_nothing(monkeypatch):
    model, images = networks.trained(networks.Residual), networks.images(7)
    config = ConversionConfig(steps=12)
    expected = convert(model, images, config).parameters
    for stored, chunk in ((0, 2**30), (0, 1), (2**30, 1), (2**30, 10_000)):
        monkeypatch.setattr(convert_module, "STORED_CURRENT_BYTES", stored)
        monkeypatch.setattr(convert_module, "CHUNK_BYTES", chunk)
        found = convert(model, images, config).parameters
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=1e-12)


def test_calibration_reduces_the_conversion_error():
    model, images = networks.trained(networks.Residual), networks.images(64)
    errors = {}
    for calibration in ("none", "bias"):
        spiking = convert(model, images, ConversionConfig(steps=8, calibration=calibration))
        errors[calibration] = (spiking.simulate(images, steps=8)[8] - model(images)).abs().mean().item()
    assert errors["bias"] < 0.9 * errors["none"]


def test_calibration_makes_the_mean_output_exact():
    """The readout is calibrated last, so on the calibration images the mean logits are the ANN's."""
    model, images = networks.trained(networks.Residual), networks.images(16)
    spiking = convert(model, images, ConversionConfig(steps=8))
    torch.testing.assert_close(spiking.simulate(images, steps=8)[8].mean(0), model(images).mean(0))


def test_the_model_is_left_alone():
    model, images = networks.trained(networks.Residual).train(), networks.images(8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    spiking = convert(model, images, ConversionConfig(steps=4))
    for tensor in spiking.parameters.values():
        tensor.add_(1)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("images", "words"),
    [(torch.empty(0, 2, 6, 6), "no calibration images"), (torch.full((2, 2, 6, 6), float("nan")), "NaN or infinity")],
)
def test_a_wrong_calibration_batch_is_an_error(images, words):
    with pytest.raises(ValueError, match=words):
        convert(networks.trained(networks.Plain), images.double(), ConversionConfig())


def test_a_layer_that_is_silent_on_the_calibration_images_converts():
    model = networks.trained(networks.Plain)
    with torch.no_grad():
        model.conv.bias[:] = -100
    spiking = convert(model, networks.images(4), ConversionConfig(steps=4))
    assert spiking.thresholds["relu"].tolist() == [1.0]
    assert torch.isfinite(spiking.simulate(networks.images(4), steps=4)[4]).all()
