"""Signatures of advertised keys."""

from __future__ import annotations

import os

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from snnfl.masking import ProtocolError, PublicKeys, advertise
from snnfl.masking.identity import IdentityError, read_private, read_public, sign, verify

SESSION = bytes(32)


def written(folder, name, key, form=PrivateFormat.PKCS8):
    (folder / name).write_bytes(key.private_bytes(Encoding.PEM, form, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    (folder / f"{name}.pub").write_bytes(public)


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.OpenSSH])
def test_only_a_known_node_can_have_signed(tmp_path, form):
    for node in (3, 4):
        written(tmp_path, f"node-{node}", ec.generate_private_key(ec.SECP384R1()), form)
    private, known = read_private(tmp_path / "node-3"), read_public(tmp_path)
    assert sorted(known) == [3, 4]
    _, public = advertise(SESSION, 3, os.urandom)
    signature = sign(private, SESSION, 3, public)
    verify(known, SESSION, 3, public, signature)
    stranger = sign(ec.generate_private_key(ec.SECP384R1()), SESSION, 3, public)
    in_its_name = sign(read_private(tmp_path / "node-4"), SESSION, 3, public)
    swapped = PublicKeys(mask=public.channel, channel=public.mask)
    for session, client, keys, signed in (
        (bytes(31) + b"1", 3, public, signature),
        (SESSION, 4, public, signature),
        (SESSION, 3, swapped, signature),
        (SESSION, 3, public, stranger),
        (SESSION, 3, public, b""),
        (SESSION, 3, public, in_its_name),  # another node's, whose key is known
        (SESSION, 4, public, sign(private, SESSION, 4, public)),
    ):
        with pytest.raises(ProtocolError, match=f"client {client} aren't signed by the node that is known as it"):
            verify(known, session, client, keys, signed)
    with pytest.raises(ProtocolError, match="client 5 is no node whose key this node knows"):
        verify(known, SESSION, 5, public, sign(private, SESSION, 5, public))


def test_a_key_is_of_one_node_and_says_of_which(tmp_path):
    """A node's name is what binds its key to the partition it holds, and with that to its number in a round."""
    one, other = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    written(tmp_path, "node-1", one)
    written(tmp_path, "node-2", one)
    with pytest.raises(IdentityError, match=r"node-2\.pub: holds the key of node-1\.pub; each node has its own"):
        read_public(tmp_path)
    written(tmp_path, "node-2", other)
    assert sorted(read_public(tmp_path)) == [1, 2]
    written(tmp_path, "node-02", ec.generate_private_key(ec.SECP384R1()))
    with pytest.raises(IdentityError, match="another key of node 2"):
        read_public(tmp_path)
    (tmp_path / "node-02.pub").rename(tmp_path / "berlin.pub")
    with pytest.raises(IdentityError, match=r"berlin\.pub: say whose key it is: call it node-N\.pub"):
        read_public(tmp_path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(IdentityError, match="holds no public key"):
        read_public(tmp_path)
    with pytest.raises(IdentityError, match="No such file"):
        read_private(tmp_path / "none")
    written(tmp_path, "node-0", ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(IdentityError, match="expected a private key of ECDSA P-384"):
        read_private(tmp_path / "node-0")
    with pytest.raises(IdentityError, match=r"node-0\.pub: expected a public key of ECDSA P-384"):
        read_public(tmp_path)
    (tmp_path / "node-0.pub").write_text("nonsense")
    with pytest.raises(IdentityError, match=r"node-0\.pub"):
        read_public(tmp_path)
