"""Ask a Ray cluster whether it is there, before Ray does, who tries for minutes and logs what its own code says."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

import grpc
import ray

HERE, ANY = "local", "auto"
"""Ray's words for a cluster of this process's own, and for one that runs on this machine."""

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 10.0

HEALTH_CHECK = "/grpc.health.v1.Health/Check"
"""A method that every gRPC server of Ray's has; an empty message asks for the health of all of it."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def cluster_address(init_args: Mapping[str, Any]) -> str:
    """Return the address that ``ray.init`` is to be given.

    Without one Ray would join any cluster that was started on this machine, by whomever. Here that is done only where
    it is asked for, by ``init_args`` or the variable ``RAY_ADDRESS``.

    Args:
        init_args: Of ``ray.init``.

    Returns:
        ``HOST:PORT``, :data:`ANY` or :data:`HERE`.

    Raises:
        ValueError: If it is none of these, or no cluster answers there; the text is one line.
    """
    address = init_args.get("address")
    if address in (None, ANY):  # Ray's own order
        address = os.environ.get("RAY_ADDRESS") or address or HERE
    if address not in (HERE, ANY):
        _check(str(address))
    return str(address)


def _check(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"address={address!r}: expected HOST:PORT of a Ray cluster, as `ray start --head` prints it")
    this_machine = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
    dialled = (this_machine if host in LOOPBACK else host).strip("[]")
    wanted = f"{dialled}:{port}"
    means = f", which Ray takes for {wanted}" if host in LOOPBACK else ""
    start = f"`ray start --head --node-ip-address={dialled} --port={port}` on that machine starts one"
    try:
        socket.create_connection((dialled, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        reason = str(error.strerror or error)
        raise ValueError(f"address={address}{means}: no Ray cluster answers ({reason}); {start}") from None
    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return  # it answers those alone who show Ray's certificate
    with grpc.insecure_channel(wanted) as channel:
        try:
            channel.unary_unary(HEALTH_CHECK)(b"", timeout=ANSWER_SECONDS)
        except grpc.RpcError as error:
            reason = f"gRPC {error.code().name}"
            raise ValueError(
                f"address={address}{means}: something listens, but no Ray cluster ({reason}); {start}"
            ) from None
