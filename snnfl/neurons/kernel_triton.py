"""The scan of integrate-and-fire neurons for CUDA, in Triton, which comes with PyTorch for CUDA and with no other."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

triton: Any = importlib.import_module("triton")
tl: Any = importlib.import_module("triton.language")

BLOCK = 256
"""Neurons of one program."""


def scan(threshold: Tensor, amplitude: Tensor, current: Tensor, potential: Tensor, spikes: Tensor, inner: int) -> None:
    """Run the neurons of a layer, as :func:`snnfl.neurons.kernel_numba.scan`, whose arguments these are, contiguous."""
    total = potential.numel()
    stride = 0 if len(current) == 1 else total
    channels = len(threshold)
    with torch.cuda.device_of(current):  # type: ignore[no-untyped-call]
        _scan[(triton.cdiv(total, BLOCK),)](
            threshold, amplitude, current, potential, spikes, len(spikes), stride, total, inner, channels, BLOCK=BLOCK
        )


@triton.jit  # type: ignore[untyped-decorator]
def _scan(
    threshold: Any,
    amplitude: Any,
    current: Any,
    potential: Any,
    spikes: Any,
    steps: Any,
    stride: Any,
    total: Any,
    inner: Any,
    channels: Any,
    BLOCK: tl.constexpr,
) -> None:
    """Each program keeps the potentials of ``BLOCK`` neurons in registers while time runs."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < total
    channel = index // inner % channels
    level = tl.load(threshold + channel, mask=inside)
    spike = tl.load(amplitude + channel, mask=inside)
    v = tl.load(potential + index, mask=inside)
    source, target = current + index, spikes + index
    for _ in range(steps):
        v += tl.load(source, mask=inside)
        fired = v >= level
        v = tl.where(fired, v - level, v)
        tl.store(target, tl.where(fired, spike, tl.zeros_like(spike)), mask=inside)
        source += stride
        target += total
    tl.store(potential + index, v, mask=inside)


def scan_counts(
    threshold: Tensor,
    current: Tensor,
    potential: Tensor,
    count: Tensor,
    spikes: Tensor,
    inner: int,
    how: tuple[bool, int, int],
    worth: bool,
) -> None:
    """Run neurons that may fire several spikes in a step, as :func:`snnfl.neurons.kernel_numba.scan_counts`."""
    total = potential.numel()
    stride = 0 if len(current) == 1 else total
    signed, burst, time = how
    with torch.cuda.device_of(current):  # type: ignore[no-untyped-call]
        _scan_counts[(triton.cdiv(total, BLOCK),)](
            threshold, current, potential, count, spikes, len(spikes), stride, total, inner, len(threshold), time,
            SIGNED=signed, BURST=burst, BOUNDED=time >= 0, WORTH=worth, BLOCK=BLOCK,
        )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _scan_counts(
    threshold: Any,
    current: Any,
    potential: Any,
    count: Any,
    spikes: Any,
    steps: Any,
    stride: Any,
    total: Any,
    inner: Any,
    channels: Any,
    time: Any,
    SIGNED: tl.constexpr,
    BURST: tl.constexpr,
    BOUNDED: tl.constexpr,
    WORTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Each program keeps the potentials and counts of ``BLOCK`` neurons in registers while time runs."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < total
    level = tl.load(threshold + index // inner % channels, mask=inside)
    v = tl.load(potential + index, mask=inside)
    n = tl.load(count + index, mask=inside)
    source, target = current + index, spikes + index
    for step in range(steps):
        v += tl.load(source, mask=inside)
        before = n
        for _ in range(BURST):
            fired = v >= level
            if BOUNDED:
                fired = fired & (n < time + step + 1)
            v = tl.where(fired, v - level, v)
            n = tl.where(fired, n + 1, n)
        if SIGNED:
            for _ in range(BURST):
                back = (v + level < level) & (n > 0)
                v = tl.where(back, v + level, v)
                n = tl.where(back, n - 1, n)
        if WORTH:
            tl.store(target, (n - before).to(tl.float32) * level, mask=inside)  # in the wider of both types
        else:
            tl.store(target, (n - before).to(tl.int8), mask=inside)
        source += stride
        target += total
    tl.store(potential + index, v, mask=inside)
    tl.store(count + index, n, mask=inside)
