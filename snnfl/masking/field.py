"""Numbers as elements of a ring, so that sums of masked ones are exact.

A value ``x`` in ``[-limit, limit]`` of a client of weight ``0 < w <= 1`` becomes the integer

``q = round(w x L / limit) mod 2^b``  with  ``L = floor(2^(b-2) / n)`` levels for at most ``n`` clients.

The sum of ``n`` of them lies within ``n L <= 2^(b-2)``: half of the ring stays empty, so that a sum which somebody has
put anything at all into is found there, in each element with probability 1/2 (:meth:`Field.signed`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_CLIENTS = 2**20
"""Of 32 bits, a client has 10 then; more clients make nothing but noise of rounding."""


class FieldError(ValueError):
    """A sum that no clients can have made, or numbers that cannot be encoded; says which and why."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """The ring of integers modulo ``2^bits`` and the levels that each client has in it.

    Args:
        clients: Most summands of a sum.
        bits: 32 or 64, the size of an unsigned integer that wraps by itself.

    Raises:
        FieldError: For other sizes, or a number of clients that isn't in ``1 .. MOST_CLIENTS``.

    >>> field = Field(clients=2)
    >>> total = field.encode(np.array([0.5, -3.0]), limit=1.0) + field.encode(np.array([0.25, 0.0]), limit=1.0)
    >>> field.decode(total, limit=1.0, clients=2)
    array([ 0.75, -1.  ])
    """

    clients: int
    bits: int = 32

    def __post_init__(self) -> None:
        if self.bits not in (32, 64):
            raise FieldError(f"bits={self.bits}: expected 32 or 64")
        if not 1 <= self.clients <= MOST_CLIENTS:
            raise FieldError(f"clients={self.clients}: expected 1 to {MOST_CLIENTS}")

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements, of the same byte order on every machine."""
        return np.dtype(f"<u{self.bits // 8}")

    @property
    def _signed(self) -> np.dtype[Any]:
        return np.dtype(f"<i{self.bits // 8}")

    @property
    def levels(self) -> int:
        """Largest magnitude of a client's element, ``L``."""
        return (1 << self.bits - 2) // self.clients

    def encode(
        self,
        values: NDArray[np.floating[Any]],
        *,
        limit: float | NDArray[np.floating[Any]],
        weight: float = 1.0,
        draw: np.random.Generator | None = None,
    ) -> NDArray[np.unsignedinteger[Any]]:
        """Clip, weigh and round.

        Args:
            values: Any shape.
            limit: To whose magnitude values are clipped; a number or one per value.
            weight: Of the client, in 0..1.
            draw: Rounds up with the probability of the remainder, so that errors are zero on average; ``None`` rounds
                to the nearest.

        Returns:
            Elements of the ring, of the shape of ``values``.

        Raises:
            FieldError: For a value that isn't finite, or a weight outside 0..1.
        """
        if not 0 <= weight <= 1:
            raise FieldError(f"weight={weight:g}: expected 0 to 1")
        scaled = np.divide(values, limit, dtype=np.float64)
        largest = max(float(scaled.max(initial=0.0)), -float(scaled.min(initial=0.0)))  # NaN if any is
        if not np.isfinite(largest):
            raise FieldError("expected finite values, found NaN or infinity")
        if largest > 1:
            np.clip(scaled, -1.0, 1.0, out=scaled)
        scaled *= weight * self.levels
        if draw is None:
            np.rint(scaled, out=scaled)
        else:  # what is added to a whole number may round up to the next
            scaled += draw.random(scaled.shape)
            np.floor(scaled, out=scaled)
            np.clip(scaled, -self.levels, self.levels, out=scaled)
        encoded: NDArray[np.unsignedinteger[Any]] = scaled.astype(self._signed).view(self.dtype)
        return encoded

    def signed(self, total: NDArray[np.unsignedinteger[Any]], most: int) -> NDArray[np.signedinteger[Any]]:
        """Read sums as signed integers.

        Args:
            total: Sums of elements.
            most: Largest magnitude that those can have who made them.

        Raises:
            FieldError: If one is larger: somebody's element was none of the field, or a mask is left in the sum.
        """
        found = total.view(self._signed)
        # Minus the smallest number is itself: compared without an absolute value.
        beyond = (found > most) | (found < -most)
        if beyond.any():
            raise FieldError(
                f"{int(beyond.sum())} of {total.size} sums are larger than clients can make them: one of the clients "
                "has sent what is no masked update"
            )
        return found

    def decode(
        self, total: NDArray[np.unsignedinteger[Any]], *, limit: float | NDArray[np.floating[Any]], clients: int
    ) -> NDArray[np.float64]:
        """Return the sum ``Σ w x`` of so many clients.

        Raises:
            FieldError: As :meth:`signed`.
        """
        return self.signed(total, clients * self.levels) * (np.asarray(limit, dtype=np.float64) / self.levels)

    def error(self, limit: float, *, clients: int, stochastic: bool = False) -> float:
        """Return the bound on the error of :meth:`decode` for values within the limit.

        Half a step for each client, ``limit / 2L``, or a whole one where rounding is stochastic.
        """
        return clients * limit / self.levels * (1.0 if stochastic else 0.5)
