from __future__ import annotations

import importlib
from collections import OrderedDict
from dataclasses import replace

import networks
import pytest
import stepwise
import torch
from torch import Tensor, nn

from snnfl.config import ConfigError
from snnfl.conversion import ConversionConfig, convert, convert_state, fold, mmse_threshold, trace
from snnfl.conversion.calibration import TIME_BIAS_CORRECTIONS, TIME_BIAS_RATE
from snnfl.spiking import Spike, SpikingGraph, SpikingNetwork
from snnfl.spiking.graph import Parameters
from snnfl.spiking.values import channel_counts

memory_module = importlib.import_module("snnfl.conversion.memory")
NETWORKS = [
    networks.Plain,
    networks.Residual,
    networks.Joined,
    networks.Dense,
    networks.PreActivation,
    networks.MaxPooled,
    networks.Gated,
]


def activation(graph: SpikingGraph, parameters: Parameters, images: Tensor, upto: str) -> Tensor:
    values = {graph.input: images}
    for node in graph.nodes:
        inputs = [values[name] for name in node.inputs]
        spikes = isinstance(node, Spike)
        values[node.name] = node.analog(inputs[0], parameters) if spikes else node.apply(inputs, parameters)
    return values[upto]


def channel_mean(value: Tensor) -> Tensor:
    return value.transpose(0, 1).flatten(1).mean(1)


def literal(model: nn.Module, images: Tensor, config: ConversionConfig) -> dict[str, Tensor]:
    """Algorithm 1 as it stands: for every layer, rerun all before it, step by step (O(L^2 T))."""
    graph = trace(model, max_pooling="gated")
    original = fold(graph, model.state_dict())
    parameters, channels = dict(original), channel_counts(graph, original, images)
    length = config.calibration_length
    first = length // 2 if config.readout == "second_half" else 0

    def spikes(name: str, steps: int = length, currents: Tensor | None = None) -> Tensor:
        network = replace(SpikingNetwork.configured(graph, parameters, config), correction="none")
        return stepwise.outputs(network, images, steps, upto=name, total=length, currents=currents)

    for node in [*graph.spikes, graph.by_name[graph.output]]:
        target = activation(graph, original, images, node.name)
        source = node.name
        if isinstance(node, Spike):
            source = node.inputs[0]
            rows = target.transpose(0, 1).flatten(1) if config.thresholds == "channel_mmse" else target.flatten()[None]
            silent = rows.amax(1) == 0
            parameters[f"{node.name}.threshold"] = level = {
                "layer_mmse": lambda rows: mmse_threshold(rows, length),
                "channel_mmse": lambda rows: mmse_threshold(rows, length),
                "layer_max": lambda rows: rows.amax(1),
                "percentile": lambda rows: rows.quantile(config.percentile / 100, dim=1),
            }[config.thresholds](rows)
            level[silent] = min(1.0, node.ceiling or 1.0) if silent.all() else level[~silent].max()
        site = graph.calibration_site(source, channels)
        if config.calibration in ("bias", "bias_potential") and site is not None:
            error = channel_mean(target) - channel_mean(spikes(node.name)[first:].mean(0))
            parameters[f"{site.name}.bias"] = parameters[f"{site.name}.bias"] + error
        if config.calibration in ("potential", "bias_potential") and isinstance(node, Spike):
            error = channel_mean(target) - channel_mean(spikes(node.name)[first:].mean(0))
            parameters[f"{node.name}.potential"] = length * error
        if config.calibration == "time_bias" and isinstance(node, Spike):
            rows = torch.zeros(length, target.shape[1], dtype=target.dtype)
            parameters[f"{node.name}.time_bias"] = rows
            currents = spikes(node.inputs[0])  # what stands before the layer doesn't change with its rows
            for step in range(length):
                for _ in range(TIME_BIAS_CORRECTIONS):
                    fired = spikes(node.name, step + 1, currents)[step]
                    rows[step] += TIME_BIAS_RATE * (channel_mean(target) - channel_mean(fired))
    return parameters


