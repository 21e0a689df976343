"""What the neurons of a simulation did: against the simulation, the equations and spikingjelly's own recording."""

from __future__ import annotations

from dataclasses import replace

import networks
import pytest
import stepwise
import torch
from torch import Tensor

from snnfl.conversion import ConversionConfig, convert
from snnfl.spiking import SpikingNetwork, to_spikingjelly
from snnfl.spiking import network as network_module
from snnfl.torchvision_guard import guard

NETWORKS = [networks.Plain, networks.Residual, networks.Joined, networks.Dense, networks.MaxPooled]
OPTIONS = [
    {},
    {"thresholds": "channel_mmse", "initial_potential": "half"},
    {"initial_potential": "half", "readout": "second_half"},
    {"initial_potential": "drip"},
    {"calibration": "bias_potential"},
    {"calibration": "time_bias"},
]
STEPS = 11
"""More than a chunk of time."""


def converted(kind: type, dtype: torch.dtype = torch.float64, **options: object) -> SpikingNetwork:
    model, images = networks.trained(kind, dtype=dtype), networks.images(8, dtype=dtype)
    return convert(model, images, ConversionConfig(steps=STEPS, **options))


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_recording_is_the_simulation_bit_for_bit(kind, dtype, options, monkeypatch):
    network, images = converted(kind, dtype, **options), networks.images(5, seed=9, dtype=dtype)
    for size in (network_module.CHUNK_BYTES, 2**13):  # all images at once, and a few at a time
        monkeypatch.setattr(network_module, "CHUNK_BYTES", size)
        recording = network.record(images)
        assert torch.equal(recording.logits, network.simulate(images, steps=STEPS)[STEPS])
        assert torch.equal(recording.logits, network(images))
    assert [*recording.spikes] == [node.name for node in network.graph.spikes]
    for name, spikes in recording.spikes.items():
        assert (spikes.dtype, len(spikes), spikes.shape[1]) == (torch.bool, STEPS, 5)
        assert recording.potentials[name].shape == spikes.shape


def test_a_recording_in_bfloat16_keeps_potentials_in_float32():
    network = converted(networks.Residual, torch.float32).to(dtype=torch.bfloat16)
    images = networks.images(5, seed=9, dtype=torch.bfloat16)
    recording = network.record(images)
    assert torch.equal(recording.logits, network(images))
    assert {potential.dtype for potential in recording.potentials.values()} == {torch.float32}
    assert all(spikes.any() for spikes in recording.spikes.values())


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_spikes_and_potentials_are_those_of_the_equations(kind, options):
    network, images = converted(kind, **options), networks.images(5, seed=9)
    recording = network.record(images)
    for name, spikes in recording.spikes.items():
        expected = stepwise.outputs(network, images, STEPS, upto=name)
        assert spikes.any(), "a silent layer proves nothing"
        torch.testing.assert_close(recording.values(name), expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [networks.Plain, networks.Residual])
def test_a_potential_is_the_charge_that_has_not_left_as_spikes(kind):
    """What flowed in is the current that the spikes recorded in front of the layer give, by the layer's own weights."""
    network, images = converted(kind, initial_potential="half"), networks.images(5, seed=9)
    recording = network.record(images)
    first = network.graph.spikes[0].name
    current = network.graph.by_name[network.graph.by_name[first].inputs[0]].apply([images], network.parameters)
    flowed = current * torch.arange(1, STEPS + 1, dtype=images.dtype).view(-1, 1, 1, 1, 1)
    left = recording.values(first).cumsum(0)
    start = network.thresholds[first].view(-1, 1, 1) / 2
    torch.testing.assert_close(recording.potentials[first], start + flowed - left, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [networks.Plain, networks.Dense])
