from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import networks
import pytest
import torch
from torch import Tensor

from snnfl.conversion import ConversionConfig, convert
from snnfl.spiking import Spike, SpikingNetwork
from snnfl.spiking import network as network_module
from snnfl.torchvision_guard import guard

NETWORKS = [networks.Plain, networks.Residual, networks.Joined]


def converted(network: type, **options: object) -> SpikingNetwork:
    return convert(networks.trained(network), networks.images(8), ConversionConfig(steps=16, **options))


def step_by_step(network: SpikingNetwork, images: Tensor, steps: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Simulate with spikingjelly's IF neurons, the whole graph at each step: an independent, literal oracle."""
    guard()
    from spikingjelly.activation_based.neuron import IFNode

    neurons: dict[tuple[str, int], IFNode] = {}
    counts: dict[str, Tensor] = {}
    total = torch.zeros(())
    for step in range(steps):
        values = {network.graph.input: images}
        for node in network.graph.nodes:
            inputs = [values[name] for name in node.inputs]
            if not isinstance(node, Spike):
                values[node.name] = node.apply(inputs, network.parameters)
                continue
            level = network.thresholds[node.name]
            spikes = torch.empty_like(inputs[0])
            for channel in range(inputs[0].shape[1]):  # an IFNode has one threshold
                theta = level[channel % len(level)].item()
                start = theta / 2 if network.initial_potential == "half" else 0.0
                start += network.parameters.get(f"{node.name}.potential", torch.zeros(99))[channel].item()
                current = inputs[0][:, channel]
                if network.initial_potential == "drip":
                    current = current + theta / 2 / steps
                if (biases := network.parameters.get(f"{node.name}.time_bias")) is not None:
                    current = current + biases[step, channel]
                key = (node.name, channel)
                if key not in neurons:
                    neurons[key] = IFNode(v_threshold=theta, v_reset=None, step_mode="s")
                    neurons[key].v = torch.full_like(current, start)
                spikes[:, channel] = neurons[key](current)
            counts[node.name] = counts.get(node.name, torch.zeros_like(spikes)) + spikes
            values[node.name] = spikes * level.view(-1, *[1] * (spikes.dim() - 2))
        total = total + values[network.graph.output]
    return total / steps, counts


def spike_counts(network: SpikingNetwork, images: Tensor, steps: int) -> dict[str, Tensor]:
    """Count the engine's own spikes of each neuron."""
    spikes = network.record(images, steps=steps).spikes
    return {name: fired.sum(0).to(images.dtype) for name, fired in spikes.items()}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    ("thresholds", "initial_potential", "calibration"),
    [
        ("layer_mmse", "zero", "bias"),
        ("layer_mmse", "half", "bias"),
        ("channel_mmse", "half", "bias"),
        ("layer_mmse", "zero", "bias_potential"),
        ("channel_mmse", "drip", "bias"),
        ("channel_mmse", "drip", "time_bias"),
    ],
)
def test_spikes_equal_spikingjellys_one_by_one_in_float64(network, thresholds, initial_potential, calibration):
    spiking = converted(network, thresholds=thresholds, initial_potential=initial_potential, calibration=calibration)
    images = networks.images(5, seed=9)
    expected, expected_counts = step_by_step(spiking, images, 16)
    counts = spike_counts(spiking, images, 16)
    assert counts.keys() == expected_counts.keys()
    assert all(torch.equal(counts[name], expected_counts[name]) for name in counts)
    assert all(count.sum() > 0 for count in counts.values()), "a silent layer proves nothing"
    torch.testing.assert_close(spiking.simulate(images, steps=16)[16], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_curve_equals_separate_runs(network):
    spiking, images = converted(network), networks.images(5, seed=9)
    curve = spiking.simulate(images, steps=16, curve=(1, 3, 8, 11))
    assert sorted(curve) == [1, 3, 8, 11, 16]
    for steps, logits in curve.items():
        torch.testing.assert_close(logits, spiking.simulate(images, steps=steps)[steps], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_late_readout_is_the_mean_of_the_last_steps(network):
    spiking, images = converted(network), networks.images(5, seed=9)
    sums = {steps: steps * logits for steps, logits in spiking.simulate(images, steps=11, curve=(1, 2, 4, 5)).items()}
    late = replace(spiking, readout="second_half").simulate(images, steps=11, curve=(1, 4))
    assert sorted(late) == [1, 4, 11]
    for steps, expected in ((1, sums[1]), (4, (sums[4] - sums[2]) / 2), (11, (sums[11] - sums[5]) / 6)):
        torch.testing.assert_close(late[steps], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("network", NETWORKS)
def test_chunks_change_nothing(network, monkeypatch):
    spiking, images = converted(network), networks.images(7, seed=9)
    expected = spiking.simulate(images, steps=16)[16]
    for size, steps in ((1, 1), (2**12, 3), (2**30, 16)):
        monkeypatch.setattr(network_module, "CHUNK_BYTES", size)
        monkeypatch.setattr(network_module, "CHUNK_STEPS", steps)
        torch.testing.assert_close(spiking.simulate(images, steps=16)[16], expected, rtol=1e-12, atol=1e-12)


def test_a_drip_is_that_of_the_whole_run_at_every_point_of_the_curve():
    spiking, images = converted(networks.Residual, initial_potential="drip"), networks.images(5, seed=9)
    point = spiking.simulate(images, steps=16, curve=(4,))[4]
    biases = {node.name: torch.full((4, 1), 0.5 / 16) * spiking.thresholds[node.name] for node in spiking.graph.spikes}
    explicit = {**spiking.parameters, **{f"{name}.time_bias": bias for name, bias in biases.items()}}
    torch.testing.assert_close(SpikingNetwork(spiking.graph, explicit).simulate(images, steps=4)[4], point)
    assert not torch.allclose(spiking.simulate(images, steps=4)[4], point)


def test_bfloat16_approximates():
    """Its potentials and sums over time are float32; with 8 bits of both, 300 steps would be off by a third."""
    network = converted(networks.Residual, initial_potential="half").to(dtype=torch.float32)
    images, short = networks.images(5, seed=9, dtype=torch.float32), network.to(dtype=torch.bfloat16)
    assert {array.dtype for array in network.parameters.values()} == {torch.float32}
    current = torch.zeros(5, 3, 6, 6, dtype=torch.bfloat16)
    assert short.rest(network.graph.spikes[0].name, current[:, :1]).dtype == torch.float32
    expected = network.simulate(images, steps=300)[300]
    found = short.simulate(images.bfloat16(), steps=300)[300]
    assert found.dtype == torch.bfloat16
    error = (found.float() - expected).abs().max() / expected.abs().max()
    assert 0 < error < 0.05


def test_half_a_threshold_is_an_initial_potential():
    spiking, images = converted(networks.Plain, initial_potential="half"), networks.images(5, seed=9)
    channels = {"relu": 4, "relu_hidden": 8}
    halves = {f"{name}.potential": spiking.thresholds[name].expand(n) / 2 for name, n in channels.items()}
    explicit = SpikingNetwork(spiking.graph, {**spiking.parameters, **halves})
    assert torch.equal(explicit.simulate(images, steps=9)[9], spiking.simulate(images, steps=9)[9])


def test_more_steps_than_biases_in_time_are_refused():
    spiking, images = converted(networks.Plain, calibration="time_bias", calibration_steps=12), networks.images(2)
    assert sorted(spiking.simulate(images, steps=12, curve=(3,))) == [3, 12]
    with pytest.raises(ValueError, match=r"13 time steps: relu has biases for 12; .* calibration_steps=13"):
        spiking.simulate(images, steps=6, curve=(13,))


@pytest.mark.parametrize("curve", [(0,), (-1, 4)])
def test_a_length_of_no_steps_is_refused(curve):
    with pytest.raises(ValueError, match="at least 1"):
        converted(networks.Plain).simulate(networks.images(2), steps=16, curve=curve)


@pytest.mark.parametrize("readout", ["all", "second_half"])
def test_a_curve_goes_beyond_the_steps(readout):
    spiking, images = converted(networks.Residual, readout=readout), networks.images(5, seed=9)
    curve = spiking.simulate(images, steps=16, curve=(4, 40))
    assert sorted(curve) == [4, 16, 40]
    assert torch.equal(curve[40], spiking.simulate(images, steps=40, curve=(4, 16))[40])


def test_a_drip_ends_with_its_steps():
    spiking, images = converted(networks.Residual, initial_potential="drip"), networks.images(2)
    with pytest.raises(ValueError, match=r"^17 time steps: a drip spreads half a threshold over the steps=16 .*=17$"):
        spiking.simulate(images, steps=16, curve=(17,))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (networks.images(1)[:0], "no images"),
        (torch.full((1, 2, 6, 6), float("nan"), dtype=torch.float64), "NaN or infinity"),
        (networks.images(1).float(), "torch.float32, the weights torch.float64"),
        (networks.images(1).to("meta"), "on meta, the weights on cpu"),
    ],
)
def test_wrong_images_are_refused(images, words):
    """Neurons never fire on NaN: the logits would be finite, and wrong."""
    network = convert(networks.trained(networks.Plain), networks.images(4), ConversionConfig(steps=4))
    with pytest.raises(ValueError, match=words):
        network.simulate(images, steps=4)


def test_the_rate_code_converges_to_the_analog_twin():
    """With thresholds above every activation nothing is clipped, and the error of a rate is at most one spike in T."""
    spiking, images = converted(networks.Plain, calibration="none"), networks.images(8)
    wide = {name: value * 3 if name.endswith("threshold") else value for name, value in spiking.parameters.items()}
    spiking = SpikingNetwork(spiking.graph, wide)
    twin = spiking.analog(images)
    errors = [(spiking.simulate(images, steps=steps)[steps] - twin).abs().mean() for steps in (16, 64, 256, 1024)]
    assert all(later < earlier / 2 for earlier, later in pairwise(errors)), errors
