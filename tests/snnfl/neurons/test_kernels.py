"""Every kernel against the reference, ``Neuron.step``: spike for spike, and in every bit of the potentials."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from snnfl.neurons import KERNELS, Neuron, NeuronState, by_subtraction, kernel_numba, kernels, scan, to_zero

Run = Callable[[Neuron, NeuronState, Tensor, bool], Tensor]


def reference(neuron: Neuron, state: NeuronState, current: Tensor) -> tuple[NeuronState, Tensor]:
    """The spikes of one step after the other, each worth the threshold."""
    found = []
    for flow in current:
        state, spikes = neuron.step(state, flow)
        found.append(spikes)
    return state, torch.stack(found)


def small_case(seed: int, per_channel: bool, dtype: torch.dtype) -> tuple[Neuron, Tensor, Tensor]:
    """Every other pair of seeds in quarters, so that potentials meet thresholds exactly."""
    draw = torch.Generator().manual_seed(seed)
    steps, images, channels, space = (int(torch.randint(1, high, (), generator=draw)) for high in (7, 4, 5, 6))
    current = torch.randn(steps, images, channels, space, generator=draw, dtype=torch.float64)
    threshold = torch.rand(channels if per_channel else 1, generator=draw, dtype=torch.float64) + 0.1
    potential = torch.randn(images, channels, space, generator=draw, dtype=torch.float64)
    if seed // 2 % 2:
        current, threshold, potential = ((value * 4).ceil() / 4 for value in (current, threshold, potential))
    return Neuron(threshold=threshold.to(dtype)), potential.to(dtype), current.to(dtype)


def cases(device: str) -> Iterator[tuple[Neuron, Tensor, Tensor]]:
    """More neurons than a block, pictures in both layouts, thresholds of both kinds, currents constant in time."""
    for seed in range(20):
        for per_channel in (False, True):
            neuron, potential, current = small_case(seed, per_channel, (torch.float32, torch.float64)[seed % 2])
            yield Neuron(threshold=neuron.threshold.to(device)), potential.to(device), current.to(device)
    draw = torch.Generator().manual_seed(0)
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
                    yield Neuron(threshold=torch.tensor(threshold, device=device, dtype=dtype)), start, current


def into_bits(neuron: Neuron, state: NeuronState, current: Tensor, binary: bool) -> Tensor:
    """The kernel that writes bits of a byte, in the signature of the others."""
    images, neurons = len(state.potential), state.potential[0].numel()
    space = state.potential.shape[2:]
    each = neuron.threshold.view(-1, *[1] * len(space)).expand(state.potential.shape[1:]).reshape(-1).contiguous()
    rows = state.potential.reshape(images, neurons).contiguous()
    found = []
    for part in torch.split(current, 5):
        bits = torch.zeros(images, neurons, dtype=torch.uint8)
        flow = part.reshape(len(part), images, neurons).contiguous()
        arrays = (array.numpy() for array in (each, torch.zeros_like(each), flow, rows, bits))
        kernel_numba.scan_to_bits(*arrays, 2)
        found += [bits >> 2 + step & 1 for step in range(len(part))]
    state.potential.copy_(rows.view_as(state.potential))
    spikes = torch.stack(found).view_as(current)
    return torch.empty_like(state.potential.expand_as(current), dtype=torch.uint8 if binary else current.dtype).copy_(
        spikes if binary else spikes * neuron.threshold.view(-1, *[1] * len(space))
    )


def choose(neuron: Neuron, state: NeuronState, current: Tensor, binary: bool) -> Tensor:
    return scan(neuron, state, current, binary=binary)


RUNS: dict[str, Run] = {
    **{name: kernel.run for name, kernel in KERNELS.items()},
    "bits": into_bits,
    "chosen": choose,
}
NUMBAS = ("numba", "bits")
COUNTING = [
    {"signed": True},
    {"burst": 3},
    {"signed": True, "burst": 2},
    {"signed": True, "burst": 3, "two_sided": True},
]


def assert_counts_agree(name: str, device: str = "cpu") -> None:
    """Neurons that fire several times and take spikes back, in two chunks of time."""
    taken_back = bounded = 0
    for number, (plain, start, current) in enumerate(cases(device)):
        neuron = replace(plain, **COUNTING[number % len(COUNTING)])
        if name == "bits" or (name == "numba" and not kernels.runs_compiled(neuron, current)):
            continue
        current = 2 * current
        before = NeuronState(start, total=neuron.no_spikes(start))
        expected_state, expected = reference(neuron, before, current)
        unbounded, _ = reference(replace(neuron, two_sided=False), before, current)
        bounded += not torch.equal(unbounded.total, expected_state.total)
        for binary in (False, True):
            state, cut = NeuronState(start.clone(), total=neuron.no_spikes(start)), len(current) // 2
            parts = [RUNS[name](neuron, state._replace(time=at), part, binary)
                     for at, part in ((0, current[:cut]), (cut, current[cut:])) if len(part)]  # fmt: skip
            spikes = torch.cat(parts)
            level = neuron.threshold.view(-1, *[1] * (start.dim() - 2))
            assert spikes.dtype == (torch.int8 if binary else current.dtype)
            assert torch.equal((spikes * level if binary else spikes).to(current.dtype), expected.to(current.dtype))
            assert torch.equal(state.potential, expected_state.potential)
            assert torch.equal(state.total, expected_state.total)
            assert int(state.total.min()) >= 0
            taken_back += bool((spikes < 0).any())
    assert taken_back > 30
    assert bounded > 5


def assert_agrees(name: str, device: str = "cpu") -> None:
    compared = 0
    for neuron, start, current in cases(device):
        if name in NUMBAS and not kernels.runs_compiled(neuron, current):
            continue
        expected_state, expected = reference(neuron, NeuronState(start), current)
        for binary in (False, True):
            state = NeuronState(start.clone())
            spikes = RUNS[name](neuron, state, current, binary)
            assert spikes.dtype == (torch.uint8 if binary else current.dtype)
            assert torch.equal(spikes, (expected != 0).to(torch.uint8) if binary else expected.to(current.dtype))
            assert torch.equal(state.potential, expected_state.potential)
            if start.dim() == 4:
                assert expected.any()
                assert spikes[0].stride() == start.stride()
            compared += 1
    assert compared >= 100


needs_triton = pytest.mark.skipif(
    not kernels.has_triton(), reason="Triton is not installed: PyTorch for CUDA brings it, or pip install triton"
)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.mark.parametrize(
    ("name", "device"),
    [
        *(("loop", "cpu"), ("numba", "cpu"), ("bits", "cpu"), ("chosen", "cpu")),
        pytest.param("triton", "interpreter", marks=needs_triton),
        pytest.param("triton", "cuda", marks=[needs_triton, needs_cuda]),
        pytest.param("chosen", "cuda", marks=[needs_triton, needs_cuda]),
    ],
)
def test_a_kernel_computes_what_the_reference_does(name, device):
    assert set(KERNELS) == {"loop", "numba", "triton"}, "a new kernel is compared here, too"
    assert kernel_numba.BLOCK < 2 * 3 * 40 * 40
    if device == "interpreter":  # in its own process, for Triton reads the variable when it is imported
        code = "import test_kernels as t; t.assert_agrees('triton'); t.assert_counts_agree('triton')"
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, env=environment, check=True)
        return
    assert_agrees(name, device)
    if name != "bits":
        assert_counts_agree(name, device)
    if device == "cpu":
        assert "snnfl.neurons.kernel_triton" not in sys.modules


@given(
    seed=st.integers(0, 2**20),
    per_channel=st.booleans(),
    leak=st.sampled_from([None, 0.5, 0.9]),
    reset=st.sampled_from([by_subtraction, to_zero]),
)
def test_other_neurons_are_computed_by_the_loop(seed, per_channel, leak, reset):
    neuron, start, current = small_case(seed, per_channel, torch.float64)
    neuron = Neuron(threshold=neuron.threshold, leak=leak, reset=reset)
    expected_state, expected = reference(neuron, NeuronState(start), current)
    state = NeuronState(start.clone())
    assert torch.equal(scan(neuron, state, current), expected)
    assert torch.equal(state.potential, expected_state.potential)


@given(seed=st.integers(0, 2**20), cut=st.integers(0, 6))
def test_chunks_of_time_continue_each_other(seed, cut):
    neuron, start, current = small_case(seed, True, torch.float64)
    whole, state = NeuronState(start.clone()), NeuronState(start)
    expected = scan(neuron, whole, current)
    parts = [scan(neuron, state, part) for part in (current[:cut], current[cut:]) if len(part)]
    assert torch.equal(torch.cat(parts), expected)
    assert torch.equal(state.potential, whole.potential)


@given(seed=st.integers(0, 2**20))
def test_a_total_is_that_of_all_charge_at_once_where_bursts_suffice(seed):
    """Signed neurons end with ``clip(floor(charge / V_th), 0, .)`` spikes, however the charge came."""
    plain, start, current = small_case(seed, True, torch.float64)
    neuron = replace(plain, signed=True, burst=64)
    state = NeuronState(start, total=neuron.no_spikes(start))
    charge = start + current.sum(0)
    scan(neuron, state, current)
    level = plain.threshold.view(-1, 1)
    away = ((charge / level) - (charge / level).round()).abs() > 1e-9
    assert torch.equal(state.total[away], (charge / level).floor().clamp_min(0)[away].int())


def test_charge_is_conserved():
    neuron, potential, current = small_case(3, True, torch.float64)
    charge = potential + current.sum(0)
    spikes = scan(neuron, NeuronState(potential), current)
    torch.testing.assert_close(spikes.sum(0) + potential, charge)


def test_loops_compile_where_nothing_can_be_cached():
    """Neither the package's folder nor the user's cache can be written: Numba finds no place."""
    code = (
        "from numba.core import caching; caching.CompileResultCacheImpl._locator_classes = []; "
        "import test_kernels; test_kernels.test_charge_is_conserved(); "
        "import snnfl.conversion.trains, snnfl.neurons.events"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True)
