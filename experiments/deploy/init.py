"""Make the folder of a deployment."""

from __future__ import annotations

import os
from pathlib import Path

from experiments.deploy import DeployError
from experiments.deploy.certificates import fingerprint, make_authority, make_node_key, make_server
from experiments.deploy.folder import BEHIND, Deployment, Node, is_loopback, parse_server
from experiments.deploy.guard import guard_config
from snnfl.files import make_private

ENVIRONMENT = """\
# What docker/compose*.yaml read; written by snnfl deploy init. Copy this file to each machine, beside what
# docker/README.md says belongs there, and change the second half on each client's.

# The image that docker/Dockerfile builds.
SNNFL_IMAGE=localhost/snnfl:latest

# The user that containers run as, and who therefore must own the .key files and keys/node-*: yourself (id -u), never 0.
CONTAINER_UID=10001

# The SuperLink as every machine reaches it; its certificate holds this name. It has this one port.
SUPERLINK_HOST={host}
SUPERLINK_PORT={port}

# On the SuperLink's machine, where there are several: its port on 127.0.0.1, for its operator's commands, and the image
# of nginx that guards the port above.
CONTROL_PORT={control_port}
GUARD_IMAGE=docker.io/library/nginx:1.28-alpine

# How many SuperNodes there are: a run's data.clients.
NODES={nodes}

# On a client's machine: which partition it holds, counted from 0, of NODES; its key is keys/node-PARTITION.
PARTITION=0

# The folder of data sets, which containers only read. It must exist.
DATA=./data

# On a client's machine: what the node has for itself (data.source=own), as the container sees it: DATA or a file in it.
DATA_PATH=/snnfl/data
"""

GUARD_FILE = "guard.conf"
"""Configuration of the nginx that lets nodes alone through."""

IDENTITIES_FOLDER = "identities"
"""Public keys of all nodes, by which they know each other in secure aggregation."""

MOST = 65535
"""The largest port."""

GITIGNORE = "# Private keys lie here.\n*\n"


def init_deployment(path: Path, server: str, nodes: int, *, renew: bool = False) -> Deployment:
    """Make a deployment's certificates, keys, list of nodes, ``.env`` and, unless all is on one machine, its guard.

    Each node gets the public keys of all: the folder of :data:`IDENTITIES_FOLDER`, which holds nothing private.

    Args:
        path: Folder to make.
        server: ``HOST`` or ``HOST:PORT`` of the SuperLink.
        nodes: How many SuperNodes; node ``i`` holds partition ``i``.
        renew: Keep what is there, but issue a new server certificate and keys for nodes beyond those there.

    Raises:
        DeployError: If the folder has one already, has none to renew, or cannot be written. Nothing is replaced.
    """
    host, port = parse_server(server)
    certificates, keys = path / "certificates", path / "keys"
    authority, server_files = (
        (certificates / f"{name}.crt", certificates / f"{name}.key") for name in ("ca", "server")
    )
    names = [f"node-{index}" for index in range(nodes)]
    private = [*authority, *server_files, *(keys / name for name in names)]
    there = [file for file in private if file.exists()]
    if there and not renew:
        raise DeployError(
            f"{there[0]} exists, and no key is replaced: name another folder, move this one away, or add --renew, "
            "which keeps the authority and the nodes' keys and issues a new server certificate"
        )
    identities = path / IDENTITIES_FOLDER
    if identities.exists() and not os.access(identities, os.W_OK):
        raise DeployError(
            f"{identities} cannot be written: Docker makes what it doesn't find, as root; type: sudo rmdir {identities}"
        )
    if renew and not all(file.exists() for file in authority):
        raise DeployError(f"--renew: {authority[1]} is missing; only the folder that signed the first can sign another")
    try:
        for folder in (certificates, keys):
            make_private(folder)
        if not renew:
            make_authority(*authority)
        for file in server_files:  # a server's key is used up with its certificate
            file.unlink(missing_ok=True)
        make_server(*server_files, authority, host)
        made = tuple(Node(name, index, _node_key(keys, name)) for index, name in enumerate(names))
        behind = port + 1 if port < MOST else port - 1
        control = (host, port) if is_loopback(host) else (BEHIND, behind)
        deployment = Deployment(path, host, port, made, *control)
        deployment.write()
        _write_identities(identities, [deployment.public_key(node) for node in made])
        written = {".env": ENVIRONMENT.format(host=host, port=port, nodes=nodes, control_port=behind)}
        if deployment.guarded:
            listen = f"[::]:{port}" if ":" in host else str(port)
            written[GUARD_FILE] = guard_config(listen, deployment.control)
        for name, text in written.items():
            if not (path / name).exists():  # once written, it is the operator's
                (path / name).write_text(text, encoding="utf-8")
        (path / ".gitignore").write_text(GITIGNORE, encoding="utf-8")
    except OSError as error:
        raise DeployError(f"{error.filename or path}: cannot be written ({error.strerror})") from None
    return deployment


def _write_identities(folder: Path, public: list[Path]) -> None:
    """Copy the nodes' public keys, and no others'; a node that was given another key has that.

    Containers read them, whoever they run as; nobody else writes there, for who adds a key of his own is a node.
    """
    folder.mkdir(0o700, exist_ok=True)
    folder.chmod(0o755)
    for gone in {file.name for file in folder.glob("node-*.pub")} - {file.name for file in public}:
        (folder / gone).unlink()
    for file in public:
        copy = folder / file.name
        copy.write_bytes(file.read_bytes())
        copy.chmod(0o644)


def _node_key(keys: Path, name: str) -> str:
    """Make a node's key unless its public half is there; return its fingerprint."""
    public = keys / f"{name}.pub"
    return fingerprint(public) if public.exists() else make_node_key(keys / name, public, name)