@pytest.mark.parametrize("readout", ["all", "second_half"])
def test_spikes_times_weights_are_the_logits(kind, readout):
    """The last layer is linear, so the logits are its value on the mean of the spikes that it reads."""
    network, images = converted(kind, readout=readout), networks.images(5, seed=9)
    recording = network.record(images)
    last = network.graph.spikes[-1].name
    read = recording.values(last)[STEPS // 2 if readout != "all" else 0 :]
    values = {last: read.mean(0)}
    for node in network.graph.readout_from(values):
        values[node.name] = node.apply([values[name] for name in node.inputs], network.parameters)
    torch.testing.assert_close(values[network.graph.output], recording.logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("options", [{}, {"initial_potential": "half", "calibration": "bias_potential"}], ids=str)
def test_spikingjelly_records_the_same(kind, options):
    guard()
    from spikingjelly.activation_based.neuron import IFNode

    network, images = converted(kind, **options), networks.images(5, seed=9)
    module, recording = to_spikingjelly(network), network.record(images)
    neurons = {name: each for name, each in module.named_modules() if isinstance(each, IFNode)}
    assert recording.spikes.keys() == neurons.keys()
    spikes = dict[str, Tensor]()
    for name, each in neurons.items():
        each.register_forward_hook(lambda m, i, fired, name=name: spikes.update({name: fired != 0}))
    outputs = []
    for step in range(STEPS):
        with torch.no_grad():
            outputs.append(module(images))
        for name, each in neurons.items():
            assert torch.equal(recording.spikes[name][step], spikes[name])
            torch.testing.assert_close(recording.potentials[name][step], each.v, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(torch.stack(outputs).mean(0), recording.logits, rtol=1e-12, atol=1e-12)


def test_chosen_layers_alone_are_recorded():
    network, images = converted(networks.Residual), networks.images(2)
    whole, part = network.record(images, steps=3), network.record(images, layers=["relu2", "stem.2"], steps=3)
    assert [*part.spikes] == ["stem.2", "relu2"] == [*part.potentials] == [*part.thresholds]
    assert all(torch.equal(spikes, whole.spikes[name]) for name, spikes in part.spikes.items())
    assert all(torch.equal(potential, whole.potentials[name]) for name, potential in part.potentials.items())


def test_rates_are_spikes_per_neuron_and_step():
    network, images = converted(networks.Plain), networks.images(3)
    recording = network.record(images)
    assert recording.rates["relu"] == pytest.approx(recording.spikes["relu"].double().mean().item())
    loud = replace(network, parameters={**network.parameters, "relu.threshold": torch.tensor([1e9]).double()})
    assert loud.record(images).rates["relu"] == 0
    assert f"relu: 4 x 6 x 6 neurons, {recording.rates['relu']:.3f} spikes" in repr(recording)
    assert len(repr(recording).splitlines()) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": ["relo"]}, "'relo' is no spiking layer .* did you mean 'relu'?"),
        ({"layers": ["conv"]}, "'conv' is no spiking layer"),
        ({"layers": []}, "nothing to record; name at least one of relu, relu_hidden"),
        ({"layers": "relu"}, r"give a list, such as layers=\['relu'\]"),
        ({"steps": 0}, "steps=0: simulate at least 1 time step"),
        ({"max_bytes": 1000}, r"takes 35,568 bytes, more than max_bytes=1,000; name fewer layers"),
    ],
)
def test_a_mistake_is_named(options, words):
    network = converted(networks.Plain)
    with pytest.raises(ValueError, match=words):
        network.record(networks.images(2), **{"steps": 13, **options})


def test_the_ceiling_is_what_the_arrays_take():
    network, images = converted(networks.Plain), networks.images(2)
    recording = network.record(images, steps=13, max_bytes=35_568)
    arrays = [*recording.spikes.values(), *recording.potentials.values()]
    assert sum(array.nbytes for array in arrays) == 35_568


def test_a_raster_shows_every_spike_of_an_image():
    recording = converted(networks.Plain).record(networks.images(3))
    figure = recording.raster(image=1)
    assert len(figure.axes) == 2
    for axes, (name, spikes) in zip(figure.axes, recording.spikes.items(), strict=True):
        assert axes.get_title(loc="left").startswith(f"{name}: ")
        times, neurons = axes.collections[0].get_offsets().T.astype(int)
        drawn = torch.zeros(STEPS, spikes[0, 0].numel(), dtype=torch.bool)
        drawn[times - 1, neurons] = True
        shown = torch.linspace(0, drawn.shape[1] - 1, min(100, drawn.shape[1])).round().long()
        assert torch.equal(drawn[:, shown], spikes[:, 1].flatten(1)[:, shown])
        assert int(drawn.sum()) == len(times)


def test_a_membrane_plot_shows_potential_threshold_and_spikes():
    recording = converted(networks.Plain, thresholds="channel_mmse").record(networks.images(3))
    spikes, potentials = (part["relu"][:, 2].flatten(1) for part in (recording.spikes, recording.potentials))
    figure = recording.membrane("relu", image=2, neurons=[40, 7])
    for axes, neuron in zip(figure.axes, [40, 7], strict=True):
        trace, level = axes.lines
        assert trace.get_ydata() == pytest.approx(potentials[:, neuron].tolist())
        assert level.get_ydata()[0] == pytest.approx(recording.thresholds["relu"][neuron // 36].item())
        times = axes.collections[0].get_offsets()[:, 0] - 1
        assert times.tolist() == spikes[:, neuron].nonzero().flatten().tolist()
    most = recording.membrane("relu_hidden", image=2).axes[0].get_title(loc="left")
    hidden = recording.spikes["relu_hidden"][:, 2].sum(0)
    assert most == f"relu_hidden, neuron {hidden.argmax()}: {hidden.max()} spikes"


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda r: r.raster(image=3), "image=3: 3 are recorded"),
        (lambda r: r.membrane("relo"), "did you mean 'relu'"),
        (lambda r: r.membrane("relu", image=-1), "image=-1"),
        (lambda r: r.membrane("relu", neurons=[144]), "relu has neurons 0 to 143"),
    ],
)
def test_what_cannot_be_drawn_is_named(draw, words):
    recording = converted(networks.Plain).record(networks.images(3))
    with pytest.raises(ValueError, match=words):
        draw(recording)
