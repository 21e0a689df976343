"""A client's part of secure aggregation, as functions of its secrets and of what the server has sent.

Five steps (Bonawitz et al. 2017, figure 4; Bell et al. 2020, algorithm 2): :func:`advertise` keys, :func:`share` the
seeds of the masks among the neighbours, :func:`mask` a vector, :func:`confirm` who is in the sum, :func:`reveal` what
takes the masks out of it. The server is taken for an enemy that carries the messages: each step checks what it got, and
none can be taken twice, for one mask on two vectors tells their difference, and both seeds of a client tell its vector.
Who neighbours whom it doesn't say: that follows from who is in the session (:class:`~snnfl.masking.roster.Roster`).
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from snnfl.masking import keys
from snnfl.masking.keys import KEY_BYTES, ProtocolError, PublicKeys, Randomness
from snnfl.masking.roster import Roster
from snnfl.masking.shares import digest, seal, split, unseal

Step: TypeAlias = Literal["advertised", "shared", "masked", "confirmed"]


@dataclass(frozen=True, kw_only=True)
class Secrets:
    """What a client knows and nobody else, from one step of a session to the next.

    Attributes:
        session: The attempt at a round, 32 bytes that the server has drawn.
        own: This client's number.
        step: The last one that it has taken.
        self_seed: Of the mask that is the client's alone.
        key_seed: Of the private key by which it agrees on masks.
        channel: The private key by which others send it shares.
        threshold: Of the round.
        roster: Hash of who is in the session, from :func:`share` on.
        agreed: What it has agreed on by that key with each neighbour.
        peers: By which the neighbours agree on masks; from :func:`mask` on of those that have shared.
        held: Shares of their two seeds that neighbours have sealed for this client.
        task: Hash of what it was told to train, from :func:`mask` on.
        alive: Neighbours that it has confirmed to be in the sum.
    """

    session: bytes
    own: int
    step: Step
    self_seed: bytes
    key_seed: bytes
    channel: bytes
    threshold: int = 0
    roster: bytes = b""
    agreed: Mapping[int, bytes] = field(default_factory=dict)
    peers: Mapping[int, bytes] = field(default_factory=dict)
    held: Mapping[int, tuple[bytes, bytes]] = field(default_factory=dict)
    task: bytes = b""
    alive: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What a client sends in its second step.

    Attributes:
        packages: By neighbour, sealed for it.
        digests: Of the shares in it, by neighbour: of the self mask's seed and of the key's.
        commitment: Digest of the self mask's seed.
    """

    packages: Mapping[int, bytes]
    digests: Mapping[int, tuple[bytes, bytes]]
    commitment: bytes


@dataclass(frozen=True, kw_only=True)
class Revealed:
    """What a client tells in its last step.

    Attributes:
        self_seed: Its own, for its masked update is in the sum.
        self_shares: Of the seeds of neighbours whose masked updates are.
        key_shares: Of the seeds of the keys of those whose aren't.
    """

    self_seed: bytes
    self_shares: Mapping[int, bytes]
    key_shares: Mapping[int, bytes]


def advertise(session: bytes, own: int, randomness: Randomness) -> tuple[Secrets, PublicKeys]:
    """Draw a session's secrets; return them and what of them is public.

    Raises:
        ProtocolError: If the session's name is none.
    """
    if len(session) != KEY_BYTES:
        raise ProtocolError(f"a session of {len(session)} bytes: expected {KEY_BYTES}")
    secrets = Secrets(
        session=session,
        own=own,
        step="advertised",
        self_seed=keys.draw_seed(randomness),
        key_seed=keys.draw_seed(randomness),
        channel=randomness(KEY_BYTES),
    )
    return secrets, _public(secrets)


