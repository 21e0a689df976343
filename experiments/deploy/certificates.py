"""A certificate authority of a deployment's own, the SuperLink's certificate, and the nodes' keys.

All keys are ECDSA on P-384, which Flower asks of nodes. Certificates are PEM; a node's key is in OpenSSH's format, the
only one that ``flower-supernode --auth-supernode-private-key`` and ``flwr supernode register`` read.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_public_key,
    ssh_key_fingerprint,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from experiments.deploy import DeployError
from experiments.deploy.folder import ip_address

CA_DAYS = 3650
SERVER_DAYS = 825
"""Validity. 825 days is the longest that Apple's systems accept of a server; no program here is stricter."""

BACKDATED = timedelta(hours=1)
"""A machine whose clock is a little behind accepts a new certificate at once."""

SERVER_NAMES = ("localhost", "127.0.0.1", "superlink")
"""Names in the server's certificate besides its own; ``superlink`` is its service in ``docker/compose.yaml``."""


def make_authority(certificate: Path, key: Path) -> None:
    """Write a new certificate authority that may sign servers and nothing below it."""
    private = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "snnfl deployment")])
    signed = (
        _certificate(name, name, private.public_key(), private.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(private, hashes.SHA384())
    )
    write_new(key, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), private=True)
    write_new(certificate, signed.public_bytes(Encoding.PEM))


def make_server(certificate: Path, key: Path, authority: tuple[Path, Path], host: str) -> None:
    """Write a server's certificate, signed by an authority.

    Args:
        certificate: File to write.
        key: File to write.
        authority: Files of the authority's certificate and key.
        host: Name or address that clients reach the server by.

    Raises:
        DeployError: If the authority's files cannot be read.
    """
    issuer, signer = read_certificate(authority[0]), _signing_key(authority[1])
    private = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
    signed = (
        _certificate(subject, issuer.subject, private.public_key(), signer.public_key(), SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_alternatives((host, *SERVER_NAMES))), critical=False)
        .sign(signer, hashes.SHA384())
    )
    write_new(key, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), private=True)
    write_new(certificate, signed.public_bytes(Encoding.PEM))


def make_node_key(private: Path, public: Path, comment: str) -> str:
    """Write a node's key pair; return the public key's fingerprint."""
    key = ec.generate_private_key(ec.SECP384R1())
    write_new(private, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), private=True)
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    write_new(public, line + f" {comment}\n".encode())
    return fingerprint(public)


def fingerprint(public: Path) -> str:
    """Return the fingerprint of a public key as ``ssh-keygen -lf`` prints it."""
    digest = ssh_key_fingerprint(load_ssh_public_key(public.read_bytes()), hashes.SHA256())
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def read_certificate(path: Path) -> x509.Certificate:
    """Read a PEM certificate.

    Raises:
        DeployError: If it is none.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DeployError(f"{path}: not a PEM certificate ({_reason(error)})") from None


def write_new(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write a file that isn't there yet; a private one can be read by its owner alone from its first byte on.

    Raises:
        DeployError: If there is one: no key is ever replaced.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644)
    except FileExistsError:
        raise DeployError(f"{path} exists, and no key or certificate is replaced; move it away first") from None
    with open(descriptor, "wb") as file:
        file.write(content)


def _signing_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise DeployError(f"{path}: not the authority's private key ({_reason(error)})") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise DeployError(f"{path}: not the authority's private key (expected an elliptic curve)")
    return key


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePublicKey,
    days: int,
) -> x509.CertificateBuilder:
    start = datetime.now(UTC) - BACKDATED
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternatives(hosts: Sequence[str]) -> list[x509.GeneralName]:
    return [
        x509.DNSName(host) if (address := ip_address(host)) is None else x509.IPAddress(address)
        for host in dict.fromkeys(hosts)
    ]


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) else str(error)
    return " ".join((text or type(error).__name__).split())[:100]
