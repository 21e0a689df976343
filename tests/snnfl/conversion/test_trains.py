from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from snnfl.conversion import trains
from snnfl.conversion.trains import STEPS, Layer, SpikeTrain
from snnfl.neurons import Neuron, NeuronState, scan

EVERYTHING = slice(None)


def draw_layer(seed: int, per_channel: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw a current, a drive, a threshold and a potential; some are pictures channels last, some have no space."""
    draw = torch.Generator().manual_seed(seed)
    steps, images, channels, side = (int(torch.randint(1, high, (), generator=draw)) for high in (20, 5, 5, 4))
    space = ((), (side,), (side, 2))[seed % 3]
    current = torch.randn(steps * images, channels, *space, generator=draw, dtype=torch.float64)
    potential = torch.randn(images, channels, *space, generator=draw, dtype=torch.float64)
    if len(space) == 2:
        current, potential = (t.contiguous(memory_format=torch.channels_last) for t in (current, potential))
    drive, level = torch.rand(2, channels if per_channel else 1, generator=draw, dtype=torch.float64) + 0.1
    current = current.view(steps, images, *current.shape[1:])
    return current.to(dtype), drive.to(dtype), level.to(dtype), potential.to(dtype)


def chunks(steps: int, length: int) -> list[slice]:
    return [slice(start, min(start + length, steps)) for start in range(0, steps, length)]


@pytest.mark.parametrize("compiled", [True, False])
@given(
    seed=st.integers(0, 2**20),
    per_channel=st.booleans(),
    length=st.sampled_from([1, 2, 4, STEPS]),
    driven=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_what_was_fired_is_replayed(compiled, seed, per_channel, length, driven, dtype):
    current, drive, level, potential = draw_layer(seed, per_channel, dtype)
    axes = (-1, *[1] * (potential.dim() - 2))
    flow = current + drive.view(axes) if driven else current
    expected_potential = potential.clone()
    expected = scan(Neuron(threshold=level), NeuronState(expected_potential), flow)
    train = SpikeTrain.silent(
        len(current), potential, Layer(Neuron(threshold=level), drive if driven else None, potential[:1])
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trains, "runs_compiled", lambda neuron, value: compiled)
        for part in chunks(len(current), length):
            train.fire(EVERYTHING, part.start, current[part], NeuronState(potential))
        found = [train.replay(EVERYTHING, part.start, part.stop) for part in chunks(len(current), length)]
    assert torch.equal(torch.cat(found), expected)
    assert torch.equal(potential, expected_potential)
    torch.testing.assert_close(train.mean(0, len(current)), expected.mean(0))
    torch.testing.assert_close(train.mean(len(current) - 1, len(current)), expected[-1])


@given(seed=st.integers(0, 2**20), cut=st.integers(1, 4))
def test_blocks_of_images_are_apart(seed, cut):
    current, drive, level, potential = draw_layer(seed, True, torch.float64)
    layer = Layer(Neuron(threshold=level), drive, potential[:1])
    whole, parts = (SpikeTrain.silent(len(current), potential, layer) for _ in range(2))
    state = potential.clone()
    for part in chunks(len(current), STEPS):
        whole.fire(EVERYTHING, part.start, current[part], NeuronState(potential))
        for images in chunks(len(state), cut):
            parts.fire(images, part.start, current[part][:, images], NeuronState(state[images]))
            replayed = whole.replay(images, part.start, part.stop)
            assert torch.equal(parts.replay(images, part.start, part.stop), replayed)
    assert torch.equal(parts.bits, whole.bits)
    assert torch.equal(state, potential)


def test_a_constant_current_is_expanded_in_time():
    current = torch.rand(1, 3, 2, 4, 4).contiguous().expand(7, -1, -1, -1, -1)
    level, potential = torch.tensor([0.4, 0.9]), torch.zeros(3, 2, 4, 4)
    train = SpikeTrain.silent(7, potential, Layer(Neuron(threshold=level), None, potential[:1]))
    train.fire(EVERYTHING, 0, current, NeuronState(potential))
    expected = scan(Neuron(threshold=level), NeuronState(torch.zeros(3, 2, 4, 4)), current)
    assert torch.equal(train.replay(EVERYTHING, 0, 7), expected)


def test_a_train_takes_a_bit_for_a_spike():
    like = torch.zeros(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    layer = Layer(Neuron(threshold=torch.ones(1)), None, like[:1])
    assert SpikeTrain.silent(64, like, layer).bits.nbytes == like.numel() * 64 // 8
