from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from snnfl.spiking import neuron
from snnfl.spiking.neuron import integrate_and_fire


def literal(current: Tensor, threshold: Tensor, potential: Tensor) -> tuple[list[float], list[float]]:
    """SNFL equation 5 in plain Python, one neuron and one step at a time."""
    steps, images, channels, space = current.shape
    state = potential.tolist()
    spikes = []
    for t in range(steps):
        for n in range(images):
            for c in range(channels):
                level = threshold[c % len(threshold)].item()
                for j in range(space):
                    state[n][c][j] += current[t, n, c, j].item()
                    fired = state[n][c][j] >= level
                    if fired:
                        state[n][c][j] -= level
                    spikes.append(level if fired else 0.0)
    return spikes, [v for image in state for channel in image for v in channel]


def draw_case(seed: int, per_channel: bool, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    steps, images, channels, space = (int(torch.randint(1, high, (), generator=draw)) for high in (7, 4, 5, 6))
    current = torch.randn(steps, images, channels, space, generator=draw, dtype=torch.float64)
    threshold = torch.rand(channels if per_channel else 1, generator=draw, dtype=torch.float64) + 0.1
    potential = torch.randn(images, channels, space, generator=draw, dtype=torch.float64)
    return current.to(dtype), threshold.to(dtype), potential.to(dtype)


@pytest.mark.parametrize("scan", [neuron._scan_numba, neuron._scan_torch])
@given(seed=st.integers(0, 2**20), per_channel=st.booleans())
def test_scan_equals_the_equation(scan, seed, per_channel):
    current, threshold, potential = draw_case(seed, per_channel)
    expected, final = literal(current, threshold, potential)
    binary_potential = potential.clone()
    spikes = scan(current, threshold, potential, False)
    assert spikes.flatten().tolist() == expected
    assert potential.flatten().tolist() == final
    binary = scan(current, threshold, binary_potential, True)
    assert binary.dtype == torch.uint8
    assert torch.equal(binary.bool(), spikes != 0)
    assert torch.equal(binary_potential, potential)


@given(seed=st.integers(0, 2**20), per_channel=st.booleans())
def test_backends_agree_spike_for_spike_in_float32(seed, per_channel):
    current, threshold, potential = draw_case(seed, per_channel, torch.float32)
    other = potential.clone()
    assert torch.equal(
        neuron._scan_numba(current, threshold, potential, False), neuron._scan_torch(current, threshold, other, False)
    )
    assert torch.equal(potential, other)


@given(seed=st.integers(0, 2**20), cut=st.integers(0, 6))
def test_chunks_of_time_continue_each_other(seed, cut):
    current, threshold, potential = draw_case(seed, per_channel=True)
    whole_potential = potential.clone()
    whole = integrate_and_fire(current, threshold, whole_potential)
    parts = [integrate_and_fire(part, threshold, potential) for part in (current[:cut], current[cut:]) if len(part)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(potential, whole_potential)


def test_charge_is_conserved():
    current, threshold, potential = draw_case(3, per_channel=True)
    charge = potential + current.sum(0)
    spikes = integrate_and_fire(current, threshold, potential)
    torch.testing.assert_close(spikes.sum(0) + potential, charge)


Scan = Callable[..., Tensor]


def cases(device: str) -> list[tuple[Tensor, Tensor, Tensor, bool]]:
    """More neurons than a block, pictures in both layouts, thresholds of both kinds, currents constant in time."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        moving = torch.randn(9, 2, 3, 40, 40, generator=draw, dtype=torch.float64).to(device, dtype)
        longer = torch.promote_types(dtype, torch.float32)
        potential = torch.rand(2, 3, 40, 40, generator=draw, dtype=torch.float64).to(device, longer)
        for current in (
            moving,
            moving.movedim(2, -1).contiguous().movedim(-1, 2),
            moving[:1].expand(9, -1, -1, -1, -1),
        ):
            for start in (potential, potential.contiguous(memory_format=torch.channels_last)):
                for threshold in ([0.7], [0.7, 1.1, 0.9]):
                    level = torch.tensor(threshold, device=device, dtype=dtype)
                    found += [(current, level, start.clone(), binary) for binary in (False, True)]
    return found


def assert_scans_agree(device: str, scan: Scan = integrate_and_fire) -> None:
    for current, threshold, potential, binary in cases(device):
        expected_potential = potential.clone()
        expected = neuron._scan_torch(current, threshold, expected_potential, binary)
        layout = potential.stride()
        spikes = scan(current, threshold, potential, binary=binary)
        assert expected.any()
        assert torch.equal(spikes, expected)
        assert spikes.dtype == expected.dtype
        assert spikes[0].stride() == layout
        assert torch.equal(potential, expected_potential)


def test_every_layout_on_the_cpu():
    assert neuron.BLOCK < 2 * 3 * 40 * 40
    assert_scans_agree("cpu")
    assert "snnfl.spiking.scan_triton" not in sys.modules


def test_loops_compile_where_nothing_can_be_cached():
    """Neither the package's folder nor the user's cache can be written: Numba finds no place."""
    code = (
        "from numba.core import caching; caching.CompileResultCacheImpl._locator_classes = []; "
        "import test_neuron; test_neuron.test_charge_is_conserved(); "
        "import snnfl.conversion.trains, snnfl.spiking.events"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True)


needs_triton = pytest.mark.skipif(
    not neuron._has_triton(), reason="Triton is not installed: PyTorch for CUDA brings it, or pip install triton"
)


@needs_triton
def test_every_layout_by_the_interpreter_of_triton():
    """Runs the CUDA kernel without a GPU; in its own process, for Triton reads the variable when it is imported."""
    code = "import test_neuron; test_neuron.assert_scans_agree('cpu', test_neuron.neuron._scan_triton)"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, env=environment, check=True)


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_every_layout_on_cuda():
    assert_scans_agree("cuda")
    assert "snnfl.spiking.scan_triton" in sys.modules
