"""A kind of update, as both sides of a federation and its attackers read it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from snnfl.config import ConversionConfig, UpdateKind
from snnfl.spiking import SpikingGraph, SpikingNetwork
from snnfl.updates.arrays import ArraySpec


class UpdateFormat(ABC):
    """What travels between the server and the clients of a run. It holds names and shapes, never values.

    A new kind of update is a subclass that :attr:`snnfl.workspace.Workspace.format` chooses: clients encode by it, the
    server checks and decodes by it, and an audit asks it which of its arrays tell what.

    Attributes:
        kind: Its name.
        hides_biases: Whether what it calls ``<layer>.bias`` isn't the bias that a client trains with.
        needs_individual: Why the server must see each update and not only their sum; ``None`` if a sum is enough.
        specs: What a client sends, by name.
        sent_specs: What the server sends: arrays of the ANN.
        private_names: The ANN's arrays that stay on the client and never travel, in either direction.
        weight_names: Arrays of the ANN that an update tells and a quantised one rounds (:mod:`snnfl.updates.packed`).
        threshold_names: Which of ``specs`` are thresholds, first layer first.
        statistic_names: Name of each running statistic in the ANN, and in ``specs``.
        graph: Structure of the spiking network in an update; ``None`` if there is none.
        conversion: How that network was made and is simulated; ``None`` if there is none.
    """

    kind: ClassVar[UpdateKind]
    hides_biases: ClassVar[bool] = False
    needs_individual: ClassVar[str | None] = None
    specs: Mapping[str, ArraySpec]
    sent_specs: Mapping[str, ArraySpec]
    private_names: tuple[str, ...] = ()
    weight_names: tuple[str, ...] = ()
    threshold_names: tuple[str, ...] = ()
    statistic_names: Mapping[str, str]
    graph: SpikingGraph | None = None
    conversion: ConversionConfig | None = None

    @abstractmethod
    def encode(self, state: Mapping[str, Tensor], images: Tensor) -> dict[str, Tensor]:
        """Return what leaves the client.

        Args:
            state: The trained ANN, private arrays included, on the device of ``images``.
            images: Normalised calibration images of the client, ``[N, *input_shape]``.
        """

    @abstractmethod
    def decode(
        self, received: Mapping[str, Tensor], sent: Mapping[str, Tensor], *, biases: bool | None = None
    ) -> Mapping[str, Tensor]:
        """Return the ANN's arrays that an update tells, under the ANN's names.

        Args:
            received: A checked update.
            sent: What the server had sent, for what an update doesn't tell.
            biases: Whether to infer the biases that an update hides; ``None``: as the run's server does.
        """

    def rebuilt(self, rest: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the update of which :meth:`decode` gives some arrays of the ANN.

        Args:
            rest: The update's other arrays.
            state: Those of :attr:`weight_names`, as in the ANN.
        """
        return {**rest, **state}

    def deployed(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters that the server's spiking network computes with, of aggregated ones."""
        return dict(parameters)

    def server_network(self, parameters: Mapping[str, Tensor]) -> SpikingNetwork | None:
        """Return the spiking network of the aggregated arrays of updates; ``None`` if they are of none."""
        return None
