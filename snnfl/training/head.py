"""The last layers of spiking networks, which are trained as one function."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from snnfl.models import SpikingModel, SpikingNeurons
from snnfl.models.over_time import over_time
from snnfl.models.swapped import is_observed, swapped
from snnfl.neurons.head import Head


def head_at_once(modules: Iterable[nn.Module]) -> AbstractContextManager[None]:
    """Let spiking models among modules compute their last layers by :class:`snnfl.neurons.head.Head`, meanwhile.

    That is so where it takes these layers as they are.
    """
    return swapped(modules, {SpikingModel: _HeadAtOnce})


class _HeadAtOnce(SpikingModel):
    """A spiking model that doesn't write the spikes which its output layer reads."""

    def currents(self, inputs: Tensor) -> Tensor:
        return self._at_once(inputs, lambda currents: currents)

    def forward(self, inputs: Tensor) -> Tensor:
        kind = self.readout.kind
        if kind not in ("mean_potential", "rate") or is_observed(self.readout):
            return super().forward(inputs)
        reader = self.readout.neurons.neuron
        return self._at_once(inputs, self.readout, reader=reader, potentials=kind == "mean_potential")

    def _at_once(self, inputs: Tensor, behind: Callable[[Tensor], Tensor], **options: Any) -> Tensor:
        """Compute a :class:`Head` of these options, and all layers before it; else all layers and what follows."""
        values, body = self.encode(inputs), self.body
        if type(body) is not nn.Sequential or len(body) < 2:
            return behind(body(values))
        layers: list[Any] = list(body)
        *before, neurons, output = layers
        for layer in before:
            values = layer(values)
        if isinstance(values, Tensor) and _are_plain(neurons, output):
            steps = neurons.steps if len(values) == 1 else len(values)
            head = Head(neurons.neuron, steps, output.weight, output.bias, **options)
            if head.takes(values):
                return head.apply(values)
        return behind(output(neurons(values)))


def _are_plain(neurons: Any, output: Any) -> bool:
    """Tell whether these are neurons and a linear layer as they come, and nobody looks at what they compute."""
    plain = type(neurons) is SpikingNeurons and type(output) is over_time(nn.Linear)
    return bool(plain and neurons.pool == 1 and not output.short) and not any(map(is_observed, (neurons, output)))
