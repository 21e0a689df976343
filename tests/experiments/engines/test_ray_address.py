"""The address of a Ray cluster: asked before Ray is, whose own attempts take minutes."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import ray
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from experiments.engines import ray_address
from experiments.engines.ray import RayError, run_on_ray
from experiments.engines.ray_address import cluster_address

HERE = ray.util.get_node_ip_address()


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def unused_port() -> int:
    with socket.create_server((HERE, 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def mute() -> Iterator[int]:
    """A server that accepts and says nothing."""
    with socket.create_server((HERE, 0)) as server:
        yield server.getsockname()[1]


@contextmanager
def web() -> Iterator[int]:
    """A web server."""
    with http.server.HTTPServer((HERE, 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize("host", [HERE, "127.0.0.1", "localhost"])
def test_an_address_where_nothing_listens_is_refused_at_once_and_in_one_line(host: str) -> None:
    port, start = unused_port(), time.monotonic()
    with pytest.raises(RayError) as error:
        run_on_ray(
            ServerApp(),
            ClientApp(),
            run_config={},
            clients=1,
            backend_config={"init_args": {"address": f"{host}:{port}"}},
        )
    assert time.monotonic() - start < 20
    translated = "" if host == HERE else f", which Ray takes for {HERE}:{port}"
    assert str(error.value) == (
        f"address={host}:{port}{translated}: no Ray cluster answers (Connection refused); "
        f"`ray start --head --node-ip-address={HERE} --port={port}` on that machine starts one"
    )
    assert not ray.is_initialized()


@pytest.mark.parametrize("listener", [mute, web])
def test_whatever_listens_must_be_a_cluster(
    listener: Callable[[], AbstractContextManager[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_address, "ANSWER_SECONDS", 2.0)
    start = time.monotonic()
    with listener() as port, pytest.raises(ValueError, match=r"something listens, but no Ray cluster \(gRPC \w+\)"):
        cluster_address({"address": f"{HERE}:{port}"})
    assert time.monotonic() - start < 20


def test_a_machine_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(address: tuple[str, int], timeout: float) -> None:
        assert address == ("192.0.2.99", 6379)
        assert timeout < 10
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", never)
    with pytest.raises(ValueError, match=r"^address=192.0.2.99:6379: no Ray cluster answers \(timed out\)"):
        cluster_address({"address": "192.0.2.99:6379"})


@pytest.mark.parametrize("address", ["", "somewhere", ":6379", "host:", "host:port", "host:0", "host:65536"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"^address='.*': expected HOST:PORT of a Ray cluster"):
        cluster_address({"address": address})


def test_a_cluster_is_joined_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster_address({}) == "local"  # None would let Ray join whatever runs on this machine
    assert cluster_address({"address": "auto"}) == "auto"
    monkeypatch.setenv("RAY_ADDRESS", f"{HERE}:{unused_port()}")
    for init_args in ({}, {"address": "auto"}):
        with pytest.raises(ValueError, match="no Ray cluster answers"):
            cluster_address(init_args)
    assert cluster_address({"address": "local"}) == "local"


def test_auto_where_no_cluster_runs_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: object) -> None:
        assert options["address"] == "auto"
        raise ConnectionError("Could not find any running Ray instance.\n  Please specify")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RayError, match=r"^Ray does not start with .*: Could not find any running Ray instance. Please"):
        run_on_ray(
            ServerApp(), ClientApp(), run_config={}, clients=1, backend_config={"init_args": {"address": "auto"}}
        )
