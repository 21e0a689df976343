"""The scans of trained neurons for CUDA against those for the CPU: in Triton's interpreter, and on a GPU."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from snnfl.neurons import kernel_training as on_cpu
from snnfl.neurons import kernels

RESETS, SURROGATES = (on_cpu.SUBTRACT, on_cpu.ZERO, on_cpu.KEEP), tuple(on_cpu.DERIVATIVES.values())


def assert_agrees(device: str) -> None:
    """Each surrogate with each reset, and the other choices in turn; more neurons than a block."""
    from snnfl.neurons import kernel_triton_training as on_gpu

    choices = itertools.cycle(itertools.product((False, True), repeat=7))
    for reset, derivative in itertools.product(RESETS, SURROGATES):
        for delayed, detached, strict, constant, given, spikes_count, potentials_count in itertools.islice(choices, 5):
            double = derivative % 2 == 0
            compare(
                on_gpu, device, reset, derivative, delayed, detached, strict, constant, given,
                spikes_count or not potentials_count, potentials_count, torch.float64 if double else torch.float32,
            )  # fmt: skip


def compare(on_gpu, device, reset, derivative, delayed, detached, strict, constant, given, of_s, of_p, dtype):
    """Spikes and potentials bit for bit, gradients to rounding."""
    draw = torch.Generator().manual_seed(reset * 10 + derivative)
    steps, neurons = 5, 300
    number = np.float64 if dtype == torch.float64 else np.float32
    leak, threshold, slope = 0.9, 0.7, 2.0

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, dtype=dtype)

    current, before = random(1 if constant else steps, neurons), random(neurons) if given else None
    gradients = [random(steps, neurons) if wanted else None for wanted in (of_s, of_p)]
    rows = [current.view(-1, 1, neurons).numpy(), np.empty((0, 0), number) if before is None else before[None].numpy()]
    spikes, potentials = np.empty((2, steps, 1, neurons), number)
    on_cpu.forward(
        number(leak), number(threshold), reset, delayed, strict, 1, 1, 1, *rows, spikes, potentials
    )  # fmt: skip
    of_current, of_before = np.empty_like(rows[0]), np.empty_like(rows[1])
    of_parameters = np.zeros(2)
    on_cpu.backward(
        number(leak), number(threshold), reset, delayed, detached, strict, derivative, number(slope), True, 1, 1, 1,
        steps, *rows,
        *(np.empty((0, 0, 0), number) if each is None else each.view(steps, 1, neurons).numpy() for each in gradients),
        of_current, of_before, of_parameters,
    )  # fmt: skip

    moved = [None if each is None else each.to(device) for each in (current, before, *gradients)]
    constants = [torch.tensor(each, dtype=dtype, device=device) for each in (leak, threshold)]
    found_spikes, found_potentials = (torch.empty(steps, neurons, dtype=dtype, device=device) for _ in range(2))
    on_gpu.forward(*constants, reset, delayed, strict, *moved[:2], found_spikes, found_potentials)
    assert found_spikes.any()
    assert torch.equal(found_spikes.cpu(), torch.from_numpy(spikes[:, 0]))
    assert torch.equal(found_potentials.cpu(), torch.from_numpy(potentials[:, 0]))
    found = torch.empty_like(moved[0])
    found_before = None if before is None else torch.empty_like(moved[1])
    sums = on_gpu.backward(
        *constants, reset, delayed, detached, strict, derivative, slope, steps, *moved, found, found_before
    )
    close = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(found.cpu(), torch.from_numpy(of_current[:, 0]), **close)
    if found_before is not None:
        torch.testing.assert_close(found_before.cpu(), torch.from_numpy(of_before[0]), **close)
    torch.testing.assert_close(sums.cpu(), torch.from_numpy(of_parameters), rtol=1e-4, atol=1e-2)


needs_triton = pytest.mark.skipif(
    not kernels.has_triton(), reason="Triton is not installed: PyTorch for CUDA brings it, or pip install triton"
)


@needs_triton
def test_in_the_interpreter():
    """In its own process, for Triton reads the variable when it is imported."""
    code = "import test_triton_training; test_triton_training.assert_agrees('cpu')"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, env=environment, check=True)


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_on_a_gpu():
    assert_agrees("cuda")
