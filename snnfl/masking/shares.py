"""Shares of a seed: any ``threshold`` of them give it, fewer tell nothing (Shamir 1979), and how they travel.

The scheme is that of the library ``shamirs``, over the integers modulo :data:`~snnfl.masking.keys.PRIME`. A share
travels from its owner to its holder sealed with AES-256-GCM under a key of the two; the server, which carries it, knows
a digest of each, so that it can tell a share from a lie (what the papers leave out; a digest of 128 random bits tells
nothing of them).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import shamirs
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from snnfl.masking.keys import PRIME, PROTOCOL, SEED_BYTES, ProtocolError

_NONCE = bytes(12)
"""Each key seals one package: it is derived for a session and an ordered pair."""

DIGEST_BYTES = 32
PACKAGE_BYTES = 2 * SEED_BYTES + 16
"""Two shares, and the tag."""


def split(seed: bytes, threshold: int, holders: int) -> list[bytes]:
    """Share a seed among holders, in their order.

    Raises:
        ValueError: If it hasn't 16 bytes, isn't below the prime, or there are fewer holders than the threshold.
    """
    if len(seed) != SEED_BYTES or not 1 <= threshold <= holders:
        raise ValueError(f"cannot share {len(seed)} bytes among {holders} holders, {threshold} of whom are needed")
    if threshold == 1:  # the scheme of one: everybody holds the seed
        return [seed] * holders
    shares = shamirs.shares(int.from_bytes(seed), quantity=holders, modulus=PRIME, threshold=threshold)
    return [share.value.to_bytes(SEED_BYTES) for share in shares]


def combine(shares: Iterable[tuple[int, bytes]], threshold: int) -> bytes:
    """Return the seed of some shares.

    Args:
        shares: Place of each holder, counted from 0, and its share; more than are needed are left out.
        threshold: How many are needed.

    Raises:
        ProtocolError: If they are fewer.
    """
    known = list(shares)[:threshold]
    if len(known) < threshold:
        raise ProtocolError(f"{len(known)} shares, {threshold} are needed")
    if threshold == 1:
        return known[0][1]
    points = [shamirs.share(place + 1, int.from_bytes(share) % PRIME, PRIME) for place, share in known]
    return int(shamirs.interpolate(points)).to_bytes(SEED_BYTES)


def digest(session: bytes, purpose: bytes, secret: bytes, *coordinates: int) -> bytes:
    """Return what a secret is known again by."""
    parts = [PROTOCOL, session, purpose, *(str(number).encode() for number in coordinates), secret]
    return hashlib.sha256(b"/".join(parts)).digest()


def seal(key: bytes, shares: tuple[bytes, bytes], roster: bytes) -> bytes:
    """Encrypt the shares of an owner's two seeds for a holder who was told the same of who is in the session."""
    return AESGCM(key).encrypt(_NONCE, b"".join(shares), roster)


def unseal(key: bytes, package: bytes, roster: bytes) -> tuple[bytes, bytes]:
    """Decrypt and authenticate a package.

    Raises:
        ProtocolError: If it isn't what the owner has sealed for this holder in this session.
    """
    try:
        text = AESGCM(key).decrypt(_NONCE, package, roster)
    except (InvalidTag, ValueError):
        raise ProtocolError("a package of shares isn't what its owner has sealed for this client") from None
    if len(text) != 2 * SEED_BYTES:
        raise ProtocolError(f"expected two shares of {SEED_BYTES} bytes, found {len(text)} bytes")
    return text[:SEED_BYTES], text[SEED_BYTES:]
