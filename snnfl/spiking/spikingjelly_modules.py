"""Modules with a state, for networks of spikingjelly's neurons; needs spikingjelly."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from snnfl.neurons import broadcast
from snnfl.spiking.export import optional_library
from snnfl.spiking.graph import MaxPool
from snnfl.spiking.maximum import Accumulated, gate
from snnfl.torchvision_guard import guard

guard()
base: Any = optional_library("spikingjelly.activation_based.base", "spikingjelly>=2.0")


class Start(base.MemoryModule):  # type: ignore[misc]
    """Adds the membrane potential before the first step, ``[1]`` or ``[C]``, to the first current after a reset."""

    potential: Tensor
    begun: bool

    def __init__(self, potential: Tensor) -> None:
        super().__init__()
        self.register_buffer("potential", potential.clone())
        self.register_memory("begun", False)

    def single_step_forward(self, current: Tensor) -> Tensor:
        """Take a current ``[N, C, *space]``."""
        begun, self.begun = self.begun, True
        return current if begun else current + broadcast(self.potential, current.shape)

    def multi_step_forward(self, currents: Tensor) -> Tensor:
        """Take the currents of consecutive steps, ``[T, N, C, *space]``."""
        begun, self.begun = self.begun, True
        if begun:
            return currents
        started = currents.clone()
        started[0] += broadcast(self.potential, currents.shape[1:])
        return started


class Maximum(base.MemoryModule):  # type: ignore[misc]
    """A max pooling over time, :func:`snnfl.spiking.maximum.gate`."""

    total: Tensor | float
    largest: Tensor | float

    def __init__(self, node: MaxPool) -> None:
        super().__init__()
        self.node = node
        for name in Accumulated._fields:
            self.register_memory(name, 0.0)

    def single_step_forward(self, value: Tensor) -> Tensor:
        """Take a value ``[N, C, *space]``."""
        return self.multi_step_forward(value[None])[0]

    def multi_step_forward(self, values: Tensor) -> Tensor:
        """Take the values of consecutive steps, ``[T, N, C, *space]``."""
        before = None
        if isinstance(self.total, Tensor) and isinstance(self.largest, Tensor):
            before = Accumulated(self.total, self.largest)
        passed, (self.total, self.largest) = gate(self.node, values, before)
        return passed
