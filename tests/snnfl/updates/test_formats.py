"""What each kind of update holds, and that a server reads what a client wrote."""

from __future__ import annotations

import pickle

import pytest
import torch

from snnfl.config import ConversionConfig, ModelConfig, compose
from snnfl.conversion import convert
from snnfl.models import SMALLEST_THRESHOLD, build_model
from snnfl.models.registry import MODELS
from snnfl.spiking import trace
from snnfl.training import exchangeable, is_statistic, private_biases
from snnfl.updates import ArraySpec, Converted, Plain, Unsent, ann_specs
from snnfl.workspace import Workspace


@pytest.mark.parametrize("name", ["lenet5", "resnet20", "mlp"])
@pytest.mark.parametrize(
    ("thresholds", "calibration"),
    [
        ("layer_mmse", "bias"),
        ("channel_mmse", "bias"),
        ("layer_mmse", "potential"),
        ("channel_mmse", "bias_potential"),
        ("layer_mmse", "time_bias"),
    ],
)
def test_converted_specs_describe_what_conversion_yields(name: str, thresholds: str, calibration: str) -> None:
    config = ModelConfig(name=name, conv_bias=True)
    model = build_model(config, input_shape=(1, 8, 8), classes=5, generator=torch.Generator().manual_seed(0))
    graph, state = trace(model), exchangeable(model)
    conversion = ConversionConfig(steps=4, thresholds=thresholds, calibration=calibration, candidates=5)
    network = convert(model, torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)), conversion)
    specs = Converted(graph, state, conversion).specs
    norms = {layer.norm: len(network.parameters[f"{layer.name}.weight"]) for layer in graph.affines if layer.norm}
    expected = {key: tuple(array.shape) for key, array in network.parameters.items()}
    expected |= {f"{norm}.{short}": (n,) for norm, n in norms.items() for short in ("gamma", "beta", "mean", "var")}
    assert {key: spec.shape for key, spec in specs.items()} == expected
    assert {key for key, spec in specs.items() if spec.values == "positive"} == {
        f"{spike.name}.threshold" for spike in graph.spikes
    }
    assert {key for key, spec in specs.items() if spec.values == "non-negative"} == {f"{norm}.var" for norm in norms}


def test_ann_specs_describe_the_exchanged_arrays() -> None:
    model = build_model(ModelConfig(), input_shape=(1, 8, 8), classes=5, generator=torch.Generator())
    specs = ann_specs(exchangeable(model))
    assert {name: spec.shape for name, spec in specs.items()} == {
        name: tuple(array.shape) for name, array in exchangeable(model).items()
    }
    assert {name for name, spec in specs.items() if spec.values == "non-negative"} == {
        "norm1.running_var",
        "norm2.running_var",
    }


def work_of(*options: str) -> Workspace:
    return Workspace(compose(None, ["data.clients=4", "conversion.steps=4", *options]))


def moved(work: Workspace, seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: array + 0.1 * torch.rand(array.shape, generator=draw) for name, array in work.initial_state.items()}


FORMATS = {
    "plain": ["strategy.spiking=false"],
    "native": [
        "strategy.spiking=false",
        "model.neuron=rlif",
        "model.time_steps=2",
        "model.beta=0.5",
        "model.learn_beta=true",
        "model.learn_threshold=true",
    ],
    "converted": ["conversion.calibration=none"],
    "converted, biases back": ["conversion.calibration=none", "strategy.bias_back=true", "model.conv_bias=true"],
    "none": ["strategy.name=solo", "strategy.spiking=false"],
}


