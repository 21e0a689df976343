"""A spiking client's update: the network as it was trained, of neurons that fire."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from snnfl.updates.arrays import ArraySpec, ann_specs
from snnfl.updates.plain import Plain, free_names

BETA, THRESHOLD = "beta", "threshold"
"""How arrays of neurons end that are trained: their leak and their threshold (:mod:`snnfl.models.spiking`)."""


class Native(Plain):
    """The exchanged arrays of a network that is trained as a spiking one, in both directions.

    Weights, biases, batch normalisation and recurrent weights are as in a plain update. A learned leak lies in 0..1:
    neurons clip it, so beyond it would be another name for the same neuron, and clients put theirs back
    (:meth:`snnfl.workspace.Workspace.settle`). A learned threshold is positive.

    Args:
        state: A state of the model, for names and shapes.
        neurons: Names of its layers of neurons, those that are read out included.
        private: Names of the arrays that stay on the client.
    """

    kind = "native"

    def __init__(self, state: Mapping[str, Tensor], neurons: tuple[str, ...], *, private: Collection[str] = ()) -> None:
        super().__init__(state, private=private)
        leaks = {name for layer in neurons if (name := f"{layer}.{BETA}") in state}
        self.threshold_names = tuple(name for layer in neurons if (name := f"{layer}.{THRESHOLD}") in state)
        specs = ann_specs({name: array for name, array in state.items() if name not in self.private_names})
        for name in (*leaks, *self.threshold_names):
            specs[name] = ArraySpec(shape=specs[name].shape, values="share" if name in leaks else "positive")
        self.specs = self.sent_specs = specs
        self.weight_names = free_names(specs)