def assert_equal_to_the_literal_algorithm(network: type[nn.Module], config: ConversionConfig) -> None:
    model, images = networks.trained(network), networks.images(3)
    expected = literal(model, images, config)
    spiking = convert_state(trace(model, max_pooling="gated"), model.state_dict(), images, config)
    assert spiking.parameters.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(spiking.parameters[name], tensor, rtol=1e-10, atol=1e-12, msg=name)
    # And the network that comes out simulates as the literal run does.
    length = config.calibration_length
    network = SpikingNetwork.configured(spiking.graph, expected, config)
    logits, literally = spiking.simulate(images, steps=length), stepwise.logits(network, images, length)
    torch.testing.assert_close(logits[length], literally[length], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("calibration", ["none", "bias", "potential", "bias_potential"])
@pytest.mark.parametrize(("thresholds", "initial"), [("layer_mmse", "zero"), ("channel_mmse", "half")])
def test_conversion_equals_the_literal_algorithm(network, calibration, thresholds, initial):
    assert_equal_to_the_literal_algorithm(
        network,
        ConversionConfig(steps=12, thresholds=thresholds, calibration=calibration, initial_potential=initial),
    )


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("calibration", ["none", "bias", "time_bias"])
@pytest.mark.parametrize("steps", [1, 5, 12, 19])
def test_what_is_read_late_equals_the_literal_algorithm(network, calibration, steps):
    config = ConversionConfig(
        steps=steps,
        thresholds="channel_mmse",
        calibration=calibration,
        initial_potential="half",
        readout="second_half",
    )
    assert_equal_to_the_literal_algorithm(network, config)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    "options",
    [
        {"signed": True},
        {"signed": True, "burst": 2, "readout": "second_half"},
        {"burst": 3, "calibration": "bias_potential"},
        {"signed": True, "burst": 3, "two_sided": True, "calibration": "none", "initial_potential": "drip"},
        {"correction": "residual"},
        {"correction": "offset", "correction_steps": 3, "readout": "second_half"},
        {"correction": "offset", "signed": True, "burst": 2},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_neurons_for_few_steps_equal_the_literal_algorithm(network, options):
    preset = {"steps": 9, "thresholds": "channel_mmse", "initial_potential": "half"}
    assert_equal_to_the_literal_algorithm(network, ConversionConfig(**{**preset, **options}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"two_sided": True}, "two_sided=true: without bursts"),
        ({"signed": True, "calibration": "time_bias"}, "calibration=time_bias: is defined for neurons that fire once"),
        ({"correction_steps": 4}, "correction_steps=4: correction=none has none"),
        ({"burst": 17}, "burst=17"),
    ],
)
def test_options_for_few_steps_without_effect_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        ConversionConfig(**options)


@pytest.mark.parametrize("calibration", ["potential", "bias_potential"])
def test_potentials_of_steps_that_are_not_read_are_refused(calibration):
    with pytest.raises(ConfigError, match=f"calibration={calibration} changes the first steps alone"):
        ConversionConfig(calibration=calibration, readout="second_half")


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("initial", ["half", "drip"])
def test_biases_in_time_equal_the_literal_algorithm(network, initial):
    config = ConversionConfig(steps=5, thresholds="channel_mmse", calibration="time_bias", initial_potential=initial)
    assert_equal_to_the_literal_algorithm(network, config)


@pytest.mark.parametrize("thresholds", ["layer_max", "percentile"])
@pytest.mark.parametrize("calibration", ["bias", "bias_potential"])
@pytest.mark.parametrize("network", [networks.Residual, networks.Dense])
def test_the_other_thresholds_and_the_drip_equal_the_literal_algorithm(network, calibration, thresholds):
    config = ConversionConfig(
        steps=99,
        calibration_steps=9,
        thresholds=thresholds,
        percentile=90,
        calibration=calibration,
        initial_potential="drip",
    )
    assert_equal_to_the_literal_algorithm(network, config)


@pytest.mark.parametrize("calibration", ["bias", "potential", "time_bias"])
@pytest.mark.parametrize(("steps", "count"), [(1, 1), (1, 7), (9, 1)])
def test_one_step_and_one_image_are_enough(calibration, steps, count):
    model, images = networks.trained(networks.Residual), networks.images(count)
    config = ConversionConfig(steps=steps, calibration=calibration)
    expected = literal(model, images, config)
    found = convert(model, images, config).parameters
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("calibration", ["none", "bias", "potential", "time_bias"])
def test_only_what_calibrates_moves(calibration):
    model = networks.trained(networks.Residual)
    spiking = convert(model, networks.images(7), ConversionConfig(steps=6, calibration=calibration))
    folded = fold(spiking.graph, model.state_dict())
    moved = {name for name, tensor in folded.items() if not torch.equal(tensor, spiking.parameters[name])}
    added = {name.rpartition(".")[2] for name in spiking.parameters.keys() - folded.keys()} - {"threshold"}
    assert {name.rpartition(".")[2] for name in moved} | added == {calibration} - {"none"}