@pytest.mark.parametrize("name", sorted(set(MODELS.names()) - {"vgg16"}))
@pytest.mark.parametrize("conv_bias", [True, False])
def test_what_stays_on_an_s_client_are_the_biases_of_its_layers(name: str, conv_bias: bool) -> None:
    config = ModelConfig(name=name, conv_bias=conv_bias)
    model = build_model(config, input_shape=(1, 8, 8), classes=5, generator=torch.Generator().manual_seed(0))
    format = Converted(trace(model), exchangeable(model), ConversionConfig())
    assert sorted(format.private_names) == sorted(private_biases(model))
    assert format.sent_specs.keys() == exchangeable(model).keys() - set(private_biases(model))
    assert Converted(trace(model), exchangeable(model), ConversionConfig(), bias_back=True).private_names == ()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_server_decodes_what_a_client_encoded(kind: str) -> None:
    work = work_of(*FORMATS[kind])
    format, state, sent = work.format, moved(work, 0), work.initial_state
    update = format.encode(state, work.dataset.normalise(work.dataset.train_images[:8]))
    assert {name: spec.mistake(update[name]) for name, spec in format.specs.items()} == dict.fromkeys(format.specs)
    assert update.keys() == format.specs.keys()
    decoded = format.decode(update, sent)
    assert decoded.keys() == format.sent_specs.keys()
    for name, array in decoded.items():
        torch.testing.assert_close(array, state[name], rtol=1e-4, atol=1e-5)
    statistics = set(filter(is_statistic, state)) if format.specs else set()
    assert format.statistic_names.keys() == statistics
    for own, name in format.statistic_names.items():
        assert torch.equal(update[name], state[own])
    assert set(format.threshold_names) == {name for name in format.specs if name.endswith(".threshold")}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_sum_of_updates_is_enough_where_decoding_is_linear(kind: str) -> None:
    work = work_of(*FORMATS[kind])
    images, sent = work.dataset.normalise(work.dataset.train_images[:8]), work.initial_state
    updates = [work.format.encode(moved(work, seed), images) for seed in (0, 1)]
    mean = {name: (updates[0][name] + updates[1][name]) / 2 for name in updates[0]}
    apart = [work.format.decode(update, sent) for update in updates]
    off = [
        float((array - (apart[0][name] + apart[1][name]) / 2).abs().max())
        for name, array in work.format.decode(mean, sent).items()
    ]
    assert (max(off, default=0.0) > 1e-4) == (work.format.needs_individual is not None)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_format_holds_no_value(kind: str) -> None:
    # Attackers are given it: it must not tell them initial weights that their threat model denies.
    work = work_of(*FORMATS[kind])
    written = pickle.dumps(work.format)
    drawn = {name: array for name, array in work.initial_state.items() if array.unique().numel() > 8}
    assert drawn
    for name, array in drawn.items():
        assert array.contiguous().numpy().tobytes() not in written, name


def test_a_client_that_trains_alone_measures_the_network_that_it_would_send() -> None:
    spiking, plain = (work_of("strategy.name=solo", f"strategy.spiking={on}").format for on in ("true", "false"))
    assert isinstance(spiking, Unsent)
    assert isinstance(spiking.own, Converted)
    assert isinstance(plain, Unsent)
    assert isinstance(plain.own, Plain)
    assert plain.own.server_network({}) is None


def test_a_native_update_knows_the_ranges_of_what_neurons_learn() -> None:
    work = work_of(*FORMATS["native"], "model.readout=rate")
    format = work.format
    layers = ("relu1", "relu2", "relu3", "relu4", "readout.neurons")
    assert format.kind == "native"
    assert format.threshold_names == tuple(f"{layer}.threshold" for layer in layers)
    assert {name for name, spec in format.specs.items() if spec.values == "positive"} == {*format.threshold_names}
    shares = {name for name, spec in format.specs.items() if spec.values == "share"}
    assert shares == {f"{layer}.beta" for layer in layers}
    assert {name: spec.shape for name, spec in format.specs.items()} == {
        name: tuple(array.shape) for name, array in work.initial_state.items()
    }
    assert any(name.endswith("recurrent.weight") for name in format.specs)
    assert format.specs["relu1.beta"].mistake(torch.tensor([1.5])) == "expected values from 0 to 1, found 1.5 to 1.5"


def test_what_neurons_learn_is_put_back_where_updates_have_it() -> None:
    work = work_of(*FORMATS["native"])
    before = {name: array.clone() for name, array in work.arrays.items()}
    work.arrays["relu1.beta"].fill_(1.25)
    work.arrays["relu2.threshold"].fill_(-0.5)
    work.settle()
    moved = ("relu1.beta", "relu2.threshold")
    assert [work.arrays[name].item() for name in moved] == [1.0, pytest.approx(SMALLEST_THRESHOLD)]
    assert all(torch.equal(array, before[name]) for name, array in work.arrays.items() if name not in moved)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (torch.ones(3), "expected float32[2], found float32[3]"),
        (torch.ones(2, dtype=torch.float64), "expected float32[2], found float64[2]"),
        (torch.tensor([1.0, float("nan")]), "holds NaN"),
        (torch.tensor([1.0, 1e13]), "a value beyond 1e+12"),
        (torch.tensor([1.0, -1.0]), "the smallest is -1"),
    ],
)
def test_what_is_wrong_with_an_array_is_said(array: torch.Tensor, words: str) -> None:
    mistake = ArraySpec(shape=(2,), values="non-negative").mistake(array)
    assert mistake is not None
    assert words in mistake


@pytest.mark.parametrize("value", [1e12, -1e12, 1e10, 1e-40, 0.0])
@pytest.mark.parametrize("size", [1, 1000])
def test_large_but_admissible_values_pass(value: float, size: int) -> None:
    assert ArraySpec(shape=(size,)).mistake(torch.full((size,), value)) is None


@pytest.mark.parametrize("value", [1.1e12, -1.1e12, 3e38, float("nan"), float("inf"), float("-inf")])
def test_a_single_value_beyond_the_bound_is_found(value: float) -> None:
    array = torch.zeros(1000)
    array[-1] = value
    assert "NaN, infinity or a value beyond" in str(ArraySpec(shape=(1000,)).mistake(array))
