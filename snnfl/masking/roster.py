"""Who is in a session, as everybody in it is told, and what follows from that alone: neighbours and threshold.

Who chooses a client's neighbours can single it out (Bell et al. 2020, section 4). So nobody does: a client is told who
all are, and finds its place among them by a hash of that. Shares and confirmations are made under the hash, so that two
clients who were told different things understand nothing of each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from snnfl.masking.graph import Layout, graph_of
from snnfl.masking.keys import PROTOCOL, ProtocolError, PublicKeys


@dataclass(frozen=True, kw_only=True)
class Roster:
    """Who is in a session.

    Attributes:
        session: Its name.
        public: What each client has advertised.
        rule: How many neighbours each has, and the threshold.
    """

    session: bytes
    public: Mapping[int, PublicKeys]
    rule: Layout

    @cached_property
    def name(self) -> bytes:
        """A hash of all of it, 32 bytes."""
        numbers = [self.rule.neighbours, self.rule.threshold, len(self.public)]
        parts = [PROTOCOL, b"roster", self.session, *(number.to_bytes(8) for number in numbers)]
        for client in sorted(self.public):
            known = self.public[client]
            parts += [client.to_bytes(8), known.mask, known.channel]
        return hashlib.sha256(b"".join(parts)).digest()

    @property
    def graph(self) -> Mapping[int, tuple[int, ...]]:
        """Neighbours of each client, in increasing order."""
        return graph_of(tuple(sorted(self.public)), self.rule.neighbours, self.name)

    def peers(self, client: int) -> dict[int, PublicKeys]:
        """Return what a client's neighbours have advertised.

        Raises:
            ProtocolError: If it isn't in the session.
        """
        if client not in self.public:
            raise ProtocolError(f"the server doesn't name client {client} among those in the round")
        return {neighbour: self.public[neighbour] for neighbour in self.graph[client]}
