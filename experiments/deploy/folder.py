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
    """

    path: Path
    host: str
    port: int
    nodes: tuple[Node, ...]

    @property
    def address(self) -> str:
        """What Flower calls the SuperLink's address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def ca_certificate(self) -> Path:
        """The certificate that every machine trusts."""
        return self.path / "certificates" / "ca.crt"

    def public_key(self, node: Node) -> Path:
        """The file that the SuperLink knows a node by."""
        return self.path / "keys" / f"{node.name}.pub"

    def write(self) -> None:
        """Write the list of nodes."""
        listed = {"host": self.host, "port": self.port, "nodes": [asdict(node) for node in self.nodes]}
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
        deployment = Deployment(path, str(found["host"]), int(found["port"]), nodes)
    except NotADirectoryError:
        raise DeployError(f"{path}: it is a file; the folder of the deployment comes first") from None
    except FileNotFoundError:
        raise DeployError(f"{path} holds no {NODES_FILE}; make a deployment with snnfl deploy init {path}") from None
    except (OSError, LookupError, TypeError, ValueError) as error:
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


def _is_host(host: str) -> bool:
    labels = host.rstrip(".").split(".")
    plain = all(part and part.isascii() and part.replace("-", "").replace("_", "").isalnum() for part in labels)
    return ip_address(host) is not None or plain
