"""Neurons over consecutive time steps as a function that can be differentiated.

======  =======  ================================================================================================
path    device   neurons
======  =======  ================================================================================================
fused   CPU,     leaky ones with one threshold, any reset and a surrogate of :mod:`snnfl.neurons.surrogates`, in
        CUDA     float32 and float64: one scan forward and one backward, :mod:`snnfl.neurons.kernel_training`, or
                 :mod:`snnfl.neurons.kernel_triton_training` where Triton is installed
loop    any      any: :meth:`~snnfl.neurons.dynamics.Neuron.step` after step, differentiated by autograd
======  =======  ================================================================================================

Both agree spike for spike and in every bit of the potentials; their gradients agree to rounding. Second derivatives
take the loop, whatever the first ones took: ``tests/snnfl/neurons/test_unrolled.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snnfl.neurons import kernel_training, scans
from snnfl.neurons.dynamics import Neuron
from snnfl.neurons.looped import RESETS, How, fuses, loop, pooled, scalar, spike_of
from snnfl.neurons.order import Order


class Unrolled(NamedTuple):
    """What neurons did over time.

    Attributes:
        spikes: Shape ``[T, N, C, *space]``; pooled if that was asked for.
        potentials: Those at which neurons fired or didn't, before a reset that isn't delayed: ``[T, N, C, *space]``;
            empty unless asked for.
    """

    spikes: Tensor
    potentials: Tensor


def unroll(
    neuron: Neuron,
    current: Tensor,
    steps: int | None = None,
    *,
    before: Tensor | None = None,
    potentials: bool = False,
    pool: int = 1,
) -> Unrolled:
    """Run the neurons of one layer from rest, or from given potentials; gradients flow through all of it.

    Args:
        neuron: Their parameters, which may be trained.
        current: Shape ``[T, N, C, *space]``; or ``[N, C, *space]``, constant in time, with ``steps``.
        steps: Time steps of a constant current.
        before: Potentials before the first step, ``[N, C, *space]``; ``None``: zero.
        potentials: Whether to return potentials.
        pool: Side of the squares over which spikes of images are averaged; 1: none. As ``nn.AvgPool2d(pool)`` behind
            the neurons, but whole spike trains are never written.

    Returns:
        Spikes and potentials, in the layout of the current.
    """
    if pool > 1 and (current.device.type != "cpu" or min(current.shape[-2:]) < pool):  # PyTorch says what is wrong
        trains, found = unroll(neuron, current, steps, before=before, potentials=potentials)
        return Unrolled(pooled(trains, pool), found)
    arguments = (current, neuron.leak, neuron.threshold, before)
    how = How(neuron, steps, potentials, pool)
    if not fuses(neuron, current):
        return Unrolled(*loop(*arguments, how))
    leak, threshold = scalar(1.0 if neuron.leak is None else neuron.leak, current), scalar(neuron.threshold, current)
    function = _Fused if torch._C._are_functorch_transforms_active() else _FusedAtOnce
    return Unrolled(*function.apply(current, leak, threshold, before, how))  # type: ignore[no-untyped-call]


class _Fused(torch.autograd.Function):
    """:func:`loop` by the compiled scans."""

    @staticmethod
    def forward(
        current: Tensor, leak: Tensor, threshold: Tensor, before: Tensor | None, how: How
    ) -> tuple[Tensor, Tensor]:
        drive = current if how.steps is None else current.unsqueeze(0)
        order = Order(drive, how.pool)
        steps = len(current) if how.steps is None else how.steps
        spikes = order.empty(steps, drive, pooled=True)
        potentials = order.empty(steps if how.potentials else 0, drive)
        if current.is_cuda:
            from snnfl.neurons import kernel_triton_training  # Triton isn't everywhere

            kernel_triton_training.forward(
                leak,
                threshold,
                RESETS[how.neuron.reset],
                how.neuron.delayed,
                spike_of(how.neuron).strict,
                order.flat(drive),
                None if before is None else order.flat(before.unsqueeze(0))[0],
                order.flat(spikes),
                order.flat(potentials) if how.potentials else None,
            )
            return spikes, potentials if how.potentials else current.new_empty(0)
        scans.forward(
            how.neuron,
            leak.item(),
            threshold.item(),
            order.rows(drive),
            order.rows(spikes, pooled=True),
            before=None if before is None else order.rows(before.unsqueeze(0))[0],
            potentials=order.rows(potentials) if how.potentials else None,
            pool=how.pool,
            inner=order.inner,
            height=order.height,
        )
        return spikes, potentials if how.potentials else current.new_empty(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.how = inputs[-1]
        ctx.save_for_backward(*inputs[:-1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, of_spikes: Tensor | None, of_potentials: Tensor | None) -> tuple[Tensor | None, ...]:
        current, leak, threshold, before = ctx.saved_tensors
        if not ctx.how.potentials:
            of_potentials = None
        learned = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        again = torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
        differentiate = _FusedBackward.apply if again else _FusedBackward.forward
        found = differentiate(current, leak, threshold, before, of_spikes, of_potentials, ctx.how, learned)
        return *found[:3], None if before is None else found[3], None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        if in_dims[1:4] == (None, None, None):
            axis = 0 if arguments[-1].steps is not None else 1
            current = _folded(arguments[0], in_dims[0], axis)
            spikes, potentials = _Fused.apply(current, *arguments[1:])  # type: ignore[no-untyped-call]
            kept = arguments[-1].potentials
            return (
                _unfolded(spikes, info.batch_size),
                _unfolded(potentials, info.batch_size) if kept else potentials,
            ), (
                0,
                0 if kept else None,
            )
        return _one_by_one(_Fused, info.batch_size, in_dims, arguments)


class _FusedAtOnce(torch.autograd.Function):
    """:class:`_Fused` without what ``torch.func`` asks of it, which would take as long as a small scan."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = _Fused.forward(*inputs)
        _Fused.setup_context(ctx, inputs, output)
        return output

    backward = staticmethod(_Fused.backward)


