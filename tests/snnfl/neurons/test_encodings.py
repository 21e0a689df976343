"""Encodings against their definitions, written as loops, and snnTorch's spike generators."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from hypothesis import given

from snnfl.neurons.encodings import ENCODINGS, direct, latency, poisson
from snnfl.torchvision_guard import guard

guard()

from snntorch import spikegen  # noqa: E402  (torchvision must be guarded first)


@given(seed=st.integers(0, 2**16), steps=st.integers(1, 12))
def test_latency_is_one_spike_the_earlier_the_larger(seed, steps):
    values = torch.rand(1, 2, 7, generator=torch.Generator().manual_seed(seed))
    spikes = latency(values, steps)
    assert spikes.shape == (steps, 2, 7)
    assert torch.equal(spikes.sum(0), torch.ones(2, 7))
    for sample in range(2):
        low, high = values[0, sample].min(), values[0, sample].max()
        for feature in range(7):
            scaled = (values[0, sample, feature] - low) / (high - low)
            when = torch.round((1 - scaled) * (steps - 1)).int()
            assert spikes[when, sample, feature] == 1


def test_latency_of_a_sample_without_contrast():
    assert torch.equal(latency(torch.ones(1, 1, 3), 4)[3], torch.ones(1, 3))


@given(seed=st.integers(0, 2**16))
def test_delta_is_snntorchs_of_changes(seed):
    values = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(seed))
    found = ENCODINGS.find("delta").encode(values, 6, None)
    expected = spikegen.delta(values, threshold=0.1, padding=True, off_spike=True)
    assert torch.equal(found[1:], expected[1:])


def test_poisson_counts_by_magnitude_and_sign():
    values = torch.tensor([-2.0, -0.5, 0.0, 0.1, 1.0]).view(1, 1, 5)
    spikes = poisson(values, 20_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(spikes.mean(0)[0], torch.tensor([-1, -0.5, 0, 0.1, 1]), atol=0.02, rtol=0)
    sequence = values.expand(3, -1, -1)
    assert poisson(sequence, 7, torch.Generator().manual_seed(0)).shape == (3, 1, 5)


def test_direct_is_constant_in_time():
    values = torch.randn(1, 2, 3)
    assert direct(values, 9) is values
