"""Who has advertised a key: signatures by the ECDSA P-384 keys of a deployment's nodes.

Whoever carries the messages could put keys of its own between two clients. A signature by a key that the other side
knows from elsewhere, from its own operator and not from the server, is what prevents that (Bonawitz et al. 2017,
section 6.2: a public key infrastructure).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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

_NAME = re.compile(r"node-(\d{1,9})")
"""Of a file with a node's key."""


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


def read_public(folder: Path) -> dict[int, EllipticCurvePublicKey]:
    """Read the keys of all nodes, ``node-N.pub`` or ``node-N.pem`` each, by the partition N that the node holds.

    Raises:
        IdentityError: If there is none, one is called otherwise, cannot be read or isn't a public key of P-384, or two
            are of one node or of one key.
    """
    found, seen = dict[int, EllipticCurvePublicKey](), dict[tuple[int, int], Path]()
    for path in sorted([*folder.glob("*.pub"), *folder.glob("*.pem")]):
        if (name := _NAME.fullmatch(path.stem)) is None:
            raise IdentityError(
                f"{path}: say whose key it is: call it node-N{path.suffix}, N being the node's partition"
            )
        try:
            data = path.read_bytes()
            load = load_pem_public_key if data.startswith(b"-----") else load_ssh_public_key
            key = load(data)
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            raise IdentityError(f"{path}: {error}") from None
        if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP384R1):
            raise IdentityError(f"{path}: expected a public key of ECDSA P-384")
        numbers = key.public_numbers()
        if (other := seen.setdefault((numbers.x, numbers.y), path)) != path:
            raise IdentityError(f"{path}: holds the key of {other.name}; each node has its own")
        if found.setdefault(int(name[1]), key) is not key:
            raise IdentityError(f"{path}: there is another key of node {int(name[1])}; keep one")
    if not found:
        raise IdentityError(f"{folder}: holds no public key (*.pub, *.pem)")
    return found


def sign(key: EllipticCurvePrivateKey, session: bytes, client: int, public: PublicKeys) -> bytes:
    """Sign what a client advertises in a session."""
    return key.sign(_statement(session, client, public), ECDSA(SHA384()))


def verify(
    known: Mapping[int, EllipticCurvePublicKey], session: bytes, client: int, public: PublicKeys, signature: bytes
) -> None:
    """Check that what a client advertises is signed by the node that is known to hold its partition, and no other.

    Raises:
        ProtocolError: If it isn't, or nobody is known to.
    """
    if client not in known:
        raise ProtocolError(f"client {client} is no node whose key this node knows: no node-{client} in its identities")
    try:
        known[client].verify(signature, _statement(session, client, public), ECDSA(SHA384()))
    except InvalidSignature:
        raise ProtocolError(f"the keys of client {client} aren't signed by the node that is known as it") from None


def _statement(session: bytes, client: int, public: PublicKeys) -> bytes:
    return b"/".join([PROTOCOL, b"identity", session, str(client).encode(), public.mask, public.channel])
