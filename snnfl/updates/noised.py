"""Updates of which a server learns a noised sum: clients clip, and add their shares of the noise inside the masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from snnfl.config import Config, ConfigError, sampled_clients
from snnfl.masking import Field, FieldError
from snnfl.privacy.clipping import Layout
from snnfl.privacy.noise import LARGEST_VARIANCE, Stream
from snnfl.privacy.skellam import largest, share, steps_of
from snnfl.updates.coordinates import OWN, ann_of, coordinates, in_order, update_of
from snnfl.updates.format import UpdateFormat
from snnfl.updates.summed import Sum, Summed


class NoisySum(Summed):
    """The layout of a clipped and noised vector of coordinates (:mod:`snnfl.updates.coordinates`).

    Each client counts one and tells no metrics, which no noise would cover. Where everybody is known to be is
    :attr:`known`, from which an update differs.

    Args:
        format: Of the updates.
        clients: Most clients of a round.
        shares: Clients whose shares make up the noise: the fewest of which a sum is made.
        norm: To which a client's vector is clipped.
        noise: Multiplier of the noise of the sum.
    """

    known: dict[str, Tensor]

    def __init__(self, format: UpdateFormat, *, clients: int, shares: int, norm: float, noise: float) -> None:
        super().__init__(format, (), clients=clients, examples=1, limit=1.0, follows=True)
        self.shares, self.norm, self.noise = shares, norm, noise

    def _fits(self, length: int) -> Field:
        """Return the smallest ring in which half is left empty by any sum."""
        if (self.noise * steps_of(length)) ** 2 / self.shares > LARGEST_VARIANCE:
            raise ConfigError(
                f"privacy.noise_multiplier={self.noise:g}: a share of the noise is beyond double precision; take a "
                "smaller one, or a larger epsilon"
            )
        needed = 4 * largest(length, self.noise, self.field.clients, self.shares)
        return Field(clients=self.field.clients, bits=32 if needed < 2**32 else 64)

    def at(self, known: Mapping[str, Tensor]) -> NoisySum:
        """Return the layout with what everybody knows, from which the ring and the length follow.

        Raises:
            ConfigError: If double precision isn't enough for the noise of a share; where it is, 64 bits hold a sum.
        """
        self.known = in_order(self.format, known)
        self.field = self._fits(self._layout.size)
        self.length = 2 + self._layout.size
        return self

    @property
    def _layout(self) -> Layout:
        return Layout({name: tuple(array.shape) for name, array in self.known.items()})

    def noised(
        self, update: Mapping[str, Tensor], sent: Mapping[str, Tensor], stream: Stream
    ) -> NDArray[np.unsignedinteger[Any]]:
        """Return a client's vector.

        Args:
            update: In the format.
            sent: What the server had sent.
            stream: Of the client's noise.
        """
        layout = self._layout
        change = layout.vector(coordinates(self.format, update, sent)) - layout.vector(self.known)
        if not np.isfinite(change).all():
            raise FieldError("expected finite values, found NaN or infinity")
        numbers = share(change, self.norm, self.noise, self.shares, stream)
        return np.concatenate([np.array([1, 0], self.field.dtype), numbers.astype(self.field.dtype)])

    def decode(self, total: NDArray[np.unsignedinteger[Any]], sent: Mapping[str, Tensor], clients: int) -> Sum:
        """Read the noised sum of so many clients' vectors, and move :attr:`known` by its mean.

        Raises:
            FieldError: If it is the sum of none.
        """
        if int(total[0]) != clients:
            raise FieldError(f"{clients} clients count {int(total[0])}: one has sent what is no update")
        layout = self._layout
        sums = self.field.signed(total[2:], largest(layout.size, self.noise, clients, self.shares))
        moved = sums * (self.norm / (steps_of(layout.size) * clients))
        self.known = layout.arrays(layout.vector(self.known) + moved)
        state = ann_of(self.format, self.known)
        own = {name for name in self.known if name.startswith(OWN)}
        update = update_of(self.format, self.known)
        network = {
            name: self.known[f"{OWN}{name}"] if name.endswith(".bias") else update[name]
            for name in (each.removeprefix(OWN) for each in own)
        }
        return Sum(state=state, network=network, metrics={}, weight=float(clients), clipped=0)


def noisy_sum(config: Config, format: UpdateFormat, **_: Any) -> NoisySum:
    """Return the layout of a run."""
    privacy = config.privacy
    return NoisySum(
        format,
        clients=sampled_clients(config),
        shares=max(2, config.strategy.minimum_replies),
        norm=1.0 if privacy.clipping_norm is None else privacy.clipping_norm,
        noise=1.0 if privacy.noise_multiplier is None else privacy.noise_multiplier,
    )