@pytest.mark.parametrize("calibration", ["bias", "bias_potential", "time_bias"])
@pytest.mark.parametrize("network", [networks.Residual, networks.Joined, networks.PreActivation, networks.Gated])
def test_chunks_and_memory_change_nothing(network, calibration, monkeypatch):
    model, images = networks.trained(network), networks.images(7)
    config = ConversionConfig(steps=13, calibration=calibration)
    expected = convert(model, images, config).parameters
    with pytest.raises(ValueError, match="needs at least") as error:
        convert(model, images, ConversionConfig(steps=13, calibration=calibration, max_bytes=1))
    smallest = int(str(error.value).split("at least ")[1].split()[0])
    for extra, chunk in ((0, 2**30), (1_000, 2**30), (30_000, 2**30), (90_000, 1), (10**9, 1), (10**9, 4_000)):
        monkeypatch.setattr(memory_module, "CHUNK_BYTES", chunk)
        limited = ConversionConfig(steps=13, calibration=calibration, max_bytes=smallest + extra)
        found = convert(model, images, limited).parameters
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("calibration", ["bias", "potential", "time_bias"])
def test_calibration_reduces_the_conversion_error(calibration):
    model, images = networks.trained(networks.Residual), networks.images(64)
    errors = {}
    for kind in ("none", calibration):
        spiking = convert(model, images, ConversionConfig(steps=8, calibration=kind))
        errors[kind] = (spiking.simulate(images, steps=8)[8] - model(images)).abs().mean().item()
    assert errors[calibration] < 0.9 * errors["none"], errors


def test_calibration_makes_the_mean_output_exact():
    """The readout is calibrated last, so on the calibration images the mean logits are the ANN's."""
    model, images = networks.trained(networks.Residual), networks.images(16)
    spiking = convert(model, images, ConversionConfig(steps=8))
    torch.testing.assert_close(spiking.simulate(images, steps=8)[8].mean(0), model(images).mean(0))


class Deep(nn.Sequential):
    """Ten convolutions: deep enough that the first steps of the last ones tell little."""

    def __init__(self):
        layers = [layer for _ in range(9) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())]
        stem = (nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        super().__init__(*stem, *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def test_the_fast_preset_is_closer_to_the_ann_in_few_steps():
    model, images = networks.trained(Deep), networks.images(64)
    late = ConversionConfig.fast(32)
    configs = {"paper": ConversionConfig(steps=32), "all": replace(late, readout="all"), "fast": late}
    errors = {
        name: (convert(model, images, config).simulate(images, steps=32)[32] - model(images)).abs().mean().item()
        for name, config in configs.items()
    }
    assert errors["fast"] < 0.9 * errors["all"], errors
    assert errors["all"] < 0.9 * errors["paper"], errors


def test_a_shallow_network_has_no_use_for_a_late_readout():
    model, images = networks.trained(networks.Plain), networks.images(64)
    late = ConversionConfig.fast(32)
    errors = {
        config.readout: (convert(model, images, config).simulate(images, steps=32)[32] - model(images))
        .abs()
        .mean()
        .item()
        for config in (replace(late, readout="all"), late)
    }
    assert errors["all"] < errors["second_half"], errors


def test_the_model_is_left_alone():
    model, images = networks.trained(networks.Residual).train(), networks.images(8)
    model(images).sum().backward()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    seen = images.clone()
    spiking = convert(model, images, ConversionConfig(steps=4))
    for tensor in spiking.parameters.values():
        tensor.add_(1)
    assert model.training
    assert torch.equal(images, seen)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad
        assert torch.equal(parameter.grad, gradients[name])


GOOD = networks.images(2)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (GOOD[:0], ["no calibration images"]),
        (torch.full_like(GOOD, float("nan")), ["NaN or infinity"]),
        (GOOD[:, :1], ["[2, 1, 6, 6]", "conv1"]),
        (GOOD[0], ["[2, 6, 6]", "conv1", "4 dimensions"]),
        (GOOD[..., :4, :4], ["[2, 2, 4, 4]", "hidden"]),
        (GOOD.float(), ["torch.float32", "torch.float64"]),
        ((GOOD * 255).to(torch.uint8), ["torch.uint8", "torch.float64"]),
        (GOOD.to("meta"), ["meta", "cpu"]),
    ],
)
def test_a_wrong_calibration_batch_is_an_error(images, words):
    layers = [("conv1", nn.Conv2d(2, 4, 3, padding=1)), ("relu1", nn.ReLU()), ("flatten", nn.Flatten())]
    model = nn.Sequential(OrderedDict([*layers, ("hidden", nn.Linear(4 * 36, 3))])).double()
    with pytest.raises(ValueError, match=r"^.*$") as error:
        convert(model, images, ConversionConfig())
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"thresholds": "chanel_mmse"}, "thresholds=chanel_mmse: expected one of layer_mmse, .*did you mean 'chann"),
        ({"calibration": "Bias"}, "calibration=Bias: expected one of none, bias, .*did you mean 'bias'"),
        ({"initial_potential": "full"}, "initial_potential=full: expected one of zero, half, drip"),
        ({"max_pooling": "mean"}, "max_pooling=mean: expected one of gated, average"),
        ({"candidates": 120}, "candidates=120: expected at most 99"),
        ({"percentile": 0}, "percentile=0: expected more than 0"),
        ({"percentile": 200.0}, "percentile=200.0: expected at most 100"),
        ({"percentile": float("nan")}, "percentile=nan: expected a finite number"),
        ({"steps": 0}, "steps=0: expected at least 1"),
        ({"steps": 2.5}, "steps=2.5: expected a whole number"),
        ({"steps": True}, "steps=True: expected a whole number"),
        ({"calibration_steps": 0}, "calibration_steps=0: expected at least 1"),
        ({"max_bytes": None}, "max_bytes=None: expected a whole number"),
    ],
)
def test_an_option_out_of_its_range_is_an_error(options, words):
    with pytest.raises(ConfigError, match=rf"^{words}"):
        ConversionConfig(**options)


