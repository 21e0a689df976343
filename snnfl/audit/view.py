"""Everything that an honest-but-curious server holds of one client in one round, and what it is said to know."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from torch import Tensor, nn

from snnfl.config import ConversionConfig
from snnfl.spiking import SpikingGraph
from snnfl.training import private_biases

Fact: TypeAlias = Literal[
    "architecture",
    "loss",
    "labels",
    "images",
    "batch_size",
    "epochs",
    "learning_rate",
    "optimizer",
    "norm_mode",
    "update_statistics",
    "norm_statistics",
    "biases",
    "thresholds",
    "initial_weights",
    "earlier_rounds",
]
"""What a threat model grants or denies."""

STATISTICS = ("running_mean", "running_var")
"""How the names of an ANN's running statistics end."""

SPIKING_STATISTICS = ("mean", "var")
"""Their names in an S-update, after that of the batch normalisation."""


class ThreatModelError(ValueError):
    """An attack needs what its threat model denies, or a view contradicts its threat model; one line."""


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """The threat model: what the attacker knows beside the arrays. ``None`` and ``False`` mean "unknown".

    Attributes:
        architecture: The model's structure.
        loss: That clients minimise cross-entropy.
        labels: The private labels. No server has them: results are diagnostic.
        images: How many images the client trained on; ``num-examples`` of a reply says so.
        batch_size: Images per step.
        epochs: Passes over the images.
        learning_rate: Of this round.
        momentum: Of SGD, whose buffer starts anew each round.
        weight_decay: L2 coefficient.
        norm_mode: How the client's batch normalisation ran. Training runs in ``"train"``; ``"eval"`` is a diagnosis.
        norm_statistics: Which running statistics are there: those of the update, too (``"known"``, the fact
            ``update_statistics``), only those that the server sent (``"estimated"``), or none, as if they never
            travelled.
        biases: The client's own biases. In an S-run the server never has them.
        thresholds: Firing thresholds of an S-update.
        initial_weights: What a client that never trained starts from. One seed gives it to all, the server included.
        earlier_rounds: Earlier updates of the same client.
    """

    architecture: bool = True
    loss: bool = True
    labels: bool = False
    images: int | None = None
    batch_size: int | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    momentum: float | None = 0.0
    weight_decay: float | None = 0.0
    norm_mode: Literal["train", "eval"] | None = "train"
    norm_statistics: Literal["known", "estimated", "unknown"] = "known"
    biases: bool = True
    thresholds: bool = True
    initial_weights: bool = True
    earlier_rounds: bool = True

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ThreatModelError: Naming the flag and its value.
        """
        for name in ("images", "batch_size", "epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ThreatModelError(f"{name}={value}: expected at least 1, or None for unknown")
        for name, low in (("learning_rate", math.ulp(0.0)), ("momentum", 0.0), ("weight_decay", 0.0)):
            value = getattr(self, name)
            if value is not None and not low <= value < math.inf:
                above = "more than" if low else "at least"
                raise ThreatModelError(f"{name}={value}: expected a finite number of {above} 0, or None for unknown")

    @property
    def facts(self) -> frozenset[Fact]:
        """What is granted."""
        granted: dict[Fact, bool] = {
            "architecture": self.architecture,
            "loss": self.loss,
            "labels": self.labels,
            "images": self.images is not None,
            "batch_size": self.batch_size is not None,
            "epochs": self.epochs is not None,
            "learning_rate": self.learning_rate is not None,
            "optimizer": self.momentum is not None and self.weight_decay is not None,
            "norm_mode": self.norm_mode is not None,
            "update_statistics": self.norm_statistics == "known",
            "norm_statistics": self.norm_statistics != "unknown",
            "biases": self.biases,
            "thresholds": self.thresholds,
            "initial_weights": self.initial_weights,
            "earlier_rounds": self.earlier_rounds,
        }
        return frozenset(fact for fact, known in granted.items() if known)

    @property
    def steps(self) -> int | None:
        """SGD steps of the round, or ``None`` where the flags don't tell."""
        if self.images is None or self.batch_size is None or self.epochs is None:
            return None
        return self.epochs * math.ceil(self.images / self.batch_size)

    @property
    def diagnoses(self) -> tuple[str, ...]:
        """Why a result under these flags is an upper bound, not a realistic setting; empty where it is realistic."""
        reasons = ("the labels are given",) if self.labels else ()
        return (*reasons, "the client's batch normalisation ran in eval mode") if self.norm_mode == "eval" else reasons


