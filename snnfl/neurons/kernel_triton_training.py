"""The scans of :mod:`snnfl.neurons.kernel_training` for CUDA, in Triton; PyTorch pools what they give.

A program keeps the potentials of its neurons in registers while time runs. Floor in float32: 8 bytes for each neuron
and step forward, 20 backward, which writes the potentials once and reads them.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

triton: Any = importlib.import_module("triton")
tl: Any = importlib.import_module("triton.language")

BLOCK = 256
"""Neurons of one program."""


def forward(
    leak: Tensor,
    threshold: Tensor,
    reset: int,
    delayed: bool,
    strict: bool,
    current: Tensor,
    before: Tensor | None,
    spikes: Tensor,
    potentials: Tensor | None,
) -> None:
    """Run neurons as :func:`snnfl.neurons.kernel_training.forward`.

    Args:
        leak: Part of the potential that is left after a step; shape ``[]``, on the device, as the next: to read them
            the processor would wait for the GPU at each layer.
        threshold: ``V_th``; shape ``[]``.
        reset: One of the kinds.
        delayed: Whether it comes with the next step.
        strict: Whether neurons fire above the threshold alone.
        current: Shape ``[T, M]``, or ``[1, M]`` if it is constant in time; contiguous, as all others.
        before: Potentials before the first step, ``[M]``; ``None`` for zeros.
        spikes: Shape ``[T, M]``; written.
        potentials: Shape ``[T, M]``; written unless ``None``.
    """
    steps, neurons = spikes.shape
    with _device_of(current):
        _forward[(triton.cdiv(neurons, BLOCK),)](
            current,
            spikes if before is None else before,
            spikes,
            spikes if potentials is None else potentials,
            torch.stack((leak, threshold)),
            steps,
            neurons if len(current) > 1 else 0,
            neurons,
            RESET=reset,
            DELAYED=delayed,
            STRICT=strict,
            GIVEN=before is not None,
            KEEP=potentials is not None,
            BLOCK=BLOCK,
            enable_fp_fusion=False,  # or neurons near the threshold would fire that elsewhere don't
        )


def backward(
    leak: Tensor,
    threshold: Tensor,
    reset: int,
    delayed: bool,
    detached: bool,
    strict: bool,
    derivative: int,
    slope: float,
    steps: int,
    current: Tensor,
    before: Tensor | None,
    of_spikes: Tensor | None,
    of_potentials: Tensor | None,
    of_current: Tensor,
    of_before: Tensor | None,
) -> Tensor:
    """Run the derivatives of :func:`forward` backwards in time, as :func:`snnfl.neurons.kernel_training.backward`.

    Args:
        leak: As in :func:`forward`, like the next four.
        threshold: ``V_th``.
        reset: One of the kinds.
        delayed: Whether it comes with the next step, and without a gradient.
        detached: Whether one that isn't delayed passes no gradient on from its spikes.
        strict: Whether neurons fire above the threshold alone.
        derivative: Number of the surrogate gradient.
        slope: Its slope.
        steps: ``T``.
        current: Shape ``[T or 1, M]``.
        before: Potentials before the first step, ``[M]``.
        of_spikes: Gradient by the spikes, ``[T, M]``; ``None`` for none.
        of_potentials: Gradient by the potentials, ``[T, M]``; ``None`` for none.
        of_current: Gradient by the current, of its shape; written.
        of_before: Gradient by the potentials before the first step, ``[M]``; written unless ``None``.

    Returns:
        Gradients by leak and threshold, ``[2]`` in float64.
    """
    neurons = current.shape[1]
    spikes, potentials = (torch.empty(steps, neurons, dtype=current.dtype, device=current.device) for _ in range(2))
    forward(leak, threshold, reset, delayed, strict, current, before, spikes, potentials)
    programs = triton.cdiv(neurons, BLOCK)
    sums = torch.empty(programs, 2, dtype=torch.float64, device=current.device)
    with _device_of(current):
        _backward[(programs,)](
            potentials,
            potentials if before is None else before,
            potentials if of_spikes is None else of_spikes,
            potentials if of_potentials is None else of_potentials,
            of_current,
            potentials if of_before is None else of_before,
            sums,
            torch.stack((leak, threshold, torch.full_like(leak, slope))),
            steps,
            neurons,
            RESET=reset,
            DELAYED=delayed,
            DETACHED=detached,
            STRICT=strict,
            DERIVATIVE=derivative,
            GIVEN=before is not None,
            SPIKES=of_spikes is not None,
            POTENTIALS=of_potentials is not None,
            SUMMED=len(current) == 1,
            BEFORE=of_before is not None,
            BLOCK=BLOCK,
        )
    return sums.sum(0)


def _device_of(value: Tensor) -> Any:
    return torch.cuda.device_of(value)  # type: ignore[no-untyped-call]


@triton.jit  # type: ignore[untyped-decorator]
def _fire(u: Any, threshold: Any, STRICT: tl.constexpr) -> Any:
    if STRICT:  # noqa: SIM108  (Triton compiles a branch of a constant)
        fired = u > threshold
    else:
        fired = u >= threshold
    return fired.to(u.dtype)


@triton.jit  # type: ignore[untyped-decorator]
def _forward(
    current: Any,
    before: Any,
    spikes: Any,
    potentials: Any,
    constants: Any,
    steps: Any,
    stride: Any,
    total: Any,
    RESET: tl.constexpr,
    DELAYED: tl.constexpr,
    STRICT: tl.constexpr,
    GIVEN: tl.constexpr,
    KEEP: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < total
    kind = spikes.dtype.element_ty
    leak, threshold = tl.load(constants), tl.load(constants + 1)
    u = tl.zeros([BLOCK], dtype=kind)
    if GIVEN:
        u = tl.load(before + index, mask=inside)
    fired = tl.zeros([BLOCK], dtype=kind)
    if DELAYED:
        fired = _fire(u, threshold, STRICT)
    source, target, kept = current + index, spikes + index, potentials + index
    for _ in range(steps):
        drive = tl.load(source, mask=inside)
        if RESET == 2:
            u = drive + leak * u
        elif RESET == 1:
            u = drive + leak * (u * (1 - fired))
        elif DELAYED:
            u = drive + leak * u - fired * threshold
        else:
            u = drive + leak * (u - fired * threshold)
        fired = _fire(u, threshold, STRICT)
        tl.store(target, fired, mask=inside)
        if KEEP:
            tl.store(kept, u, mask=inside)
        source += stride
        target += total
        kept += total


@triton.jit  # type: ignore[untyped-decorator]
def _differentiate(u: Any, threshold: Any, slope: Any, DERIVATIVE: tl.constexpr) -> Any:
    x = u - threshold
    if DERIVATIVE == 0:
        root = 1 + slope * tl.abs(x)
        found = 1 / (root * root)
    elif DERIVATIVE == 1:
        angle = 1.5707963267948966 * slope * x
        found = slope / 2 / (1 + angle * angle)
    elif DERIVATIVE == 2:
        tail = tl.exp(-slope * tl.abs(x))
        found = slope * tail / ((1 + tail) * (1 + tail))
    elif DERIVATIVE == 3:
        found = slope * tl.exp(-tl.abs(x - 1))
    elif DERIVATIVE == 4:
        found = slope * tl.maximum(1 - slope * tl.abs(x), 0)
    elif DERIVATIVE == 5:
        found = tl.where(x < 0, slope, -slope)
    elif DERIVATIVE == 7:
        found = 0.3 * slope * tl.maximum(1 - slope * tl.abs(x), 0)
    else:
        found = tl.zeros_like(x) + 1
    return found.to(u.dtype)


@triton.jit  # type: ignore[untyped-decorator]
def _backward(
    potentials: Any,
    before: Any,
    of_spikes: Any,
    of_potentials: Any,
    of_current: Any,
    of_before: Any,
    sums: Any,
    constants: Any,
    steps: Any,
    total: Any,
    RESET: tl.constexpr,
    DELAYED: tl.constexpr,
    DETACHED: tl.constexpr,
    STRICT: tl.constexpr,
    DERIVATIVE: tl.constexpr,
    GIVEN: tl.constexpr,
    SPIKES: tl.constexpr,
    POTENTIALS: tl.constexpr,
    SUMMED: tl.constexpr,
    BEFORE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < total
    kind = potentials.dtype.element_ty
    leak, threshold, slope = tl.load(constants), tl.load(constants + 1), tl.load(constants + 2)
    last = tl.zeros([BLOCK], dtype=tl.int64) + (steps - 1)
    last = last * total + index
    charged, given, also, target = potentials + last, of_spikes + last, of_potentials + last, of_current + last
    first = tl.zeros([BLOCK], dtype=kind)
    if GIVEN:
        first = tl.load(before + index, mask=inside, other=0)
    carry = tl.zeros([BLOCK], dtype=kind)
    total_current = tl.zeros([BLOCK], dtype=kind)
    of_leak = tl.zeros([BLOCK], dtype=tl.float64)
    of_threshold = tl.zeros([BLOCK], dtype=tl.float64)
    u = tl.load(charged, mask=inside, other=0)
    for step in range(steps):
        derivative = _differentiate(u, threshold, slope, DERIVATIVE)
        fired = _fire(u, threshold, STRICT)
        through = derivative
        if DETACHED:
            through = tl.zeros_like(derivative)
        if (not DELAYED) and RESET == 0:
            of_threshold += (carry * (threshold * through - fired)).to(tl.float64)
            carry = carry * (1 - threshold * through)
        if (not DELAYED) and RESET == 1:
            of_threshold += (carry * u * through).to(tl.float64)
            carry = carry * (1 - fired - u * through)
        if SPIKES:
            arrived = tl.load(given, mask=inside, other=0)
            carry += arrived * derivative
            of_threshold -= (arrived * derivative).to(tl.float64)
        if POTENTIALS:
            carry += tl.load(also, mask=inside, other=0)
        if SUMMED:
            total_current += carry
        else:
            tl.store(target, carry, mask=inside)
        charged -= total
        given -= total
        also -= total
        target -= total
        earlier = tl.zeros([BLOCK], dtype=tl.int32) + step + 1 < steps
        previous = tl.load(charged, mask=inside & earlier, other=0)
        previous = tl.where(earlier, previous, first)
        late = _fire(previous, threshold, STRICT)
        if not DELAYED:
            late = tl.where(earlier, late, tl.zeros_like(late))
        if RESET == 0:
            if DELAYED:
                of_threshold -= (carry * late).to(tl.float64)
                of_leak += (carry * previous).to(tl.float64)
            else:
                of_leak += (carry * (previous - late * threshold)).to(tl.float64)
        elif RESET == 1:
            of_leak += (carry * previous * (1 - late)).to(tl.float64)
        else:
            of_leak += (carry * previous).to(tl.float64)
        carry = carry * leak
        if DELAYED and RESET == 1:
            carry = carry * (1 - late)
        u = previous
    if SUMMED:
        tl.store(of_current + index, total_current, mask=inside)
    if BEFORE:
        tl.store(of_before + index, carry, mask=inside)
    zero = tl.zeros([BLOCK], dtype=tl.float64)
    tl.store(sums + 2 * tl.program_id(0), tl.sum(tl.where(inside, of_leak, zero)))
    tl.store(sums + 2 * tl.program_id(0) + 1, tl.sum(tl.where(inside, of_threshold, zero)))