def share(secrets: Secrets, roster: Roster) -> tuple[Secrets, Shared]:
    """Share the two seeds among the neighbours.

    Args:
        secrets: Of the first step.
        roster: Who is in the session, this client with the keys that it has advertised.

    Raises:
        ProtocolError: If it isn't the time, this client isn't in the session or with other keys, keys are the same, or
            the threshold is one with which a lying server could get both seeds of a client even if no neighbour helped
            it (``2 t <= k + 1``).
    """
    _expect(secrets, "advertised")
    peers, threshold = roster.peers(secrets.own), roster.rule.threshold
    everybody = [key for known in roster.public.values() for key in (known.mask, known.channel)]
    if len(set(everybody)) < len(everybody):
        raise ProtocolError("the server names one key twice")
    if roster.session != secrets.session or roster.public[secrets.own] != _public(secrets):
        raise ProtocolError("the server names keys for this client that it hasn't advertised in this session")
    if not len(peers) + 1 < 2 * threshold <= 2 * len(peers):
        reason = "expected more than half of a client and its neighbours"
        raise ProtocolError(f"a threshold of {threshold} for {len(peers)} neighbours: {reason}")
    holders = sorted(peers)
    self_shares, key_shares = (split(seed, threshold, len(holders)) for seed in (secrets.self_seed, secrets.key_seed))
    channel, session, own = X25519PrivateKey.from_private_bytes(secrets.channel), secrets.session, secrets.own
    packages, digests, agreed = dict[int, bytes](), dict[int, tuple[bytes, bytes]](), dict[int, bytes]()
    for holder, pair in zip(holders, zip(self_shares, key_shares, strict=True), strict=True):
        agreed[holder] = keys.agree(channel, peers[holder].channel)
        packages[holder] = seal(keys.derive(agreed[holder], roster.name, b"shares", own, holder), pair, roster.name)
        digests[holder] = share_digests(session, own, holder, pair)
    commitment = digest(session, b"self seed", secrets.self_seed, own)
    masks = {holder: peers[holder].mask for holder in holders}
    after = replace(secrets, step="shared", channel=b"", agreed=agreed, peers=masks)
    after = replace(after, threshold=threshold, roster=roster.name)
    return after, Shared(packages=packages, digests=digests, commitment=commitment)


def mask(
    secrets: Secrets, vector: NDArray[np.unsignedinteger[Any]], packages: Mapping[int, bytes], task: bytes
) -> tuple[Secrets, NDArray[np.unsignedinteger[Any]]]:
    """Mask a vector: ``y = x + m_u + sum_(v > u) m_uv - sum_(v < u) m_uv`` modulo the size of its elements.

    Args:
        secrets: Of the second step.
        vector: Elements of a ring.
        packages: Of those neighbours that have shared, sealed for this client. One that isn't what its sender has
            sealed, or whose sender was told of others in the session, gives no share and doesn't count.
        task: Hash of what the vector is an answer to, 32 bytes. Neighbours that were told something else won't count
            among those that confirm: weights of each client's own would tell their updates apart in the sum.

    Returns:
        The secrets, without those that are used up, and a new vector.

    Raises:
        ProtocolError: If it isn't the time, or too few neighbours have shared with this client.
    """
    _expect(secrets, "shared")
    if len(task) != KEY_BYTES:
        raise ProtocolError(f"a task's hash of {len(task)} bytes: expected {KEY_BYTES}")
    if unknown := packages.keys() - secrets.peers.keys():
        raise ProtocolError(f"a package of client {min(unknown)}, which is no neighbour")
    session, own, held = secrets.session, secrets.own, dict[int, tuple[bytes, bytes]]()
    for sender, package in packages.items():
        with suppress(ProtocolError):  # whoever seals garbage can be helped by nobody, and costs others a dropout
            key = keys.derive(secrets.agreed[sender], secrets.roster, b"shares", sender, own)
            held[sender] = unseal(key, package, secrets.roster)
    _expect_enough(secrets, len(held) + 1, "have shared their seeds")
    private, masked = keys.mask_key(secrets.key_seed, session), vector.copy()
    keys.add_mask(masked, keys.derive(secrets.self_seed, session, b"self mask", own))
    for sender in packages:
        pair = keys.pair_key(private, secrets.peers[sender], session, own, sender)
        keys.add_mask(masked, pair, subtract=sender < own)
    peers = {sender: secrets.peers[sender] for sender in packages}
    after = replace(secrets, step="masked", key_seed=b"", peers=peers, held=held, task=task)
    return after, masked


