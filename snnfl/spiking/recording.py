"""What the neurons of a simulation do at each time step: their spikes and membrane potentials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from snnfl.config import counted, nearest
from snnfl.neurons import Neuron, NeuronState, broadcast, scan
from snnfl.spiking.in_time import accumulating
from snnfl.spiking.summary import shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_RECORDING = 2**30
"""Bytes that a recording takes at most where nothing else is said."""


class Fire(Protocol):
    """Runs the neurons of a layer over some steps, as :func:`snnfl.neurons.scan` does."""

    def __call__(self, layer: str, neuron: Neuron, state: NeuronState, current: Tensor, start: int) -> Tensor:
        """Return the spikes; ``start`` is the first step."""


def run_neurons(layer: str, neuron: Neuron, state: NeuronState, current: Tensor, start: int) -> Tensor:
    """Run the neurons of a layer and keep nothing of it."""
    return scan(neuron, state, current)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What the neurons of some layers did in a simulation of T time steps on N images.

    Attributes:
        spikes: Whether each neuron fired, ``[T, N, C, *space]``, by layer; of neurons that fire in bursts or take
            spikes back, how often (int8). What the next layer reads: :meth:`values`.
        potentials: Membrane potential of each neuron after each step, what a spike is worth taken off, likewise.
        thresholds: ``[1]`` or ``[C]``, by layer.
        logits: Of the images, ``[N, classes]``.
    """

    spikes: Mapping[str, Tensor]
    potentials: Mapping[str, Tensor]
    thresholds: Mapping[str, Tensor]
    logits: Tensor

    def __repr__(self) -> str:
        rows = [
            f"  {name}: {' x '.join(map(str, spikes.shape[2:]))} neurons, {rate:.3f} spikes per neuron and step"
            for (name, spikes), rate in zip(self.spikes.items(), self.rates.values(), strict=True)
        ]
        steps, images = next(iter(self.spikes.values())).shape[:2]
        return "\n".join([f"Recording of {counted(steps, 'time step')}, {counted(images, 'image')}", *shortened(rows)])

    @property
    def rates(self) -> dict[str, float]:
        """Spikes per neuron and time step, by layer, those taken back, too; 0 is a layer that never fires."""
        return {
            name: float((spikes if spikes.dtype == torch.bool else spikes.abs()).mean(dtype=torch.float64))
            for name, spikes in self.spikes.items()
        }

    def values(self, layer: str) -> Tensor:
        """Return what the next layer reads, ``[T, N, C, *space]``: a spike is worth the threshold."""
        (name,) = chosen_layers([*self.spikes], [layer])
        return self.spikes[name] * broadcast(self.thresholds[name], self.spikes[name].shape[1:])

    def raster(self, *, image: int = 0, neurons: int = 100) -> Figure:
        """Draw the spikes of one image: a row for a neuron, a mark for a spike, a panel for a layer.

        Args:
            image: Which one.
            neurons: How many of a layer at most, evenly spaced among all.

        Raises:
            ValueError: For an image or a number of neurons that there isn't.
        """
        from snnfl.spiking.plots import raster_plot

        self._check_image(image)
        if neurons < 1:
            raise ValueError(f"neurons={neurons}: expected at least 1")
        return raster_plot({name: spikes[:, image].flatten(1) for name, spikes in self.spikes.items()}, neurons)

    def membrane(self, layer: str, *, image: int = 0, neurons: Sequence[int] | None = None) -> Figure:
        """Draw the membrane potentials of some neurons of a layer on one image, with threshold and spikes.

        Args:
            layer: A recorded layer.
            image: Which one.
            neurons: Numbers in ``0..C*H*W-1``; by default the three that fire most.

        Raises:
            ValueError: For a layer, an image or a neuron that there isn't.
        """
        from snnfl.spiking.plots import membrane_plot

        (name,) = chosen_layers([*self.spikes], [layer])
        self._check_image(image)
        spikes, potentials = (values[name][:, image].flatten(1) for values in (self.spikes, self.potentials))
        neuron_shape = self.spikes[name].shape[1:]
        threshold = broadcast(self.thresholds[name], neuron_shape).expand(neuron_shape)[0].flatten()
        if neurons is None:
            neurons = spikes.sum(0).argsort(descending=True, stable=True)[:3].tolist()
        for number in neurons or [-1]:
            if not isinstance(number, int) or not 0 <= number < len(threshold):
                raise ValueError(f"neurons={[*neurons]}: {layer} has neurons 0 to {len(threshold) - 1}")
        return membrane_plot(name, {n: (potentials[:, n], spikes[:, n], float(threshold[n])) for n in neurons})

    def _check_image(self, image: int) -> None:
        if not 0 <= image < len(self.logits):
            raise ValueError(f"image={image}: {len(self.logits)} are recorded, numbered from 0")


