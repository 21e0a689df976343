"""One time step after the other, with a state that the caller holds."""

from __future__ import annotations

from dataclasses import replace

import networks
import pytest
import torch
from torch import Tensor

from snnfl.conversion import ConversionConfig, convert
from snnfl.spiking import SpikingNetwork, State
from snnfl.spiking.state import Step

NETWORKS = [networks.Plain, networks.Residual, networks.Joined, networks.Dense, networks.MaxPooled]
STEPS = 11


def converted(kind: type, **options: object) -> SpikingNetwork:
    return convert(networks.trained(kind), networks.images(8), ConversionConfig(steps=STEPS, **options))


def arrays(state: State) -> list[Tensor]:
    return [*state.potentials.values(), *(array for pool in state.maxima.values() for array in pool)]


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"thresholds": "channel_mmse", "initial_potential": "half"},
        {"initial_potential": "drip"},
        {"calibration": "bias_potential"},
        {"calibration": "time_bias"},
        {"readout": "second_half"},
    ],
    ids=str,
)
def test_steps_are_those_of_a_recording(kind, options):
    """In double precision, in which no sum of another order takes a neuron over its threshold: spikes are equal."""
    network, images = converted(kind, **options), networks.images(5, seed=9)
    recording, outputs = network.record(images), list[Tensor]()
    state = network.start(images)
    assert (state.time, [*state.potentials]) == (0, [*recording.spikes])
    for time in range(STEPS):
        state, step = network.step(state, images)
        outputs.append(step.output)
        for name, spikes in step.spikes.items():
            assert torch.equal(spikes != 0, recording.spikes[name][time]), (name, time)
            torch.testing.assert_close(state.potentials[name], recording.potentials[name][time], rtol=1e-11, atol=1e-11)
    assert state.time == STEPS
    read = torch.stack(outputs)[network.first_read(STEPS) :]
    torch.testing.assert_close(read.mean(0), network(images), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", [networks.Residual, networks.MaxPooled])
def test_a_state_may_be_gone_on_from_twice(kind):
    network, images = converted(kind), networks.images(5, seed=9)
    state, _ = network.step(network.start(images), images)
    assert repr(state).startswith("State after 1 time step, images of shape [5, 2, 6, 6], potentials\n")
    assert len(repr(state).splitlines()) == 1 + len(network.graph.spikes)
    _, step = network.step(state, images)
    shown = repr(step).splitlines()
    assert shown[0] == "Step with an output of shape [5, 3]"
    rates = [f"  {name}: {(each != 0).double().mean():.3f} spikes per neuron" for name, each in step.spikes.items()]
    assert shown[1:] == rates
    many = Step(step.output, {f"relu{i}": torch.zeros(1) for i in range(50)})
    large = State({f"relu{i}": torch.zeros(1) for i in range(50)})
    assert len(repr(many).splitlines()) <= 11
    assert len(repr(large).splitlines()) <= 11
    before = [array.clone() for array in arrays(state)]
    first, second = (network.step(state, images) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(arrays(state), before, strict=True))
    assert torch.equal(first[1].output, second[1].output)
    assert all(torch.equal(*pair) for pair in zip(arrays(first[0]), arrays(second[0]), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first[0].potentials.values(), before, strict=False))


def test_images_may_change_from_step_to_step():
    network, images = converted(networks.Plain), networks.images(2)
    state = network.start(images)
    for frame in (images, torch.zeros_like(images), -images):
        state, _ = network.step(state, frame)
    current = network.graph.by_name["conv"].apply
    expected = sum(current([frame], network.parameters) for frame in (images, torch.zeros_like(images), -images))
    state_of = network.start(images)
    spikes = torch.zeros_like(expected)
    for frame in (images, torch.zeros_like(images), -images):
        state_of, step = network.step(state_of, frame)
        spikes += step.spikes["relu"]
    torch.testing.assert_close(state.potentials["relu"], expected - spikes)


def test_what_does_not_fit_is_named():
    network, images = converted(networks.Plain), networks.images(3)
    state = network.start(images)
    with pytest.raises(ValueError, match=r"\[2, 2, 6, 6\] do not fit the state, started with \[3, 2, 6, 6\]"):
        network.step(state, images[:2])
    with pytest.raises(ValueError, match="steps=0: simulate at least 1"):
        network.start(images, steps=0)
    with pytest.raises(ValueError, match="do not fit the model"):
        network.start(networks.images(3)[:, :1])
    with pytest.raises(ValueError, match="NaN"):
        network.step(state, images * float("nan"))


def test_a_drip_needs_a_length_and_ends_with_it():
    network, images = converted(networks.Plain, initial_potential="drip"), networks.images(3)
    state = network.start(images, steps=2)
    for _ in range(2):
        state, _ = network.step(state, images)
    with pytest.raises(ValueError, match=r"3 time steps: a drip .* steps=2"):
        network.step(state, images)
    with pytest.raises(ValueError, match="say one, such as steps=32"):
        replace(network, steps=None).start(images)
