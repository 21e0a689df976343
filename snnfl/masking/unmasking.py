"""The server's part of secure aggregation: what it takes note of in a round, and the sum that it gets out.

Clients are taken for enemies, too: what they send is checked against what they have advertised, so that a share that is
wrong isn't used, and who has told it, or sealed it, is known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from snnfl.masking import keys
from snnfl.masking.keys import KEY_BYTES, SEED_BYTES, ProtocolError, PublicKeys
from snnfl.masking.participant import Revealed, Shared, share_digests
from snnfl.masking.shares import DIGEST_BYTES, PACKAGE_BYTES, combine, digest


class UnmaskingError(ProtocolError):
    """The sum stays masked: too few have told their shares of somebody, or what they have told fits nothing."""


@dataclass(kw_only=True)
class Ledger:
    """What the server knows of a round.

    Attributes:
        session: 32 random bytes, of this attempt at the round.
        threshold: Of the round.
        graph: Neighbours of each client, in increasing order.
        public: What each has advertised.
        shared: What each has shared: the packages, the digests of their shares, the commitment.
        tokens: Of each client those by which its neighbours have confirmed that it is in the sum.
        revealed: What each has told, after :meth:`check`.
    """

    session: bytes
    threshold: int
    graph: Mapping[int, tuple[int, ...]]
    public: Mapping[int, PublicKeys]
    shared: dict[int, Shared] = field(default_factory=dict)
    tokens: dict[int, dict[int, bytes]] = field(default_factory=dict)
    revealed: dict[int, Revealed] = field(default_factory=dict)

    def peers(self, client: int) -> dict[int, PublicKeys]:
        """Return the public keys of a client's neighbours."""
        return {neighbour: self.public[neighbour] for neighbour in self.graph[client]}

    def accept(self, client: int, shared: Shared) -> None:
        """Take note of what a client has shared.

        Raises:
            ProtocolError: If it isn't for exactly its neighbours, or of another size.
        """
        wanted = set(self.graph[client])
        if shared.packages.keys() != wanted or shared.digests.keys() != wanted:
            raise ProtocolError(f"expected shares for the {len(wanted)} neighbours of the client")
        sizes = {len(package) for package in shared.packages.values()} - {PACKAGE_BYTES}
        sizes |= {len(one) for pair in shared.digests.values() for one in pair} - {DIGEST_BYTES}
        if sizes or len(shared.commitment) != DIGEST_BYTES:
            raise ProtocolError(f"expected packages of {PACKAGE_BYTES} bytes and digests of {DIGEST_BYTES}")
        self.shared[client] = shared

    def packages(self, client: int) -> dict[int, bytes]:
        """Return what its neighbours have sealed for a client."""
        return {n: self.shared[n].packages[client] for n in self.graph[client] if n in self.shared}

    def asked(self, client: int, survivors: Collection[int]) -> tuple[list[int], list[int]]:
        """Return those neighbours of a client that have shared: who is among the survivors, and who isn't."""
        known = [n for n in self.graph[client] if n in self.shared]
        return [n for n in known if n in survivors], [n for n in known if n not in survivors]

    def confirmed(self, client: int, tokens: Mapping[int, bytes], survivors: Collection[int]) -> None:
        """Take note of what a client has confirmed to its neighbours.

        Raises:
            ProtocolError: If it isn't a token for each neighbour among the survivors.
        """
        alive, _ = self.asked(client, survivors)
        if list(tokens) != alive or any(len(token) != KEY_BYTES for token in tokens.values()):
            raise ProtocolError("its tokens aren't those that it was asked for")
        for neighbour, token in tokens.items():
            self.tokens.setdefault(neighbour, {})[client] = token

    def check(self, client: int, revealed: Revealed, survivors: Collection[int]) -> None:
        """Take note of what a client has told.

        Raises:
            ProtocolError: If it is more than it was asked for, or its own seed isn't the one that it has committed to.
        """
        alive, gone = self.asked(client, survivors)
        if not (revealed.self_shares.keys() <= set(alive) and revealed.key_shares.keys() <= set(gone)):
            raise ProtocolError("its shares are of others than it was asked for")
        told = [revealed.self_seed, *revealed.self_shares.values(), *revealed.key_shares.values()]
        if any(len(secret) != SEED_BYTES for secret in told):
            raise ProtocolError(f"expected shares of {SEED_BYTES} bytes")
        if len(revealed.task) != KEY_BYTES:
            raise ProtocolError(f"expected a task's hash of {KEY_BYTES} bytes")
        commitment = digest(self.session, b"self seed", revealed.self_seed, client)
        if commitment != self.shared[client].commitment:
            raise ProtocolError("its seed isn't the one that it has committed to")
        self.revealed[client] = revealed

    def liars(self) -> Iterator[str]:
        """Say which shares don't fit their digests; nobody can tell whether holder or owner has lied."""
        for holder, told in self.revealed.items():
            for owner, share in (*told.self_shares.items(), *told.key_shares.items()):
                if not self._fits(owner, holder, share, key=owner in told.key_shares):
                    yield f"the share of client {owner} that client {holder} tells isn't the one that was announced"

    def unmask(self, uploads: Mapping[int, NDArray[np.unsignedinteger[Any]]]) -> NDArray[np.unsignedinteger[Any]]:
        """Return the sum of the vectors of all uploads, none of which is told.

        Args:
            uploads: Masked vectors by client, each of one that has shared, all of one length.

        Raises:
            UnmaskingError: If too few clients have told their shares.
        """
        vectors = list(uploads.values())
        total = vectors[0].copy()
        for vector in vectors[1:]:
            total += vector
        for client in sorted(uploads):
            keys.add_mask(total, self._self_key(client), subtract=True)
        told = self.session + self._task()
        for client in sorted(self.shared.keys() - uploads.keys()):
            partners = [neighbour for neighbour in self.graph[client] if neighbour in uploads]
            if not partners:
                continue
            private = self._private_key(client)
            for partner in partners:
                key = keys.pair_key(private, self.public[partner].mask, told, client, partner)
                # The partner has added it if it is the smaller of the two, else subtracted.
                keys.add_mask(total, key, subtract=partner < client)
        return total

    def _task(self) -> bytes:
        """Return the hash of what clients were told to train, as most of them say."""
        return Counter(told.task for told in self.revealed.values()).most_common(1)[0][0] if self.revealed else b""

    def _self_key(self, client: int) -> bytes:
        told = self.revealed.get(client)
        seed = self._recovered(client, key=False) if told is None else told.self_seed
        if digest(self.session, b"self seed", seed, client) != self.shared[client].commitment:
            raise UnmaskingError(f"the shares of client {client} don't give the seed that it has committed to")
        return keys.derive(seed, self.session, b"self mask", client)

    def _private_key(self, client: int) -> X25519PrivateKey:
        private = keys.mask_key(self._recovered(client, key=True), self.session)
        if keys.public_bytes(private) != self.public[client].mask:
            raise UnmaskingError(f"the shares of client {client} don't give the key that it has advertised")
        return private

    def _recovered(self, owner: int, *, key: bool) -> bytes:
        known = []
        for place, holder in enumerate(self.graph[owner]):
            told = self.revealed.get(holder)
            share = None if told is None else (told.key_shares if key else told.self_shares).get(owner)
            if share is not None and self._fits(owner, holder, share, key=key):
                known.append((place, share))
        if len(known) < self.threshold:
            what = "key" if key else "mask"
            raise UnmaskingError(
                f"{len(known)} neighbours of client {owner} have told their share of its {what}, {self.threshold} are "
                "needed"
            )
        return combine(known, self.threshold)

    def _fits(self, owner: int, holder: int, share: bytes, *, key: bool) -> bool:
        pair = (share, share)
        return share_digests(self.session, owner, holder, pair)[key] == self.shared[owner].digests[holder][key]
