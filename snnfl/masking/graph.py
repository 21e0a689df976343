"""Who shares masks with whom, and how many shares give a seed (Bell et al. 2020, section 3).

A complete graph costs each client a key agreement and a mask per other client. A random *k*-regular graph keeps the
guarantees for a number of neighbours that grows with the logarithm of the clients: clients in a random circle, each
with the ``k/2`` next on either side. That is Harary's graph: it stays in one piece when any ``k - 1`` of them are gone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

SECRECY_BITS, CORRECTNESS_BITS = 40, 10
"""Probabilities ``2^-40`` that a client isn't hidden, and ``2^-10`` that a round fails, within what is tolerated."""

FEWEST_CLIENTS = 3
"""Of two, each knows the other's update from the sum."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Numbers of a round's graph.

    Attributes:
        neighbours: Of each client.
        threshold: How many of them must tell their share for a seed to be known; and how many clients, of a client and
            its neighbours, must have sent a masked update before it tells any.
    """

    neighbours: int
    threshold: int


@lru_cache(maxsize=256)
def layout(clients: int, tolerance: float) -> Layout:
    """Return the smallest graph that hides and recovers what is asked.

    Of ``n`` clients ``C = ceil(tolerance n)`` may collude with the server, and as many, ``D``, may drop out. Let ``c``
    and ``d`` be the most of them among a client's ``k`` neighbours (hypergeometric, but with the probabilities above,
    for all clients at once). Then the threshold ``t = floor((k + 1 + c) / 2) + 1``, and ``k`` is the smallest even
    number with

    - ``t <= k - d``: enough neighbours are left to tell their shares of a client that is gone;
    - ``2 t > k + 1 + c``: even a server that lies about who is gone cannot get both seeds of a client. For one it
      needs shares of ``t`` neighbours, for the other that the client and ``t - 1`` neighbours say that it is there, and
      honest ones say one thing alone. It holds by the choice of ``t``, and ``t > c`` follows;
    - the honest clients that are left hang together: ``k > C + D``, or else two arcs of ``k / 2`` neighbouring clients,
      all gone, are that improbable.

    If none is smaller than the complete graph, it is that. Of three clients only one of both can be had, dropouts or a
    lying server with an accomplice; then dropouts come first, and ``2 t > k + 1`` is left: no lie without accomplices.

    Args:
        clients: That are in the round, at least 3.
        tolerance: Part that may collude, and part that may drop out, below 1/3.

    Raises:
        ValueError: If there are fewer than three clients.
    """
    if clients < FEWEST_CLIENTS:
        raise ValueError(f"{clients} clients: a sum hides nothing of fewer than {FEWEST_CLIENTS}")
    colluding = absent = math.ceil(Fraction(str(tolerance)) * clients)
    for neighbours in range(2, clients - 1, 2):
        if not _hangs_together(clients, colluding + absent, neighbours):
            continue
        found = _threshold(clients, colluding, absent, neighbours)
        if found is not None:
            return Layout(neighbours=neighbours, threshold=found)
    neighbours = clients - 1
    found = _threshold(clients, colluding, absent, neighbours)
    least = (neighbours + 1) // 2 + 1
    return Layout(neighbours=neighbours, threshold=found or max(least, neighbours - max(0, absent - 1)))


@lru_cache(maxsize=8)
def graph_of(clients: tuple[int, ...], neighbours: int, seed: bytes) -> Mapping[int, tuple[int, ...]]:
    """Place clients in a circle, in the order of hashes of a seed; return each one's neighbours, in increasing order.

    Args:
        clients: Their numbers, all different.
        neighbours: Of each: even, or all others.
        seed: That nobody has chosen.
    """
    circle = sorted(clients, key=lambda client: hashlib.sha256(seed + client.to_bytes(8)).digest())
    if neighbours >= len(circle) - 1:
        return {client: tuple(sorted({*circle} - {client})) for client in circle}
    reach, size = neighbours // 2, len(circle)
    steps = [step for step in range(-reach, reach + 1) if step]
    return {client: tuple(sorted(circle[(at + step) % size] for step in steps)) for at, client in enumerate(circle)}


def _threshold(clients: int, colluding: int, absent: int, neighbours: int) -> int | None:
    """Return the threshold for so many neighbours; ``None`` if too few would be left to reach it."""
    among = _most(clients, colluding, neighbours, SECRECY_BITS)
    # Whoever's seed is asked for of the neighbours is gone too, so one fewer of them is.
    gone = _most(clients, max(0, absent - 1), neighbours, CORRECTNESS_BITS)
    threshold = (neighbours + 1 + among) // 2 + 1
    return threshold if threshold <= neighbours - gone else None


def _most(clients: int, marked: int, drawn: int, bits: int) -> int:
    """Return the most of ``marked`` clients among the neighbours of any client, but with probability ``2^-bits``."""
    total, bound = math.comb(clients - 1, drawn), Fraction(1, clients * 2**bits)
    more = 0
    for count in range(min(marked, drawn), 0, -1):
        more += math.comb(marked, count) * math.comb(clients - 1 - marked, drawn - count)
        if Fraction(more, total) > bound:
            return count
    return 0


def _hangs_together(clients: int, gone: int, neighbours: int) -> bool:
    """Tell whether the circle without so many clients is in one piece, but with probability ``2^-SECRECY_BITS``."""
    if neighbours > gone:
        return True
    arcs = Fraction(math.comb(clients, 2)) * Fraction(gone, clients) ** neighbours
    return arcs <= Fraction(1, 2**SECRECY_BITS)