class _FusedBackward(torch.autograd.Function):
    """The gradients of :func:`loop` by the compiled scans; their own derivatives are autograd's."""

    @staticmethod
    def forward(
        current: Tensor,
        leak: Tensor,
        threshold: Tensor,
        before: Tensor | None,
        of_spikes: Tensor | None,
        of_potentials: Tensor | None,
        how: How,
        learned: bool,
    ) -> tuple[Tensor, ...]:
        drive = current if how.steps is None else current.unsqueeze(0)
        order, spike = Order(drive, how.pool), spike_of(how.neuron)
        of_current = order.empty(len(drive), drive)
        of_before = order.empty(0 if before is None else 1, drive)
        if current.is_cuda:
            from snnfl.neurons import kernel_triton_training  # Triton isn't everywhere

            of_leak, of_threshold = kernel_triton_training.backward(
                leak,
                threshold,
                RESETS[how.neuron.reset],
                how.neuron.delayed,
                how.neuron.detached,
                spike.strict,
                kernel_training.DERIVATIVES[spike.derivative],
                spike.slope,
                len(current) if how.steps is None else how.steps,
                order.flat(drive),
                None if before is None else order.flat(before.unsqueeze(0))[0],
                None if of_spikes is None else order.flat(of_spikes),
                None if of_potentials is None else order.flat(of_potentials),
                order.flat(of_current),
                None if before is None else order.flat(of_before)[0],
            ).to(leak)
            return (
                of_current if how.steps is None else of_current[0],
                of_leak.clone(),
                of_threshold.clone(),
                of_before[0] if before is not None else current.new_empty(0),
            )
        of_parameters = scans.backward(
            how.neuron,
            leak.item(),
            threshold.item(),
            order.rows(drive),
            order.rows(of_current),
            len(current) if how.steps is None else how.steps,
            of_spikes=None if of_spikes is None else order.rows(of_spikes, pooled=True),
            of_potentials=None if of_potentials is None else order.rows(of_potentials),
            before=None if before is None else order.rows(before.unsqueeze(0))[0],
            of_before=None if before is None else order.rows(of_before)[0],
            learned=learned,
            pool=how.pool,
            inner=order.inner,
            height=order.height,
        )
        return (
            of_current if how.steps is None else of_current[0],
            torch.full_like(leak, of_parameters[0]),
            torch.full_like(threshold, of_parameters[1]),
            of_before[0] if before is not None else current.new_empty(0),
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:6])
        ctx.how, _ = inputs[6:]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        given = [index for index, value in enumerate(saved) if value is not None]
        function = _gradients_by_loop(given, ctx.how)
        _, pull_back = torch.func.vjp(function, *(saved[index] for index in given))  # type: ignore[misc]  # or three
        found: list[Tensor | None] = [None] * (len(saved) + 2)
        for index, value in zip(given, pull_back(gradients), strict=True):
            found[index] = value
        return tuple(found)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        current, leak, threshold, before, of_spikes, of_potentials, how, learned = arguments
        together = in_dims[0] is not None and in_dims[1:4] == (None, None, None) and before is None and not learned
        if together and of_spikes is not None and in_dims[4] is not None and of_potentials is None:
            axis = 0 if how.steps is not None else 1
            drive, of_spikes = _folded(current, in_dims[0], axis), _folded(of_spikes, in_dims[4], 1)
            found = _FusedBackward.apply(drive, leak, threshold, None, of_spikes, None, how, False)  # type: ignore[no-untyped-call]
            return (_unfolded(found[0], info.batch_size, axis), *found[1:]), (0, None, None, None)
        return _one_by_one(_FusedBackward, info.batch_size, in_dims, arguments)