def test_a_layer_that_is_silent_on_the_calibration_images_converts():
    model = networks.trained(networks.Plain)
    with torch.no_grad():
        model.conv.bias[:] = -100
    for thresholds in ("layer_mmse", "channel_mmse", "layer_max", "percentile"):
        spiking = convert(model, networks.images(4), ConversionConfig(steps=4, thresholds=thresholds))
        assert set(spiking.thresholds["relu"].tolist()) == {1.0}
        assert torch.isfinite(spiking.simulate(networks.images(4), steps=4)[4]).all()


@pytest.mark.parametrize("thresholds", ["layer_mmse", "channel_mmse", "layer_max", "percentile"])
@pytest.mark.parametrize("ceiling", [0.5, 6.0])
def test_no_threshold_exceeds_the_ceiling_of_its_layer(thresholds, ceiling):
    for bias in ([-100.0, 0, 0], [-100.0] * 3):
        model = nn.Sequential(nn.Linear(4, 3), nn.Hardtanh(0, ceiling), nn.Linear(3, 2)).double()
        with torch.no_grad():
            model[0].bias.add_(torch.tensor(bias, dtype=torch.float64))
        images = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        (levels,) = convert(model, images, ConversionConfig(steps=4, thresholds=thresholds)).thresholds.values()
        assert (levels > 0).all()
        assert (levels <= ceiling).all()


def test_a_channel_that_is_silent_is_calibrated_beside_others():
    model = networks.trained(networks.Plain)
    with torch.no_grad():
        model.conv.bias[0] = -100
    spiking = convert(model, networks.images(4), ConversionConfig.fast(4))
    silent, *others = spiking.thresholds["relu"].tolist()
    assert silent == max(others) != 1
    assert spiking.parameters["conv.bias"][0].item() == pytest.approx(-100, abs=1e-9)
    assert torch.isfinite(spiking.simulate(networks.images(4), steps=4)[4]).all()


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 1e308])
def test_a_model_that_computes_no_number_is_named_with_its_layer(weight):
    model = networks.trained(networks.Plain)
    with torch.no_grad():
        model.hidden.weight[0] = weight
    with pytest.raises(ValueError, match=r"^relu_hidden: activations .* weights are finite$"):
        convert(model, networks.images(4), ConversionConfig(steps=4))


def test_max_pooling_is_gated_or_averaged():
    model, images = networks.trained(networks.MaxPooled), networks.images(4)
    for choice in ("gated", "average"):
        spiking = convert(model, images, ConversionConfig(steps=4, max_pooling=choice))
        kinds = {type(node).__name__ for node in spiking.graph.nodes}
        assert ("MaxPool" in kinds) == (choice == "gated")
        assert torch.isfinite(spiking.simulate(images, steps=4)[4]).all()
    assert convert(model, images, ConversionConfig(steps=4)).graph.maxima
