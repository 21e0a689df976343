"""Who has advertised a key: signatures by the ECDSA P-384 keys of a deployment's nodes.

Whoever carries the messages could put keys of its own between two clients. A signature by a key that the other side
knows from elsewhere, from its own operator and not from the server, is what prevents that (Bonawitz et al. 2017,
section 6.2: a public key infrastructure).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP384R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_pem_public_key,
    load_ssh_private_key,
    load_ssh_public_key,
)

from snnfl.masking.keys import PROTOCOL, ProtocolError, PublicKeys


class IdentityError(ValueError):
    """A file holds no key that identifies a node; names it."""


def read_private(path: Path) -> EllipticCurvePrivateKey:
    """Read a node's own key, as ``flower-supernode --auth-supernode-private-key`` does.

    Raises:
        IdentityError: If it cannot be read, or isn't a private key of P-384.
    """
    try:
        data = path.read_bytes()
        load = load_ssh_private_key if b"OPENSSH" in data else load_pem_private_key
        key = load(data, None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IdentityError(f"{path}: {error}") from None
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP384R1):
        raise IdentityError(f"{path}: expected a private key of ECDSA P-384")
    return key


def read_public(folder: Path) -> list[EllipticCurvePublicKey]:
    """Read the keys of all nodes, a file ``*.pub`` or ``*.pem`` each.

    Raises:
        IdentityError: If there is none, or one cannot be read or isn't a public key of P-384.
    """
    found = []
    for path in sorted([*folder.glob("*.pub"), *folder.glob("*.pem")]):
        try:
            data = path.read_bytes()
            load = load_pem_public_key if data.startswith(b"-----") else load_ssh_public_key
            key = load(data)
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            raise IdentityError(f"{path}: {error}") from None
        if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP384R1):
            raise IdentityError(f"{path}: expected a public key of ECDSA P-384")
        found.append(key)
    if not found:
        raise IdentityError(f"{folder}: holds no public key (*.pub, *.pem)")
    return found


def sign(key: EllipticCurvePrivateKey, session: bytes, client: int, public: PublicKeys) -> bytes:
    """Sign what a client advertises in a session."""
    return key.sign(_statement(session, client, public), ECDSA(SHA384()))


def verify(
    trusted: Iterable[EllipticCurvePublicKey], session: bytes, client: int, public: PublicKeys, signature: bytes
) -> EllipticCurvePublicKey:
    """Return which key has signed what a client advertises.

    Raises:
        ProtocolError: If it is none of the trusted ones.
    """
    for key in trusted:
        try:
            key.verify(signature, _statement(session, client, public), ECDSA(SHA384()))
        except InvalidSignature:
            continue
        return key
    raise ProtocolError(f"the keys of client {client} are signed by nobody whom this node knows")


def _statement(session: bytes, client: int, public: PublicKeys) -> bytes:
    return b"/".join([PROTOCOL, b"identity", session, str(client).encode(), public.mask, public.channel])
