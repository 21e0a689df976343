"""The folder of a deployment: where its files lie and which nodes it has."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from experiments.deploy import DeployError

DEFAULT_PORT = 8000
"""Of a SuperLink; it has this one port for everything."""

BEHIND = "127.0.0.1"
"""Where a guarded SuperLink listens."""

NODES_FILE = "nodes.json"


@dataclass(frozen=True)
class Node:
    """A SuperNode: its name, its partition, and the fingerprint of its public key, as ``ssh-keygen -lf`` prints it."""

    name: str
    partition: int
    fingerprint: str


@dataclass(frozen=True)
class Deployment:
    """A deployment's folder.

    Attributes:
        path: Of the folder.
        host: Name or address of the SuperLink, as every machine reaches it.
        port: Its port.
        nodes: In the order of their partitions.
        control_host: Where the operator's commands reach it: the same, unless a guard stands there.
        control_port: Likewise.
    """

    path: Path
    host: str
    port: int
    nodes: tuple[Node, ...]
    control_host: str
    control_port: int

    @property
    def address(self) -> str:
        """The SuperLink's address as nodes reach it, in Flower's words."""
        return written(self.host, self.port)

    @property
    def control(self) -> str:
        """The address that the operator's commands reach."""
        return written(self.control_host, self.control_port)

    @property
    def guarded(self) -> bool:
        """Whether nodes reach a guard, and the operator's commands the SuperLink behind it."""
        return self.control != self.address

    @property
    def ca_certificate(self) -> Path:
        """The certificate that every machine trusts."""
        return self.path / "certificates" / "ca.crt"

    def public_key(self, node: Node) -> Path:
        """The file that the SuperLink knows a node by."""
        return self.path / "keys" / f"{node.name}.pub"

    def write(self) -> None:
        """Write the list of nodes."""
        nodes = [asdict(node) for node in self.nodes]
        listed = {"host": self.host, "port": self.port, "control": self.control, "nodes": nodes}
        (self.path / NODES_FILE).write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")


def read_deployment(path: Path) -> Deployment:
    """Read a deployment's folder.

    Raises:
        DeployError: If there is none, or its list of nodes isn't as it was written.
    """
    file = path / NODES_FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        nodes = tuple(Node(str(n["name"]), int(n["partition"]), str(n["fingerprint"])) for n in found["nodes"])
        host, port = str(found["host"]), int(found["port"])
        control = parse_server(found["control"]) if "control" in found else (host, port)  # earlier ones had no guard
        deployment = Deployment(path, host, port, nodes, *control)
    except NotADirectoryError:
        raise DeployError(f"{path}: it is a file; the folder of the deployment comes first") from None
    except FileNotFoundError:
        raise DeployError(f"{path} holds no {NODES_FILE}; make a deployment with snnfl deploy init {path}") from None
    except (OSError, LookupError, TypeError, ValueError, DeployError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DeployError(f"{file}: not the list that snnfl deploy init writes ({reason})") from None
    missing = [p for p in (deployment.ca_certificate, *map(deployment.public_key, nodes)) if not p.is_file()]
    if missing:
        raise DeployError(f"{missing[0]} is missing; copy the whole folder, private keys of nodes excepted")
    return deployment


def parse_server(server: str) -> tuple[str, int]:
    """Split ``HOST``, ``HOST:PORT`` or ``[IPV6]:PORT``.

    >>> parse_server("fl.example.org"), parse_server("[::1]:8001")
    (('fl.example.org', 8000), ('::1', 8001))

    Raises:
        DeployError: If it is neither.
    """
    try:
        parts = urlsplit(f"//{server}")
        host, port = parts.hostname, DEFAULT_PORT if parts.port is None else parts.port
    except ValueError:
        host, port = None, 0
    if host is None or not port or parts.netloc != server or "@" in server or not _is_host(host):
        raise DeployError(f"--server {server}: expected HOST or HOST:PORT, such as fl.example.org:{DEFAULT_PORT}")
    return host, port


def ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return a host's address, if it is one and not a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Tell whether a name or an address is this machine's, to itself alone.

    >>> [is_loopback(host) for host in ("localhost", "127.0.0.1", "::1", "fl.example.org", "10.0.0.1")]
    [True, True, True, False, False]
    """
    address = ip_address(host)
    return host == "localhost" if address is None else address.is_loopback


def written(host: str, port: int) -> str:
    """Write a host and a port as :func:`parse_server` reads them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_host(host: str) -> bool:
    labels = host.rstrip(".").split(".")
    plain = all(part and part.isascii() and part.replace("-", "").replace("_", "").isalnum() for part in labels)
    return ip_address(host) is not None or plain
