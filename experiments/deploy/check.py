"""Is everything in place for a run? One line each, and one per node."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import flwr
from flwr.common.constant import SYSTEM_TIME_TOLERANCE

from experiments.deploy import DeployError
from experiments.deploy.folder import Deployment, Node, is_loopback
from experiments.deploy.superlink import (
    Seen,
    flower_version,
    greet,
    greet_guard,
    nodes_seen,
    public_key_pem,
    register,
)

RENEWAL = timedelta(days=30)
"""A certificate that is valid for less is worth a warning."""

Show = Callable[[str], None]


def check_deployment(deployment: Deployment, show: Show) -> None:
    """Reach the SuperLink, look at its certificate, clock and Flower, and say what each node is doing.

    Raises:
        DeployError: If the SuperLink cannot be reached or trusted, or anything else is not as a run needs it.
    """
    mistakes = 0

    def tell(what: str, line: str, *, fine: bool = True) -> None:
        nonlocal mistakes
        mistakes += not fine
        show(f"{what:<12} {line}" if fine else f"{what:<12} {line}  <-- put this right")

    expiry = greet(deployment)
    tell("superlink", f"{deployment.control} answers, encrypted")
    _check_guard(deployment, tell)
    left = expiry - datetime.now(UTC)
    tell("certificate", f"for {deployment.host}, valid until {expiry:%Y-%m-%d}", fine=left > RENEWAL)
    theirs, ours = flower_version(deployment), flwr.__version__
    same = theirs is None or theirs.split(".")[:2] == ours.split(".")[:2]
    tell("flower", f"{theirs or 'of unknown version'} there, {ours} here", fine=same)
    seen, ahead = nodes_seen(deployment)
    near = abs(ahead) < SYSTEM_TIME_TOLERANCE  # it refuses requests that a node signed in its future
    tell("clock", f"the SuperLink's is {abs(ahead):.1f} s {'ahead' if ahead > 0 else 'behind'}", fine=near)
    known = by_key(seen)
    for node in deployment.nodes:
        found = known.pop(public_key_pem(deployment, node), None)
        tell(node.name, f"partition {node.partition}, {said(node, found, deployment)}", fine=is_online(found))
    for stranger in known.values():
        tell(f"node {stranger.node_id}", f"{stranger.status}, but its key is not of this deployment", fine=False)
    if mistakes:
        raise DeployError(f"{mistakes} of the lines above must be put right before a run")


def _check_guard(deployment: Deployment, tell: Callable[..., None]) -> None:
    """Say who gets at the SuperLink besides its operator; on one machine nobody does."""
    if deployment.guarded:
        wrong = greet_guard(deployment)
        tell("guard", f"{deployment.address} {wrong or 'lets SuperNodes through and nobody else'}", fine=wrong is None)
    elif not is_loopback(deployment.host):
        way_out = f"snnfl deploy init {deployment.path} --server {deployment.address} --nodes N --renew makes one"
        tell("guard", f"none: whoever reaches {deployment.address} can submit runs; {way_out}", fine=False)


def register_nodes(deployment: Deployment, show: Show) -> None:
    """Let the nodes of a deployment in that aren't yet.

    Raises:
        DeployError: If the SuperLink cannot be reached or trusted.
    """
    greet(deployment)
    known = by_key(nodes_seen(deployment)[0])
    for node in deployment.nodes:
        if public_key_pem(deployment, node) in known:
            show(f"{node.name:<12} was registered before")
        else:
            show(f"{node.name:<12} registered as node {register(deployment, node)}")


def by_key(seen: list[Seen]) -> dict[bytes, Seen]:
    """Return the nodes that the SuperLink lets in by their public keys."""
    return {node.public_key: node for node in seen if node.status != "unregistered"}


def is_online(found: Seen | None) -> bool:
    """Tell whether a node takes part in the next run."""
    return found is not None and found.status == "online"


def said(node: Node, found: Seen | None, deployment: Deployment) -> str:
    """Say what a node is doing."""
    if found is None:
        return f"not registered: snnfl deploy register {deployment.path}"
    if found.since is not None:
        return f"{found.status} since {found.since:%Y-%m-%d %H:%M:%S} UTC"
    return f"{found.status}, but has never connected"
