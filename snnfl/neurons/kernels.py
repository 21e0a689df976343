"""Neurons over consecutive time steps, by the fastest kernel that computes them.

======  =======  =====================================================================================
kernel  device   neurons
======  =======  =====================================================================================
numba   CPU      of converted networks in float32 and float64, :mod:`snnfl.neurons.kernel_numba`
triton  CUDA     likewise, where Triton is installed, :mod:`snnfl.neurons.kernel_triton`
loop    any      any: the reference, :meth:`~snnfl.neurons.dynamics.Neuron.step` after step
======  =======  =====================================================================================

All agree spike for spike and in every bit of the potentials: ``tests/snnfl/neurons/test_kernels.py``.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from snnfl.neurons import kernel_numba
from snnfl.neurons.dynamics import Neuron, NeuronState


def scan(neuron: Neuron, state: NeuronState, current: Tensor, *, binary: bool = False) -> Tensor:
    """Run the neurons of one layer over consecutive time steps.

    Args:
        neuron: Their parameters.
        state: Before the first step; updated in place to that after the last, so that a simulation may go on in chunks
            of time. Spikes take its memory format. It may be of a longer type than the current.
        current: Input current, shape ``[T, N, C, *space]``. One that is constant in time may be expanded.
        binary: Return spikes as uint8 0 or 1, or as int8 numbers of neurons that count them, not as ``current``'s type
            with the threshold as amplitude.

    Returns:
        Spikes, of the shape of ``current``.
    """
    kernel = next(kernel for kernel in KERNELS.values() if kernel.takes(neuron, current))
    return kernel.run(neuron, state, current, binary)


@dataclass(frozen=True)
class Kernel:
    """One way to compute a scan.

    Attributes:
        takes: Tells whether it computes these neurons on this current.
        run: Computes what :func:`scan` describes.
    """

    takes: Callable[[Neuron, Tensor], bool]
    run: Callable[[Neuron, NeuronState, Tensor, bool], Tensor]


def runs_compiled(neuron: Neuron, value: Tensor) -> bool:
    """Tell whether Numba's kernels compute these neurons, on arrays of a value's device and type."""
    taken = value.device.type == "cpu" and value.dtype in (torch.float32, torch.float64)
    return taken and (neuron.integrates_and_fires or neuron.integrates_and_counts)


def counted_type(neuron: Neuron) -> torch.dtype:
    """Return the type of numbers of spikes."""
    return torch.int8 if neuron.counts else torch.uint8


@functools.cache
def has_triton() -> bool:
    """Tell whether Triton is installed; PyTorch brings it along for CUDA alone."""
    return importlib.util.find_spec("triton") is not None


def _loop(neuron: Neuron, state: NeuronState, current: Tensor, binary: bool) -> Tensor:
    like = state.potential.expand(len(current), *state.potential.shape)
    spikes = torch.empty_like(like, dtype=counted_type(neuron) if binary else current.dtype)
    now = state
    for step, flow in enumerate(current):
        before, (now, fired) = now, neuron.step(now, flow)
        if binary and before.total is not None and now.total is not None:
            spikes[step] = now.total - before.total
        else:
            spikes[step] = fired != 0 if binary else fired
    state.potential.copy_(now.potential)
    if state.total is not None and now.total is not None:
        state.total.copy_(now.total)
    return spikes


def _numba(neuron: Neuron, state: NeuronState, current: Tensor, binary: bool) -> Tensor:
    arrays, inner, spikes = _in_memory_order(neuron, state, current, binary)
    level, worth, drives, potential, out, *count = (array.numpy() for array in arrays)
    if count:
        how = _how(neuron, state)
        kernel_numba.scan_counts(level, drives, potential, count[0], out, inner, how, not binary)
    else:
        kernel_numba.scan(level, worth, drives, potential, out, inner)
    return spikes


def _triton(neuron: Neuron, state: NeuronState, current: Tensor, binary: bool) -> Tensor:
    from snnfl.neurons import kernel_triton  # Triton isn't everywhere

    (level, worth, drives, potential, out, *count), inner, spikes = _in_memory_order(neuron, state, current, binary)
    if count:
        how = _how(neuron, state)
        kernel_triton.scan_counts(level, drives, potential, count[0], out, inner, how, not binary)
    else:
        kernel_triton.scan(level, worth, drives, potential, out, inner)
    return spikes


def _how(neuron: Neuron, state: NeuronState) -> tuple[bool, int, int]:
    """Return the options of neurons that count, as :func:`snnfl.neurons.kernel_numba.scan_counts` takes them."""
    return neuron.signed, neuron.burst, state.time if neuron.two_sided else -1


KERNELS: dict[str, Kernel] = {
    "numba": Kernel(runs_compiled, _numba),
    "triton": Kernel(
        lambda neuron, current: (
            (neuron.integrates_and_fires or neuron.integrates_and_counts)
            and current.device.type == "cuda"
            and has_triton()
        ),
        _triton,
    ),
    "loop": Kernel(lambda neuron, current: True, _loop),
}
"""Kernels by name, the faster ones first."""


def _in_memory_order(
    neuron: Neuron, state: NeuronState, current: Tensor, binary: bool
) -> tuple[list[Tensor], int, Tensor]:
    """View everything in the order in which the membrane potentials lie in memory.

    Returns:
        The arguments of :func:`snnfl.neurons.kernel_numba.scan`, behind them the counts of neurons that count, and what
        it will have written, in the shape of ``current``. A current that is constant in time stays one step.
    """
    threshold, states = neuron.threshold, [state.potential]
    if neuron.counts:
        if state.total is None:
            raise ValueError("neurons that count their spikes need the count so far: start from Neuron.at_rest")
        states.append(state.total)
    drives = current[:1] if current.stride(0) == 0 else current
    amplitude = torch.ones_like(threshold, dtype=counted_type(neuron)) if binary else threshold
    channels_last = not state.potential.is_contiguous()
    if channels_last:
        drives, states = drives.movedim(2, -1), [each.movedim(1, -1) for each in states]
    potential, *counts = states
    spikes = torch.empty(len(current), *potential.shape, dtype=amplitude.dtype, device=current.device)
    inner = 1 if channels_last else potential[0, 0].numel()
    rows = [drives.contiguous().flatten(2), potential.view(len(potential), -1), spikes.flatten(2)]
    rows += [count.view(len(count), -1) for count in counts]
    return [threshold, amplitude, *rows], inner, spikes.movedim(-1, 2) if channels_last else spikes
