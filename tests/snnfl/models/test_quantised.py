"""Models that quantise in every forward pass: what is quantised, what travels, what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from snnfl.config import Config, ConfigError, ModelConfig, QuantizationConfig, compose
from snnfl.models import SpikingNeurons, build_model, deployed, full_precision, mute_potentials, names, register
from snnfl.models.registry import MODELS
from snnfl.training import cross_entropy, evaluate, exchangeable
from snnfl.workspace import Workspace

PLAIN = "strategy.spiking=false"


def config_of(*options: str) -> Config:
    return compose(None, ["data.clients=4", *options])


def levels(array: torch.Tensor) -> int:
    return len(array.unique())


@pytest.mark.parametrize("name", sorted(set(names()) - {"vgg16", "cnn"}))
def test_every_weight_of_every_model_is_quantised_and_none_else(name: str) -> None:
    quantization = QuantizationConfig(weights=2)
    shape = (1, 16, 16)
    draw = torch.Generator().manual_seed(0)
    model = build_model(ModelConfig(name=name), input_shape=shape, classes=3, generator=draw, quantization=quantization)
    arrays = exchangeable(model)
    ordinary = build_model(ModelConfig(name=name), input_shape=shape, classes=3, generator=draw.manual_seed(0))
    assert all(torch.equal(array, arrays[key]) for key, array in exchangeable(ordinary).items())
    assert arrays.keys() == exchangeable(ordinary).keys()
    made = deployed(model, arrays)
    assert {key for key, array in made.items() if not torch.equal(array, arrays[key])} == {
        key for key, array in arrays.items() if array.dim() > 1 and levels(array) > 1
    }
    assert all(levels(array) <= 3 for array in made.values() if array.dim() > 1)
    images = torch.randn(2, *shape, generator=draw)
    ordinary.load_state_dict({**ordinary.state_dict(), **made})
    with torch.no_grad():
        assert torch.allclose(model.eval()(images), ordinary.eval()(images), atol=1e-5)
        with full_precision(model):
            assert not torch.allclose(model(images), ordinary(images), atol=1e-5)


def test_a_copy_is_quantised_too() -> None:
    work = Workspace(config_of(PLAIN, "model.neuron=rlif", "model.time_steps=2", "quantization.weights=2"))
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(copy.deepcopy(work.model)(images), work.model(images))


def test_recurrent_weights_are_quantised() -> None:
    work = Workspace(config_of(PLAIN, "model.neuron=rlif", "model.time_steps=2", "quantization.weights=4"))
    made = deployed(work.model, work.arrays)
    assert levels(made["relu3.recurrent.weight"]) <= 15 < levels(work.arrays["relu3.recurrent.weight"])


def test_potentials_are_quantised_where_neurons_fire() -> None:
    work = Workspace(config_of(PLAIN, "model.neuron=lif", "model.time_steps=5", "quantization.potentials=2"))
    model, images = work.model, 3 * torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert all(levels(found.potentials) <= 4 for found in model.record(images).values())  # type: ignore[operator]
    stored = {n: m.store is not None for n, m in model.named_modules() if isinstance(m, SpikingNeurons)}
    assert stored.pop("readout.neurons") is False
    assert all(stored.values())
    rate = Workspace(config_of(PLAIN, "model.neuron=lif", "quantization.potentials=2", "model.readout=rate"))
    assert rate.model.get_submodule("readout.neurons").store is not None


@pytest.mark.parametrize(("clip", "fires"), [(0.83, False), (0.84, True)])
def test_no_neuron_fires_below_a_range(clip: float, fires: bool) -> None:
    options = ["model.neuron=lif", "model.time_steps=5", "quantization.potentials=8", f"quantization.clip={clip}"]
    work = Workspace(config_of(PLAIN, *options))
    images = 100 * torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    spikes = work.model.record(images)["relu1"].spikes  # type: ignore[operator]
    assert bool(spikes.any()) is fires
    assert mute_potentials(work.config.quantization) is not fires


def test_learned_ranges_travel_and_stay_positive() -> None:
    work = Workspace(config_of(PLAIN, "quantization.activations=2"))
    assert work.format.specs["relu1.range"].values == "positive"
    work.arrays["relu1.range"].fill_(-1)
    work.settle()
    assert work.arrays["relu1.range"] > 0
    fixed = Workspace(config_of(PLAIN, "quantization.activations=2", "quantization.clip=1.5"))
    assert "relu1.range" not in fixed.format.specs


def test_training_reaches_weights_and_ranges() -> None:
    work = Workspace(config_of(PLAIN, "quantization.activations=4", "quantization.weights=4"))
    images, labels = work.dataset.normalise(work.dataset.train_images[:32]), work.dataset.train_labels[:32]
    before = {name: array.clone() for name, array in work.arrays.items()}
    optimiser = torch.optim.SGD(work.model.parameters(), lr=0.1, momentum=0.9)
    first = cross_entropy(work.model, images, labels)
    for _ in range(60):
        optimiser.zero_grad()
        loss = cross_entropy(work.model, images, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert loss.item() < first.item() / 2
    assert all(not torch.equal(array, before[name]) for name, array in work.arrays.items())


def test_the_final_file_holds_what_was_evaluated() -> None:
    work = Workspace(config_of(PLAIN, "quantization.weights=4"))
    pairs = [(work.dataset.normalise(work.dataset.test_images), work.dataset.test_labels)]
    ordinary = Workspace(config_of(PLAIN))
    for name, array in deployed(work.model, work.arrays).items():
        ordinary.arrays[name].copy_(array)
    expected, found = evaluate(work.model, pairs), evaluate(ordinary.model, pairs)
    assert found.accuracy == expected.accuracy
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["quantization.weights=4"], "quantization.per_channel=true"),
        (["quantization.activations=4"], "strategy.spiking=true"),
        ([PLAIN, "model.neuron=lif", "quantization.activations=4"], "model.neuron=lif"),
        ([PLAIN, "quantization.potentials=4"], "model.neuron=relu"),
        ([PLAIN, "quantization.clip=1"], "neither"),
        ([PLAIN, "quantization.per_channel=true"], "quantization.weights=0"),
        ([PLAIN, "quantization.weights=3"], "0, 2, 4, 8"),
        ([PLAIN, "model.neuron=lif", "quantization.weights=4", "training.precision=bfloat16"], "bfloat16"),
        (["strategy.name=solo", "quantization.uploads=4"], "solo"),
        (["privacy.mechanism=local", "quantization.uploads=4"], "privacy.mechanism=central"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        config_of(*options)
    assert "\n" not in str(refusal.value)


def test_weights_that_nothing_quantises_are_refused() -> None:
    @register("sequence_of_convolutions")
    def build(config: ModelConfig, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(nn.Conv1d(1, 2, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(4, classes))

    shape = {"input_shape": (1, 4), "classes": 2, "generator": torch.Generator()}
    try:
        config = ModelConfig(name="sequence_of_convolutions")
        with pytest.raises(ConfigError, match="is a Conv1d"):
            build_model(config, quantization=QuantizationConfig(weights=2), **shape)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=r"no nn\.ReLU"):
            build_model(config, quantization=QuantizationConfig(activations=2), **shape)  # type: ignore[arg-type]
    finally:
        del MODELS.items["sequence_of_convolutions"]
