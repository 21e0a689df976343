"""What a deployment's SuperLink tells: that it is there and the right one, its clock, its Flower, its nodes.

Nodes are told by their public keys, which ``flwr supernode list`` leaves out, so the control API is asked itself, with
the client that Flower's commands use.
"""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from experiments.deploy import DeployError
from experiments.deploy.folder import BEHIND, Deployment, Node, is_loopback, written

SECONDS = 10.0
"""That an answer may take."""

BESIDE_SECONDS = 3.0
"""That it may take to connect where nobody should answer, behind a firewall that is silent."""

REFUSED = 403
"""HTTP status by which a guard refuses whatever isn't a SuperNode's."""

UNTRUSTED = "its certificate is not signed by {ca}; copy that file from the folder that signed the SuperLink's"
OTHER_NAME = "its certificate is not for {host}; issue one: snnfl deploy init {folder} --server {address} --renew"
CERTIFICATE_MISTAKES = {
    9: "its certificate is not valid yet; set this machine's clock",
    10: "its certificate has expired; issue another: snnfl deploy init {folder} --server {address} --renew",
    62: OTHER_NAME,
    64: OTHER_NAME,
}
"""By OpenSSL's verification code (X509_V_ERR); any other means an unknown signer."""


@dataclass(frozen=True)
class Seen:
    """A node as the SuperLink knows it.

    Attributes:
        node_id: Flower's number of it.
        public_key: PEM.
        status: ``registered`` (never connected), ``online``, ``offline`` or ``unregistered``.
        since: When it became so, for the last three.
    """

    node_id: int
    public_key: bytes
    status: str
    since: datetime | None


def greet(deployment: Deployment) -> datetime:
    """Shake hands where the operator's commands reach the SuperLink; return when its certificate expires.

    Raises:
        DeployError: If nothing answers there, or not with a certificate that this deployment signed for that name.
    """
    host, port = deployment.control_host, deployment.control_port
    start = f"start flower-superlink --host {host if deployment.guarded else '0.0.0.0'} --port {port}"
    there = f"on {deployment.host}, after umask 077 (docs/deployment.md)"
    tunnel = f"; from another machine first ssh -L {port}:{deployment.control} {deployment.host}"
    return _shake_hands(deployment, host, port, f"{start} {there}{tunnel if deployment.guarded else ''}")


def greet_guard(deployment: Deployment) -> str | None:
    """Shake hands as a node does, then knock as a stranger would; say what is wrong with what is let in.

    A SuperLink that listens on all addresses is reached beside its guard, at the operator's port. That is tried unless
    the host's address is this machine's loopback, by which the operator himself comes.

    Raises:
        DeployError: If nothing answers, as :func:`greet`.
    """
    host, port, beside = deployment.host, deployment.port, written(deployment.host, deployment.control_port)
    start = f"start the guard there: nginx -p {deployment.path}/ -c guard.conf (docs/deployment.md)"
    _shake_hands(deployment, host, port, start)
    try:
        if _knock(deployment, deployment.address, "control/list-nodes") != REFUSED:
            return "lets strangers at Flower's control interface, by which they run code: start it with guard.conf"
        if _knock(deployment, deployment.address, "fleet/pull-messages") == REFUSED:
            return "lets no SuperNode through either: start it with guard.conf"
    except httpx.HTTPError as error:
        raise DeployError(f"{deployment.address}: {' '.join(str(error).split())}") from None
    try:
        with socket.create_connection((host, deployment.control_port), timeout=BESIDE_SECONDS) as connection:
            ours = is_loopback(connection.getpeername()[0])
        if not ours and _knock(deployment, beside, "control/list-nodes") != REFUSED:
            return f"is passed by: strangers reach the SuperLink at {beside}; start it with --host {BEHIND}"
    except (OSError, httpx.HTTPError):  # nobody is there, or somebody else: as it should be
        pass
    return None


def _knock(deployment: Deployment, address: str, route: str) -> int:
    """Send a request that nobody has signed; return the HTTP status of the answer."""
    context = ssl.create_default_context(cafile=str(deployment.ca_certificate))
    content, headers = ListNodesRequest().SerializeToString(), {"content-type": PROTOBUF_MEDIA_TYPE}
    url = f"https://{address}/v1/{route}"
    return httpx.post(url, content=content, headers=headers, verify=context, timeout=SECONDS).status_code