@dataclass(frozen=True)
class Probe:
    """Records while a simulation runs.

    Attributes:
        spikes: ``[T, N, C, *space]`` by layer, filled as time goes on.
        potentials: Likewise.
    """

    spikes: dict[str, Tensor]
    potentials: dict[str, Tensor]

    @staticmethod
    def of(shadows: Mapping[str, Tensor], images: int, steps: int, max_bytes: int, *, counts: bool = False) -> Probe:
        """Allocate a recording.

        Args:
            shadows: A value of the shape, type and device of each layer's, for one image.
            images: How many.
            steps: Simulation length T.
            max_bytes: Ceiling.
            counts: Whether neurons fire in bursts or take spikes back.

        Raises:
            ValueError: If it doesn't fit, with the bytes and what to do.
        """
        needed = sum(steps * images * value.numel() * (1 + accumulating(value).itemsize) for value in shadows.values())
        if needed > max_bytes:
            raise ValueError(
                f"recording {counted(len(shadows), 'layer')} of {counted(images, 'image')} over "
                f"{counted(steps, 'time step')} takes {needed:,} bytes, "
                f"more than max_bytes={max_bytes:,}; name fewer layers, give fewer images or steps, or raise max_bytes"
            )
        shapes = {name: (steps, images, *value.shape[1:]) for name, value in shadows.items()}
        return Probe(
            {
                name: shadows[name].new_zeros(shape, dtype=torch.int8 if counts else torch.bool)
                for name, shape in shapes.items()
            },
            {name: shadows[name].new_zeros(shape, dtype=accumulating(shadows[name])) for name, shape in shapes.items()},
        )

    def of_images(self, images: slice) -> Probe:
        """Return the part that records some of the images."""
        return Probe(
            {name: spikes[:, images] for name, spikes in self.spikes.items()},
            {name: potentials[:, images] for name, potentials in self.potentials.items()},
        )

    def fire(self, layer: str, neuron: Neuron, state: NeuronState, current: Tensor, start: int) -> Tensor:
        """Run the neurons of a layer, and keep what they do if the layer is recorded.

        Potentials are computed once more, one step after the other, by the reference, which has the same bits.
        """
        if layer not in self.spikes:
            return scan(neuron, state, current)
        now = state._replace(potential=state.potential.clone())
        for step, flow in enumerate(current, start):
            before, (now, fired) = now.total, neuron.step(now, flow)
            self.potentials[layer][step] = now.potential
            if before is None or now.total is None:
                self.spikes[layer][step] = fired != 0
            else:
                self.spikes[layer][step] = now.total - before
        return scan(neuron, state, current)


def chosen_layers(known: Sequence[str], layers: Sequence[str] | None) -> list[str]:
    """Return the layers that are asked for, in the order of the network.

    Raises:
        ValueError: Naming one that isn't known, and the nearest that is.
    """
    if isinstance(layers, str):
        raise ValueError(f"layers={layers!r}: give a list, such as layers=[{layers!r}]")
    for name in layers or ():
        if name not in known:
            raise ValueError(f"{name!r} is no spiking layer that is recorded or could be" + nearest(name, known))
    found = [name for name in known if layers is None or name in layers]
    if not found:
        raise ValueError(f"layers={layers}: there is nothing to record; name at least one of {', '.join(known)}")
    return found