def confirm(secrets: Secrets, survivors: Collection[int], dropped: Collection[int]) -> tuple[Secrets, dict[int, bytes]]:
    """Confirm to each neighbour whose masked update the server has that it is taken for one that has.

    With that a client binds itself: of those it will tell the share of the self mask, of the others that of the key.

    Args:
        secrets: Of the third step.
        survivors: Neighbours whose masked updates the server has.
        dropped: The other neighbours that have shared.

    Returns:
        The secrets, and a token for each survivor, which the server can neither make nor read anything from.

    Raises:
        ProtocolError: If it isn't the time; if a neighbour is named in both ways, for both seeds of a client would tell
            its update, or in neither; or if the sum would be of fewer clients than the threshold.
    """
    _expect(secrets, "masked")
    alive, gone = set(survivors), set(dropped)
    if both := alive & gone:
        raise ProtocolError(f"client {min(both)} is asked for both of its seeds, which would tell its update; refused")
    if alive | gone != secrets.peers.keys():
        raise ProtocolError("the server asks for shares of clients that are no neighbours, or not of all that are")
    _expect_enough(secrets, len(alive) + 1, "are in the sum")
    tokens = {client: _token(secrets, secrets.own, client) for client in sorted(alive)}
    return replace(secrets, step="confirmed", alive=tuple(sorted(alive))), tokens


def reveal(secrets: Secrets, tokens: Mapping[int, bytes]) -> Revealed:
    """Tell what takes the masks out of the sum. The secrets are to be forgotten with it.

    A client tells its own seed, which a server may ask of none that it has declared gone to others: so it asks for
    tokens of as many neighbours that, with itself, the threshold is reached, and those will not tell its key. Nor will
    it tell theirs: of one that it was told is gone, a token proves that the server lies, and doesn't count. Else those
    who cannot confirm, having been told of others in the session, could be called there in the place of those who have.

    Args:
        secrets: Of the fourth step.
        tokens: Of neighbours that have confirmed that this client's update is in the sum. False ones don't count, nor
            do those of neighbours that were told to train something else: who sends them shall not keep the others
            from their sum.

    Raises:
        ProtocolError: If it isn't the time, or true tokens are too few.
    """
    _expect(secrets, "confirmed")
    true = [
        c for c in tokens.keys() & set(secrets.alive) if hmac.compare_digest(tokens[c], _token(secrets, c, secrets.own))
    ]
    false = len(tokens) - len(true)
    besides = f" (besides {false} that were told something else, or lie)" if false else ""
    _expect_enough(secrets, len(true) + 1, f"confirm that it is in the sum{besides}")
    held = sorted(secrets.held)
    return Revealed(
        self_seed=secrets.self_seed,
        self_shares={client: secrets.held[client][0] for client in held if client in secrets.alive},
        key_shares={client: secrets.held[client][1] for client in held if client not in secrets.alive},
    )


def share_digests(session: bytes, owner: int, holder: int, shares: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """Return the digests of the shares of an owner's two seeds that a holder has."""
    return (
        digest(session, b"self share", shares[0], owner, holder),
        digest(session, b"key share", shares[1], owner, holder),
    )


def _token(secrets: Secrets, sender: int, receiver: int) -> bytes:
    """Return what one client, and of all others only the receiver, can make, if both were told the same.

    That is who is there, and what to train.
    """
    other = receiver if sender == secrets.own else sender
    return keys.derive(secrets.agreed[other], secrets.roster + secrets.task, b"in the sum", sender, receiver)


def _public(secrets: Secrets) -> PublicKeys:
    channel = X25519PrivateKey.from_private_bytes(secrets.channel)
    mask = keys.public_bytes(keys.mask_key(secrets.key_seed, secrets.session))
    return PublicKeys(mask=mask, channel=keys.public_bytes(channel))


def _expect(secrets: Secrets, step: Step) -> None:
    if secrets.step != step:
        raise ProtocolError(f"the server asks for a step after {step!r}, and this client is at {secrets.step!r}")


def _expect_enough(secrets: Secrets, count: int, what: str) -> None:
    """Go on only with so many clients that the sum hides each: of one, it would be its update."""
    if count < (needed := max(2, secrets.threshold)):
        raise ProtocolError(f"{count} of this client and its neighbours {what}, {needed} are needed")