@dataclass(frozen=True, kw_only=True, eq=False)
class Exchange:
    """What went to a client and came back in one round, by name.

    Attributes:
        server_round: Counted from 1.
        sent: ANN arrays; in an S-run without ``bias_back`` no biases are among them.
        received: Of a plain client its ANN arrays; of an S-client folded weights, calibrated biases, thresholds and
            batch normalisation.
    """

    server_round: int
    sent: Mapping[str, Tensor]
    received: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class ServerView:
    """All that an honest-but-curious server holds of one client in one round.

    What the threat model denies isn't here: denied arrays are left out of the exchanges, and the model has no values.
    A simulation's model is shared by server and clients, and may hold the weights and private biases of any of them.

    Attributes:
        model: The architecture, on the meta device.
        input_shape: Of one image.
        mean: Of the public normalisation ``x = (pixel - mean) / std`` with pixels in [0, 1]: one value per channel.
        std: As ``mean``.
        exchange: Of the attacked round.
        knowledge: The threat model.
        labels: Private labels ``[N]``, present if and only if ``knowledge.labels``.
        graph: Structure of the spiking network in an S-run, ``None`` in a plain one.
        conversion: How clients of an S-run convert.
        initial: Arrays of a client that never trained.
        earlier: Earlier rounds of the same client, in order.
    """

    model: nn.Module
    input_shape: tuple[int, ...]
    mean: Tensor
    std: Tensor
    exchange: Exchange
    knowledge: Knowledge
    labels: Tensor | None = None
    graph: SpikingGraph | None = None
    conversion: ConversionConfig | None = None
    initial: Mapping[str, Tensor] | None = None
    earlier: tuple[Exchange, ...] = ()

    def __post_init__(self) -> None:
        """Leave out what the threat model denies, so that no attack finds it here.

        Raises:
            ThreatModelError: Naming what contradicts the flags.
        """
        known, spiking = self.knowledge, self.graph is not None
        if spiking and known.biases:
            raise ThreatModelError("biases=True: in an S-run the server has no client's biases; set biases=False")
        if spiking != (self.conversion is not None):
            raise ThreatModelError("a view of an S-run has both a graph and a conversion, one of a plain run neither")
        if known.labels != (self.labels is not None):
            raise ThreatModelError(f"labels={known.labels}: the view must hold labels if and only if they are known")
        if self.initial is not None and not known.initial_weights:
            raise ThreatModelError("initial_weights=False: the view must not hold the initial weights")
        if self.earlier and not known.earlier_rounds:
            raise ThreatModelError("earlier_rounds=False: the view must not hold earlier rounds")
        if not all(parameter.is_meta for parameter in self.model.parameters()):
            object.__setattr__(self, "model", copy.deepcopy(self.model).to("meta"))
        object.__setattr__(self, "exchange", self._granted(self.exchange))
        object.__setattr__(self, "earlier", tuple(self._granted(exchange) for exchange in self.earlier))
        if self.initial is not None:
            object.__setattr__(self, "initial", self._sent(self.initial))

    def _granted(self, exchange: Exchange) -> Exchange:
        """Return an exchange without what is denied.

        An S-update without its statistics is none that weights can be recovered from, so every attack that recovers
        them needs ``update_statistics``. Its biases are calibrated ones under the names of the private ones.
        """
        known, secret = self.knowledge, set[str]()
        if self.graph is not None:
            norms = [node.norm for node in self.graph.affines if node.norm is not None]
            layers = [node.name for node in self.graph.spikes]
            secret |= set() if known.thresholds else {f"{layer}.threshold" for layer in layers}
            moved = {f"{norm}.{field}" for norm in norms for field in SPIKING_STATISTICS}
        else:
            secret |= set() if known.biases else set(private_biases(self.model))
            moved = {name for name in exchange.received if name.endswith(STATISTICS)}
        secret |= set() if known.norm_statistics == "known" else moved
        received = {name: array for name, array in exchange.received.items() if name not in secret}
        return replace(exchange, sent=self._sent(exchange.sent), received=received)

    def _sent(self, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what was sent, or what a client starts from, without what is denied."""
        known = self.knowledge
        withheld = () if self.spiking or known.biases else private_biases(self.model)
        secret = STATISTICS if known.norm_statistics == "unknown" else ()
        return {name: array for name, array in arrays.items() if name not in withheld and not name.endswith(secret)}

    @property
    def spiking(self) -> bool:
        """Whether the update is a spiking network's."""
        return self.graph is not None

    def pixels(self, inputs: Tensor) -> Tensor:
        """Turn normalised inputs ``[..., *input_shape]`` into pixels, clipped to [0, 1]."""
        return (inputs * self._per_channel(self.std) + self._per_channel(self.mean)).clamp(0, 1)

    def inputs(self, pixels: Tensor) -> Tensor:
        """Normalise pixels ``[..., *input_shape]``."""
        return (pixels - self._per_channel(self.mean)) / self._per_channel(self.std)

    def _per_channel(self, values: Tensor) -> Tensor:
        return values.view(-1, *[1] * (len(self.input_shape) - 1))