for _forward in (_Fused.forward, _FusedBackward.forward):  # PyTorch asks at each call, as slowly as a small scan
    vars(_forward)["__signature__"] = inspect.signature(_forward)


def _gradients_by_loop(given: list[int], how: How) -> Callable[..., tuple[Tensor, ...]]:
    """Return what :class:`_FusedBackward` computes, of those of its tensors that are given, as PyTorch's operations."""

    def gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
        values: list[Any] = [None] * 6
        for index, value in zip(given, tensors, strict=True):
            values[index] = value
        *inputs, of_spikes, of_potentials = values

        def outputs(
            current: Tensor, leak: Tensor, threshold: Tensor, before: Tensor | None = None
        ) -> tuple[Tensor, Tensor]:
            return loop(current, leak, threshold, before, how)

        some = [value for value in inputs if value is not None]
        found, pull_back = torch.func.vjp(outputs, *some)  # type: ignore[misc]  # three with has_aux alone
        wanted = pull_back(
            tuple(
                torch.zeros_like(value) if gradient is None else gradient
                for value, gradient in zip(found, (of_spikes, of_potentials), strict=True)
            )
        )
        return wanted if len(wanted) == 4 else (*wanted, wanted[0].new_empty(0))

    return gradients


def _folded(values: Tensor, batch: int, axis: int) -> Tensor:
    """Make the examples of a batch further samples: neurons that share their parameters don't act on each other.

    Args:
        values: With the batch as axis ``batch``.
        batch: That axis.
        axis: That of the samples, without it.
    """
    return values.movedim(batch, axis).flatten(axis, axis + 1)


def _unfolded(values: Tensor, size: int, axis: int = 1) -> Tensor:
    """Undo :func:`_folded`, with the batch in front."""
    shape = values.shape
    return values.reshape(*shape[:axis], size, shape[axis] // size, *shape[axis + 1 :]).movedim(axis, 0)


def _one_by_one(
    function: Any, size: int, in_dims: tuple[Any, ...], arguments: tuple[Any, ...]
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Apply a function to each example of a batch, which may differ in parameters, and stack what it returns."""
    found = [
        function.apply(
            *(
                value if axis is None else value.select(axis, index)
                for value, axis in zip(arguments, in_dims, strict=True)
            )
        )
        for index in range(size)
    ]
    return tuple(map(torch.stack, zip(*found, strict=True))), (0,) * len(found[0])
