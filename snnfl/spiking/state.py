"""The state of a network's simulation, and what one time step gives."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import Tensor

from snnfl.config import counted
from snnfl.spiking.maximum import Accumulated
from snnfl.spiking.summary import shortened


@dataclass(repr=False)
class State:
    """What a simulation carries from one time step to the next.

    Attributes:
        potentials: Membrane potentials by spiking layer.
        counts: Spikes so far less those taken back, of neurons that count them.
        maxima: What max poolings remember, by name; nothing before the first step.
        time: Steps taken so far.
        steps: Length of the whole simulation, over which a drip is spread.
        images: Shape of what flows in at each step.
    """

    potentials: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)
    maxima: dict[str, Accumulated] = field(default_factory=dict)
    time: int = 0
    steps: int | None = None
    images: tuple[int, ...] = ()

    def __repr__(self) -> str:
        shapes = [f"  {name}: {' x '.join(map(str, each.shape[1:]))}" for name, each in self.potentials.items()]
        about = f"State after {counted(self.time, 'time step')}, images of shape {[*self.images]}, potentials"
        return "\n".join([about, *shortened(shapes)])

    def copy(self) -> State:
        """Return a state that shares no memory with this one."""
        potentials = {name: potential.clone() for name, potential in self.potentials.items()}
        maxima = {name: Accumulated(*(sums.clone() for sums in pool)) for name, pool in self.maxima.items()}
        counts = {name: count.clone() for name, count in self.counts.items()}
        return replace(self, potentials=potentials, counts=counts, maxima=maxima)


class Step(NamedTuple):
    """What a network gives in one time step.

    Attributes:
        output: Its output, ``[N, classes]``; the mean over the steps that are read is the logits.
        spikes: Spikes of each spiking layer, ``[N, C, *space]``, each worth the layer's threshold.
    """

    output: Tensor
    spikes: dict[str, Tensor]

    def __repr__(self) -> str:
        rates = [f"  {name}: {(each != 0).double().mean():.3f} spikes per neuron" for name, each in self.spikes.items()]
        return "\n".join([f"Step with an output of shape {[*self.output.shape]}", *shortened(rates)])