def _shake_hands(deployment: Deployment, host: str, port: int, closed: str) -> datetime:
    """Return when the certificate of who answers at a port expires.

    Args:
        deployment: Whose authority is trusted.
        host: By which the port is reached.
        port: Of it.
        closed: What to do if nobody listens there.
    """
    address, where = written(host, port), {"host": host, "folder": deployment.path}
    where |= {"address": deployment.address, "ca": deployment.ca_certificate}
    try:
        context = ssl.create_default_context(cafile=str(deployment.ca_certificate))
        with (
            socket.create_connection((host, port), timeout=SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host) as encrypted,
        ):
            expiry = ssl.cert_time_to_seconds(str((encrypted.getpeercert() or {})["notAfter"]))
    except ssl.SSLCertVerificationError as error:
        raise DeployError(
            f"{address}: {CERTIFICATE_MISTAKES.get(error.verify_code, UNTRUSTED).format(**where)}"
        ) from None
    except ssl.SSLError as error:
        raise DeployError(f"{address}: it doesn't speak TLS ({error.reason}); start it with --ssl-certfile") from None
    except socket.gaierror:
        raise DeployError(f"{address}: no such host; its name was given to snnfl deploy init --server") from None
    except ConnectionRefusedError:
        raise DeployError(f"{address}: the port is closed; {closed}") from None
    except OSError as error:
        reason = f"no answer within {SECONDS:g} s" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise DeployError(f"{address}: {reason}; is it up, and does its firewall let the port through?") from None
    return datetime.fromtimestamp(expiry, UTC)


def flower_version(deployment: Deployment) -> str | None:
    """Return the version of the SuperLink's Flower, if it tells."""
    context = ssl.create_default_context(cafile=str(deployment.ca_certificate))
    try:
        answer = httpx.get(f"https://{deployment.control}/openapi.json", verify=context, timeout=SECONDS)
        return str(answer.json()["info"]["version"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        return None


def nodes_seen(deployment: Deployment) -> tuple[list[Seen], float]:
    """Ask for all nodes.

    Returns:
        The nodes, in the order of their registration, and how many seconds the SuperLink's clock is ahead of this one.

    Raises:
        DeployError: If the SuperLink cannot be asked.
    """
    with _control(deployment) as control:
        asked = datetime.now(UTC)
        answer = control.ListNodes(ListNodesRequest())
        middle = asked + (datetime.now(UTC) - asked) / 2
    found = [
        Seen(
            node.node_id,
            node.public_key,
            node.status,
            _time({"online": node.last_activated_at, "offline": node.last_deactivated_at}.get(node.status, "")),
        )
        for node in sorted(answer.nodes_info, key=lambda node: node.registered_at)
    ]
    return found, (datetime.fromisoformat(answer.now) - middle).total_seconds()


def register(deployment: Deployment, node: Node) -> int:
    """Let a node in; return Flower's number of it.

    Raises:
        DeployError: If the SuperLink refuses.
    """
    with _control(deployment) as control:
        request = RegisterNodeRequest(public_key=public_key_pem(deployment, node), name=node.name)
        return int(control.RegisterNode(request).node_id)


def public_key_pem(deployment: Deployment, node: Node) -> bytes:
    """Read a node's public key in the form that a SuperLink stores."""
    key = load_ssh_public_key(deployment.public_key(node).read_bytes())
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@contextmanager
def _control(deployment: Deployment) -> Iterator[ControlHttpClient]:
    """Open the control API; what goes wrong becomes one line."""
    client = ControlHttpClient.from_server_address(
        deployment.control, False, deployment.ca_certificate.read_bytes(), interceptors=[]
    )
    try:
        yield client
    except httpx.HTTPStatusError as error:
        raise DeployError(f"{deployment.control}: {_detail(error.response)}") from None
    except httpx.HTTPError as error:
        raise DeployError(f"{deployment.control}: {' '.join(str(error).split())}") from None
    finally:
        client.close()


def _detail(response: httpx.Response) -> str:
    try:
        told = json.loads(response.text)
        return " ".join(str(told[key]) for key in ("detail", "extra") if key in told)
    except (ValueError, TypeError):
        return f"HTTP status {response.status_code}"


def _time(text: str) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
