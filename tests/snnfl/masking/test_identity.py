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
    written(tmp_path, "one", ec.generate_private_key(ec.SECP384R1()), form)
    private, trusted = read_private(tmp_path / "one"), read_public(tmp_path)
    _, public = advertise(SESSION, 3, os.urandom)
    signature = sign(private, SESSION, 3, public)
    assert verify(trusted, SESSION, 3, public, signature).public_numbers() == private.public_key().public_numbers()
    stranger = sign(ec.generate_private_key(ec.SECP384R1()), SESSION, 3, public)
    swapped = PublicKeys(mask=public.channel, channel=public.mask)
    for session, client, keys, signed in (
        (bytes(31) + b"1", 3, public, signature),
        (SESSION, 4, public, signature),
        (SESSION, 3, swapped, signature),
        (SESSION, 3, public, stranger),
        (SESSION, 3, public, b""),
    ):
        with pytest.raises(ProtocolError, match=f"client {client} are signed by nobody"):
            verify(trusted, session, client, keys, signed)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(IdentityError, match="holds no public key"):
        read_public(tmp_path)
    with pytest.raises(IdentityError, match="No such file"):
        read_private(tmp_path / "none")
    written(tmp_path, "other", ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(IdentityError, match="expected a private key of ECDSA P-384"):
        read_private(tmp_path / "other")
    with pytest.raises(IdentityError, match=r"other\.pub: expected a public key of ECDSA P-384"):
        read_public(tmp_path)
    (tmp_path / "other.pub").write_text("nonsense")
    with pytest.raises(IdentityError, match=r"other\.pub"):
        read_public(tmp_path)
