"""Keys of a round, what two clients agree on, and the masks that follow.

Every key lives for one session, the attempt at one round. X25519 agrees, HKDF-SHA256 derives a key for each purpose,
and ChaCha20 makes of it as many uniform elements of the ring as a vector has (Bonawitz et al. 2017, section 4).
All of it is the library ``cryptography``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

PROTOCOL = b"snnfl secure aggregation 4"
SEED_BYTES, KEY_BYTES = 16, 32
"""Of a seed, which Shamir's scheme shares, and of a key."""

PRIME = 2**128 - 159
"""The largest prime of 128 bits: shares are numbers modulo it, and so are seeds (:func:`draw_seed`)."""

Randomness: TypeAlias = Callable[[int], bytes]
"""``count -> bytes``: :func:`os.urandom` wherever something is to stay secret."""

_CHUNK = 2**18
_ZEROS = bytes(_CHUNK)
_NONCE = bytes(16)
"""Each key makes one stream, so that the nonce needn't differ."""

_PROBE = X25519PrivateKey.from_private_bytes(bytes(range(KEY_BYTES)))
"""A key of nobody: what agrees with it on a secret agrees with any."""


class ProtocolError(ValueError):
    """What another participant has sent breaks the protocol; says in one line how."""


@dataclass(frozen=True, kw_only=True)
class PublicKeys:
    """What a client advertises: by ``mask`` others agree with it on masks, by ``channel`` they send it shares.

    The two are apart, for the private half of the first is told to the server when its client drops out.
    """

    mask: bytes
    channel: bytes

    def __post_init__(self) -> None:
        if len(self.mask) != KEY_BYTES or len(self.channel) != KEY_BYTES:
            raise ProtocolError(f"expected public keys of {KEY_BYTES} bytes")


def draw_seed(randomness: Randomness) -> bytes:
    """Return a uniform seed below :data:`PRIME`; the 159 numbers of 128 bits that aren't are drawn anew."""
    while int.from_bytes(seed := randomness(SEED_BYTES)) >= PRIME:
        pass
    return seed


def derive(secret: bytes, session: bytes, purpose: bytes, *coordinates: int) -> bytes:
    """Return the 32-byte key of a secret for one purpose.

    Args:
        secret: Of high entropy.
        session: Of the attempt at a round.
        purpose: What the key is for.
        coordinates: Clients that it is for.
    """
    info = b"/".join([PROTOCOL, purpose, *(str(number).encode() for number in coordinates)])
    return HKDF(SHA256(), KEY_BYTES, salt=session, info=info).derive(secret)


def mask_key(seed: bytes, session: bytes) -> X25519PrivateKey:
    """Return the private key that a client's shared seed stands for."""
    return X25519PrivateKey.from_private_bytes(derive(seed, session, b"mask key"))


def public_bytes(key: X25519PrivateKey) -> bytes:
    """Return the public half."""
    return key.public_key().public_bytes_raw()


def agree(own: X25519PrivateKey, other: bytes) -> bytes:
    """Return the secret that two keys agree on.

    Raises:
        ProtocolError: For a public key with which every key agrees on the same.
    """
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError:
        raise ProtocolError("a public key of low order, which hides nothing") from None


def check_keys(public: PublicKeys) -> None:
    """Refuse keys with which nobody can agree on a secret, before they cost their neighbours a round.

    Raises:
        ProtocolError: If one is of low order.
    """
    for key in (public.mask, public.channel):
        agree(_PROBE, key)


def pair_key(own: X25519PrivateKey, other: bytes, session: bytes, first: int, second: int) -> bytes:
    """Return the key of the mask that two clients share, whichever of them asks."""
    return derive(agree(own, other), session, b"pair mask", min(first, second), max(first, second))


def add_mask(total: NDArray[np.unsignedinteger[Any]], key: bytes, *, subtract: bool = False) -> None:
    """Add the mask of a key to a vector in place, modulo the size of its elements.

    Args:
        total: Of one dimension, contiguous, little-endian.
        key: Used for this alone.
        subtract: Whether to take the mask away.
    """
    stream = Cipher(algorithms.ChaCha20(key, _NONCE), mode=None).encryptor()
    change = np.subtract if subtract else np.add
    step = _CHUNK // total.itemsize
    buffer = bytearray(min(_CHUNK, total.nbytes))
    for start in range(0, len(total), step):
        part = total[start : start + step]
        stream.update_into(memoryview(_ZEROS)[: part.nbytes], buffer)
        change(part, np.frombuffer(buffer, total.dtype, len(part)), out=part)
