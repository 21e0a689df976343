"""The last layers of a spiking network as one function: neurons, the output layer that reads them, output neurons.

The spikes are never written, nor is their gradient: an output layer of ten classes takes longer to read and write them
at all steps than to compute with them. The weights of neurons that fire are added up one after the other, so that the
last digits of a sum may differ from those of a dense product.

What PyTorch multiplies afterwards lies in memory of its own, which is aligned: NumPy's may lie otherwise in every
process, and a product's order of sums may depend on that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from snnfl.neurons import scans
from snnfl.neurons.dynamics import Neuron
from snnfl.neurons.kernel_normalised import BLOCK
from snnfl.neurons.kernel_rows import NARROW
from snnfl.neurons.looped import fuses
from snnfl.neurons.unrolled import unroll


@dataclass(frozen=True)
class Head:
    """The last layers, or some of them.

    Attributes:
        neuron: The neurons' parameters, which may be trained.
        steps: Time steps.
        weight: Of the output layer, which reads their spikes: ``[outputs, features]``.
        bias: Of the output layer, ``[outputs]``.
        reader: Output neurons' parameters, which may be trained; ``None``: what flows into them is wanted.
        potentials: Whether their mean potentials are wanted, and not their rates.
    """

    neuron: Neuron
    steps: int
    weight: Tensor
    bias: Tensor | None
    reader: Neuron | None = None
    potentials: bool = False

    def takes(self, current: Tensor) -> bool:
        """Tell whether the compiled scans compute this of such a current, outside of ``torch.func``'s transforms."""
        return (
            not torch._C._are_functorch_transforms_active()
            and current.dim() == 3
            and current.device.type == "cpu"
            and current.dtype == self.weight.dtype
            and len(self.weight) <= NARROW
            and current.shape[2] == self.weight.shape[1] <= BLOCK  # compiled loops don't look at bounds
            and fuses(self.neuron, current)
            and (self.reader is None or fuses(self.reader, current))
        )

    def apply(self, current: Tensor) -> Tensor:
        """Run all from rest.

        Args:
            current: Of the neurons, ``[T, N, features]``, or ``[1, N, features]``, constant in time.

        Returns:
            What the output layer gives, ``[T, N, outputs]``, or its neurons' mean over time, ``[N, outputs]``.
        """
        reader = (None, None) if self.reader is None else (self.reader.leak, self.reader.threshold)
        found: Tensor = _Head.apply(  # type: ignore[no-untyped-call]
            self, current, self.weight, self.bias, self.neuron.leak, self.neuron.threshold, *reader
        )
        return found

    def layer_by_layer(self, current: Tensor) -> Tensor:
        """Return the same by one function after the other, which can be differentiated as often as one likes."""
        flows = current.expand(self.steps, *current.shape[1:])
        outputs = functional.linear(unroll(self.neuron, flows).spikes, self.weight, self.bias)
        if self.reader is None:
            return outputs
        spikes, potentials = unroll(self.reader, outputs, potentials=self.potentials)
        return (potentials if self.potentials else spikes).mean(0)


class _Head(torch.autograd.Function):
    """:meth:`Head.apply`."""

    @staticmethod
    def forward(
        ctx: Any,
        head: Head,
        current: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *parameters: Tensor | float | None,
    ) -> Tensor:
        ctx.save_for_backward(current, weight)
        ctx.head, drive = head, current.detach().contiguous().numpy()
        ctx.numbers = [1.0 if value is None else float(value) for value in parameters]
        ctx.shapes = [value.shape if isinstance(value, Tensor) else None for value in parameters]
        leak, threshold, reader_leak, reader_threshold = ctx.numbers
        classes, features = weight.shape
        columns = np.zeros((features + 1, NARROW), drive.dtype)
        columns[:features, :classes] = weight.detach().numpy().T
        if bias is not None:
            columns[features, :classes] = bias.detach().numpy()
        outputs = current.new_empty(head.steps, current.shape[1], classes)
        scans.forward(head.neuron, leak, threshold, drive, outputs.numpy(), weight=columns)
        if head.reader is None:
            return outputs
        ctx.outputs = outputs.numpy().reshape(head.steps, 1, -1)
        spikes, potentials = np.empty((2, *ctx.outputs.shape), drive.dtype)
        scans.forward(head.reader, reader_leak, reader_threshold, ctx.outputs, spikes, potentials=potentials)
        total = np.add.reduce(potentials if head.potentials else spikes)
        return torch.from_numpy((total / total.dtype.type(head.steps)).reshape(outputs.shape[1:]))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        head, (current, weight) = ctx.head, ctx.saved_tensors
        if torch.is_grad_enabled():  # these are to be differentiated again
            return _layer_by_layer(head, current, gradient)
        leak, threshold, *of_reader = ctx.numbers
        needed, of_numbers = ctx.needs_input_grad, np.zeros(2)
        of_outputs = gradient.contiguous().numpy()
        if head.reader is not None:
            of_outputs, of_numbers = _behind(head, head.reader, of_reader, ctx.outputs, of_outputs, any(needed[6:]))
        drive, (classes, features) = current.contiguous().numpy(), weight.shape
        of_current = torch.empty_like(current, memory_format=torch.contiguous_format)
        of_weight = torch.zeros(features + 1, NARROW, dtype=current.dtype)
        of_neuron = scans.backward(
            head.neuron,
            leak,
            threshold,
            drive,
            of_current.numpy(),
            head.steps,
            of_spikes=of_outputs,
            weight=weight.contiguous().numpy(),
            of_weight=of_weight.numpy(),
            learned=any(needed[4:6]),
        )
        return (
            None,
            of_current,
            of_weight[:features, :classes].T.contiguous(),
            of_weight[features, :classes] if needed[3] else None,
            *(
                weight.new_full(shape, value) if learned else None
                for value, shape, learned in zip((*of_neuron, *of_numbers), ctx.shapes, needed[4:], strict=True)
            ),
        )


def _layer_by_layer(head: Head, current: Tensor, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients as autograd has them of :meth:`Head.layer_by_layer`."""
    neurons = [neuron for neuron in (head.neuron, head.reader) if neuron is not None]
    parameters = [value for neuron in neurons for value in (neuron.leak, neuron.threshold)]
    inputs = enumerate((current, head.weight, head.bias, *parameters))
    some = {index: value for index, value in inputs if isinstance(value, Tensor) and value.requires_grad}
    gradients = torch.autograd.grad(head.layer_by_layer(current), list(some.values()), gradient, create_graph=True)
    found = dict(zip(some, gradients, strict=True))
    return None, *(found.get(index) for index in range(7))


def _behind(
    head: Head, reader: Neuron, numbers: list[float], outputs: NDArray[Any], gradient: NDArray[Any], learned: bool
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the gradients by what flows into output neurons, ``[T, N, outputs]``, and by their leak and threshold."""
    leak, threshold = numbers
    of_each, of_outputs = np.empty_like(outputs), np.empty_like(outputs)
    of_each[:] = gradient.reshape(-1) / gradient.dtype.type(head.steps)
    of_numbers = scans.backward(
        reader,
        leak,
        threshold,
        outputs,
        of_outputs,
        head.steps,
        of_spikes=None if head.potentials else of_each,
        of_potentials=of_each if head.potentials else None,
        learned=learned,
    )
    return of_outputs.reshape(head.steps, *gradient.shape), of_numbers
