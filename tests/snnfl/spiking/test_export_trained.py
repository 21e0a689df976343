"""Networks that were trained as spiking ones, read back by snnTorch: equal outputs at every step."""

from __future__ import annotations

from pathlib import Path

import nir
import numpy as np
import pytest
import torch
from snntorch import Leaky, RLeaky
from snntorch.import_nir import import_from_nir
from torch import Tensor

from snnfl.config import ModelConfig, QuantizationConfig
from snnfl.conversion import fold
from snnfl.models import SpikingModel, build_model
from snnfl.models.quantised import quantise_neurons
from snnfl.rng import generator
from snnfl.spiking import ExportError, SpikingGraph, trace, trained_to_nir
from snnfl.training import exchangeable

SHAPE, STEPS, CLASSES = (2, 8, 8), 12, 5


def built(**options: object) -> tuple[SpikingModel, SpikingGraph]:
    """Return a model, and the structure of the ordinary network of its name."""
    name = options.pop("name", "lenet5")
    draw = generator(0, "weights")
    arguments = {"input_shape": SHAPE, "classes": CLASSES, "generator": draw}
    model = build_model(ModelConfig(name=name, time_steps=STEPS, **options), **arguments)
    ordinary = build_model(ModelConfig(name=name), **arguments)
    for module in model.modules():
        if hasattr(module, "running_mean"):
            module.running_mean.normal_(0, 0.1, generator=draw)
            module.running_var.uniform_(0.5, 1.5, generator=draw)
        if getattr(module, "weight", None) is not None and module.weight.dim() > 1:
            module.weight.data *= 1.5  # so that all layers fire
    return model.eval(), trace(ordinary, input_shape=SHAPE)


def written(model: SpikingModel, graph: SpikingGraph, folder: Path) -> nir.NIRGraph:
    neurons = {name: layer.neuron for name, layer in model.neurons.items()}
    readout = model.readout.neurons.neuron if model.readout.fires else None
    path = folder / "network.nir"
    trained_to_nir(graph, fold(graph, exchangeable(model)), neurons, SHAPE, path, readout=readout)
    return nir.read(path)


def outputs_of_snntorch(graph: nir.NIRGraph, image: Tensor) -> Tensor:
    """Return what comes out at each step, ``[T, 1, classes]``; its neurons reset as the metadata say."""
    resets = {name: node.metadata for name, node in graph.nodes.items() if node.metadata}
    module = import_from_nir(graph)
    neurons = {name: each for name, each in module.named_modules() if isinstance(each, Leaky | RLeaky)}
    assert len(neurons) == len(resets)
    for (name, each), metadata in zip(neurons.items(), resets.values(), strict=True):
        each.reset_mechanism = metadata["reset"]
        each.reset_delay = bool(metadata["reset_delay"])
        each.state_function = each._base_sub if metadata["reset"] == "subtract" else each._base_zero
        each.init_hidden = True
        if isinstance(graph.nodes[name], nir.IF):  # it makes a leaky neuron of it
            each.beta.fill_(1)
        each.reset_mem()
    state, found = None, []
    with torch.no_grad():
        for _ in range(STEPS):
            output, state = module(image, state)
            found.append(output)
    return torch.stack(found)


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("delay", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"neuron": "lif", "beta": 0.75},
        {"neuron": "lif", "beta": 0.5, "name": "convnet", "threshold": 0.8},
        {"neuron": "if"},
    ],
    ids=str,
)
def test_snntorch_computes_the_same_currents(tmp_path, options, reset, delay):
    model, graph = built(reset=reset, reset_delay=delay, **options)
    bright = 3 if delay or reset == "zero" else 1  # potentials above two thresholds are where snnTorch differs
    images = torch.rand(3, *SHAPE, generator=generator(1, "images")) * bright
    with torch.no_grad():
        currents = model.currents(images)
    rates = []
    for number in range(len(images)):  # its Flatten takes the batch along
        found = outputs_of_snntorch(written(model, graph, tmp_path), images[number][None]).view(STEPS, 1, CLASSES)
        torch.testing.assert_close(found[:, 0], currents[:, number], rtol=1e-4, atol=1e-4)
        rates.append(found.std())
    assert max(rates) > 0.01, "spikes reach the output"


def test_output_neurons_that_fire_are_part_of_the_file(tmp_path):
    model, graph = built(neuron="lif", beta=0.5, readout="rate", threshold=0.3)
    image = torch.rand(1, *SHAPE, generator=generator(1, "images")) * 3
    found = outputs_of_snntorch(written(model, graph, tmp_path), image)
    with torch.no_grad():
        torch.testing.assert_close(found.view(STEPS, CLASSES).mean(0), model(image)[0])
    assert found.sum() > 0


def test_a_leak_is_the_time_constant_of_one_euler_step(tmp_path):
    model, graph = built(neuron="lif", beta=0.75, threshold=0.5)
    neurons = [node for node in written(model, graph, tmp_path).nodes.values() if isinstance(node, nir.LIF)]
    assert len(neurons) == len(model.neurons)
    for node in neurons:
        current, potential = 0.3, 0.2
        after = potential + 1e-4 / node.tau * (node.v_leak - potential + node.r * current)
        np.testing.assert_allclose(after, 0.75 * potential + current, rtol=1e-6)
        assert np.unique(node.v_threshold) == np.float32(0.5)


def test_recurrent_spikes_come_back_over_a_node(tmp_path):
    model, graph = built(neuron="rlif", name="mlp")
    found = written(model, graph, tmp_path)
    [name] = model.neurons
    assert {(name, f"{name}.recurrent"), (f"{name}.recurrent", name)} <= set(found.edges)
    weight = model.neurons[name].recurrent.weight.detach().numpy()
    np.testing.assert_array_equal(found.nodes[f"{name}.recurrent"].weight, weight)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"neuron": "alif"}, "thresholds that adapt"), ({"neuron": "lif", "neurons": "head"}, "relu1: NIR has no ReLU")],
)
def test_what_nir_cannot_express_is_said_in_one_line(tmp_path, options, words):
    model, graph = built(**options)
    with pytest.raises(ExportError, match=words) as error:
        written(model, graph, tmp_path)
    assert "\n" not in str(error.value)
    assert not [*tmp_path.iterdir()]


def test_potentials_of_few_levels_are_refused(tmp_path):
    model, graph = built(neuron="lif")
    quantise_neurons(model, QuantizationConfig(potentials=4))
    with pytest.raises(ExportError, match="potentials of few levels"):
        written(model, graph, tmp_path)
