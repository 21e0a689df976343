"""What spiking networks do, against counts that are made layer by layer from their spikes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from snnfl.config import compose
from snnfl.metrics import Activity, LayerCount, measure_activity, warning_of
from snnfl.metrics.energy import AC_PICOJOULES, MAC_PICOJOULES
from snnfl.models import SpikingModel
from snnfl.workspace import Workspace

STEPS, SAMPLES = 5, 7


def work_of(*options: str) -> Workspace:
    base = ["strategy.spiking=false", "model.neuron=lif", f"model.time_steps={STEPS}", "data.clients=4"]
    return Workspace(compose(None, [*base, *options]))


def measured(work: Workspace) -> tuple[Activity, SpikingModel, Tensor]:
    model, samples = work.model.eval(), work.dataset.normalise(work.dataset.test_images[:SAMPLES])
    return measure_activity(model, samples, work.structure), model, samples


def layers(found: Activity) -> dict[str, LayerCount]:
    assert found.count is not None
    return {layer.layer: layer for layer in found.count.layers}


def trains_of(model: SpikingModel, samples: Tensor) -> dict[str, Tensor]:
    """Return each layer's spikes before any pooling, ``[T, N, ...]``."""
    found: dict[str, Tensor] = {}
    for name, neurons in model.neurons.items():
        neurons.register_forward_hook(lambda module, args, _, name=name: found.update({name: module.spikes(args[0])}))
    with torch.no_grad():
        model.body(model.encode(samples))
    return found


def synapses(layer: nn.Module, spikes: Tensor) -> float:
    """Return how many outputs the spikes of a sample reach: a layer of ones, over all steps."""
    ones, flat = torch.ones_like(layer.weight), spikes.flatten(0, 1)
    if isinstance(layer, nn.Conv2d):
        reached = functional.conv2d(flat, ones, padding=layer.padding, stride=layer.stride)
    else:
        reached = functional.linear(flat.flatten(1), ones)
    return float(reached.sum()) / SAMPLES


def test_rates_and_operations_are_those_of_the_spikes():
    work = work_of("model.name=convnet")
    found, model, samples = measured(work)
    trains, counted = trains_of(model, samples), layers(found)
    assert found.rates.keys() == trains.keys()
    for name, spikes in trains.items():
        assert found.rates[name] == pytest.approx(float(spikes.mean()), rel=1e-6)
        assert counted[name].spikes == pytest.approx(float(spikes.sum()) / SAMPLES, rel=1e-6)
        assert counted[name].neurons == spikes[0, 0].numel()
    affine = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    first, *others = affine
    side = samples.shape[-1]
    assert counted[first].macs == affine[first].weight.numel() * side * side, "once, not at every step"
    assert counted[first].acs == 0
    for layer, source in zip(others, trains, strict=True):
        spikes = trains[source]
        if spikes.dim() == 5:  # a pooling lies between: of a window each spike takes one path
            spikes = 4 * functional.avg_pool2d(spikes.flatten(0, 1), 2).unflatten(0, spikes.shape[:2])
        assert counted[layer].acs == pytest.approx(synapses(affine[layer], spikes), rel=1e-5), layer
        assert counted[layer].macs == 0
    total = found.count.total
    assert found.count.energy.compute == pytest.approx(MAC_PICOJOULES * total.macs + AC_PICOJOULES * total.acs)


def test_what_does_not_fire_costs_nothing_but_the_first_layer():
    found, *_ = measured(work_of("model.threshold=1000000", "model.name=resnet20"))
    assert set(found.rates.values()) == {0.0}
    assert found.count.total.acs == 0
    assert found.count.total.macs == found.count.layers[0].macs > 0


def test_spikes_that_encode_cost_accumulations_and_no_multiplication():
    work = work_of("model.name=mlp", "model.encoding=latency")
    found, model, samples = measured(work)
    first = layers(found)["fc1"]
    assert first.acs == pytest.approx(synapses(model.fc1, model.encode(samples)), rel=1e-6)
    assert found.count.total.macs == 0


def test_recurrent_spikes_reach_their_whole_layer():
    found, model, _ = measured(work_of("model.name=mlp", "model.neuron=rlif"))
    counted = layers(found)
    for name, neurons in model.neurons.items():
        again = counted[f"{name}.recurrent"]
        assert again.acs == pytest.approx(counted[name].spikes * neurons.recurrent.out_features)


def test_adaptive_neurons_have_a_second_state():
    (adaptive, model, _), (leaky, *_) = (
        measured(work_of("model.name=mlp", f"model.neuron={n}")) for n in ("alif", "lif")
    )
    for name in model.neurons:
        state = [layers(found)[name].words - layers(found)[name].acs for found in (adaptive, leaky)]
        assert state[0] == 2 * state[1] > 0


def test_layers_with_relus_are_computed_once():
    found, model, _ = measured(work_of("model.name=convnet", "model.neurons=head"))
    counted = layers(found)
    assert [*found.rates] == [*model.neurons]
    assert len(found.rates) == 1
    assert [counted[name].macs > 0 for name in ("conv1", "conv2", "fc3", "fc4")] == [True, True, True, False]
    assert [counted[name].acs > 0 for name in ("conv1", "conv2", "fc3", "fc4")] == [False, False, False, True]


def test_a_maximum_of_spikes_is_a_spike():
    found, *_ = measured(work_of("model.name=convnet", "model.pooling=max"))
    assert layers(found)["conv2"].macs == 0
    assert layers(found)["conv2"].acs > 0


@pytest.mark.parametrize(("rate", "words"), [(0.0, "lower model.threshold"), (0.99, "raise model.threshold")])
def test_layers_that_tell_nothing_are_named_with_a_remedy(rate, words):
    line = warning_of("relu3", rate, normalised=False)
    assert line.startswith("relu3 ")
    assert words in line
    assert "\n" not in line
    assert line.endswith(", or set model.batch_norm=true")
    assert "batch_norm" not in warning_of("relu3", rate, normalised=True)  # what is set already is no remedy


def test_a_layer_that_fires_now_and_then_is_not_said_never_to():
    assert warning_of("relu3", 9.8e-5, normalised=True).startswith("relu3 hardly ever fires (firing rate 0.0098 %)")
    assert warning_of("relu3", 0.0, normalised=True).startswith("relu3 never fires (firing rate 0 %)")


def test_ordinary_rates_are_no_reason_to_warn():
    assert [warning_of("relu", rate, normalised=True) for rate in (1e-4, 0.5, 0.95)] == [None] * 3
