"""An ordinary client's update: the ANN as it was trained; and that of a client which sends none."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

from torch import Tensor

from snnfl.config import UpdateKind
from snnfl.training import is_statistic
from snnfl.updates.arrays import ArraySpec, ann_specs
from snnfl.updates.format import UpdateFormat


class Plain(UpdateFormat):
    """The exchanged arrays of the ANN, in both directions (McMahan et al. 2017, algorithm 1).

    Args:
        state: An ANN state of the model, for names and shapes.
        private: Names of the arrays that stay on the client.
        positive: Names of those that are.
    """

    kind: ClassVar[UpdateKind] = "plain"

    def __init__(
        self, state: Mapping[str, Tensor], *, private: Collection[str] = (), positive: Collection[str] = ()
    ) -> None:
        self.private_names = tuple(private)
        specs = ann_specs({n: array for n, array in state.items() if n not in private})
        specs |= {name: ArraySpec(shape=specs[name].shape, values="positive") for name in positive}
        self.specs = self.sent_specs = specs
        self.statistic_names = {name: name for name in self.specs if is_statistic(name)}
        self.weight_names = free_names(specs)

    def encode(self, state: Mapping[str, Tensor], images: Tensor) -> dict[str, Tensor]:
        """Return the state as it is, but for what is private."""
        return {name: array for name, array in state.items() if name not in self.private_names}

    def decode(
        self, received: Mapping[str, Tensor], sent: Mapping[str, Tensor], *, biases: bool | None = None
    ) -> Mapping[str, Tensor]:
        """Return the update as it is."""
        return received


class Unsent(UpdateFormat):
    """Nothing: clients train alone (SNFL section 5.2, SOLO).

    Args:
        own: What a client's update would be, by which it measures its own network.
        state: An ANN state of the model; all of it stays on the client.
    """

    kind = "none"

    def __init__(self, own: UpdateFormat, state: Mapping[str, Tensor]) -> None:
        self.own = own
        self.specs = self.sent_specs = {}
        self.statistic_names = {}
        self.private_names = tuple(state)

    def encode(self, state: Mapping[str, Tensor], images: Tensor) -> dict[str, Tensor]:
        """Return nothing."""
        return {}

    def decode(
        self, received: Mapping[str, Tensor], sent: Mapping[str, Tensor], *, biases: bool | None = None
    ) -> Mapping[str, Tensor]:
        """Return nothing."""
        return {}


def free_names(specs: Mapping[str, ArraySpec]) -> tuple[str, ...]:
    """Return which arrays are trained and may have any value."""
    return tuple(name for name, spec in specs.items() if spec.values == "finite" and not is_statistic(name))
