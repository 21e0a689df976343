"""Everything that an honest-but-curious server holds of one client in one round, less what it isn't said to know."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from snnfl.config import Config
from snnfl.models import with_default_surrogate
from snnfl.threat.knowledge import Knowledge, ThreatModelError
from snnfl.training import is_statistic, private_biases
from snnfl.updates import UpdateFormat


@dataclass(frozen=True, kw_only=True, eq=False)
class Exchange:
    """What went to a client and came back in one round, by name.

    Attributes:
        server_round: Counted from 1.
        sent: ANN arrays; in an S-run without ``bias_back`` no biases are among them.
        received: Of a plain client its ANN arrays; of an S-client folded weights, calibrated biases, thresholds and
            batch normalisation. Of a quantised upload what the server reads of it.
        rounding: By how much neighbouring codes of a quantised upload differ, by the ANN's array; empty without.
    """

    server_round: int
    sent: Mapping[str, Tensor]
    received: Mapping[str, Tensor]
    rounding: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class PublicImages:
    """Images of the kind that clients have, such as the test split that a server measures accuracy with.

    Attributes:
        inputs: Normalised, ``[M, *input_shape]``.
        labels: ``[M]``, int64; ``None`` where nobody says which classes they show.
    """

    inputs: Tensor
    labels: Tensor | None


@dataclass(frozen=True, kw_only=True, eq=False)
class ServerView:
    """All that an honest-but-curious server holds of one client in one round.

    What the threat model denies isn't here: denied arrays are left out of the exchanges, and the model has no values.
    A simulation's model is shared by server and clients, and may hold the weights and private biases of any of them.

    Attributes:
        model: The architecture, on the meta device; a spiking one has the default surrogate gradient where its own is
            denied.
        input_shape: Of one image, or of one sequence, ``(T, ...)``.
        mean: Of the public normalisation ``x = (pixel - mean) / std`` with pixels in [0, 1]: one value per channel.
        std: As ``mean``.
        exchange: Of the attacked round.
        knowledge: The threat model.
        labels: Private labels ``[N]``, present if and only if ``knowledge.labels``.
        format: Of the client's update.
        initial: Arrays of a client that never trained.
        earlier: Earlier rounds of the same client, in order.
        orders: Numbers of the client's images in the order in which each epoch took them, ``[epochs, images]``, where
            that is known.
        public: Images of no client, to try attacks on and to look at the network with.
        generative_model: Draws images of that kind, from standard normal ``[N, *latent_shape]`` to pixels in [0, 1],
            ``[N, *input_shape]``; ``latent_shape`` is an attribute of it.
        beyond: Options of the local training that no attack repeats, ``key=value`` each (:func:`unrepeated`).
        sequence: Whether a sample's first axis is time.
    """

    model: nn.Module
    input_shape: tuple[int, ...]
    mean: Tensor
    std: Tensor
    exchange: Exchange
    knowledge: Knowledge
    format: UpdateFormat
    labels: Tensor | None = None
    initial: Mapping[str, Tensor] | None = None
    earlier: tuple[Exchange, ...] = ()
    orders: Tensor | None = None
    public: PublicImages | None = None
    generative_model: nn.Module | None = None
    beyond: tuple[str, ...] = ()
    sequence: bool = False

    def __post_init__(self) -> None:
        """Leave out what the threat model denies, so that no attack finds it here.

        Raises:
            ThreatModelError: Naming what contradicts the flags.
        """
        known = self.knowledge
        if self.format.hides_biases and known.biases:
            raise ThreatModelError("biases=True: in an S-run the server has no client's biases; set biases=False")
        if known.labels != (self.labels is not None):
            raise ThreatModelError(f"labels={known.labels}: the view must hold labels if and only if they are known")
        if self.initial is not None and not known.initial_weights:
            raise ThreatModelError("initial_weights=False: the view must not hold the initial weights")
        if self.earlier and not known.earlier_rounds:
            raise ThreatModelError("earlier_rounds=False: the view must not hold earlier rounds")
        if self.orders is not None and not known.batch_order:
            raise ThreatModelError("batch_order=False: the view must not hold the orders of the client's images")
        if self.orders is not None and self.orders.shape != (known.epochs, known.images):
            raise ThreatModelError(
                f"orders of {list(self.orders.shape)}: the client has {known.images} images, and {known.epochs} epochs"
            )
        if self.public is not None and not known.public_images:
            raise ThreatModelError("public_images=False: the view must not hold public images")
        if known.generative_model != (self.generative_model is not None):
            raise ThreatModelError(
                f"generative_model={known.generative_model}: the view must hold one if and only if it is known"
            )
        if not all(parameter.is_meta for parameter in self.model.parameters()):
            object.__setattr__(self, "model", copy.deepcopy(self.model).to("meta"))
        if not known.surrogate:
            object.__setattr__(self, "model", with_default_surrogate(self.model))
        object.__setattr__(self, "exchange", self._granted(self.exchange))
        object.__setattr__(self, "earlier", tuple(self._granted(exchange) for exchange in self.earlier))
        if self.initial is not None:
            object.__setattr__(self, "initial", self._sent(self.initial))

    def _granted(self, exchange: Exchange) -> Exchange:
        """Return an exchange without what is denied.

        An S-update without its statistics is none that weights can be recovered from, so every attack that recovers
        them needs ``update_statistics``. Its biases are calibrated ones under the names of the private ones.
        """
        known, format, secret = self.knowledge, self.format, set[str]()
        if not known.thresholds:
            secret |= set(format.threshold_names)
        if not known.biases and not format.hides_biases:
            secret |= set(private_biases(self.model))
        if known.norm_statistics != "known":
            secret |= set(format.statistic_names.values())
        received = {name: array for name, array in exchange.received.items() if name not in secret}
        return replace(exchange, sent=self._sent(exchange.sent), received=received)

    def _sent(self, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what was sent, or what a client starts from, without what is denied."""
        known = self.knowledge
        secret = set() if self.format.hides_biases or known.biases else set(private_biases(self.model))
        if known.norm_statistics == "unknown":
            secret |= set(filter(is_statistic, arrays))
        return {name: array for name, array in arrays.items() if name not in secret}

    def pixels(self, inputs: Tensor) -> Tensor:
        """Turn normalised inputs ``[..., *input_shape]`` into pixels, clipped to [0, 1]."""
        return (inputs * self._per_channel(self.std) + self._per_channel(self.mean)).clamp(0, 1)

    def inputs(self, pixels: Tensor) -> Tensor:
        """Normalise pixels ``[..., *input_shape]``."""
        return (pixels - self._per_channel(self.mean)) / self._per_channel(self.std)

    def _per_channel(self, values: Tensor) -> Tensor:
        return values.view(-1, *[1] * (len(self.input_shape) - (2 if self.sequence else 1)))


def unrepeated(config: Config, *, normalises: bool) -> tuple[str, ...]:
    """Return the options by which clients train otherwise than attacks repeat it: by plain SGD.

    Args:
        config: Of the run.
        normalises: Whether the model has batch normalisation, whose statistics are those of a micro-batch.
    """
    training = config.training
    found = {
        f"training.optimizer={training.optimizer}": training.optimizer != "sgd",
        f"training.loss={training.loss}": training.loss != "readout",
        f"training.micro_batch={training.micro_batch}": training.micro_batch is not None and normalises,
    }
    return tuple(option for option, differs in found.items() if differs)
