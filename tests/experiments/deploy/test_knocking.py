"""What ``check`` finds by knocking at a guard, or what stands in its place: real sockets and certificates."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from experiments.deploy.folder import Deployment
from experiments.deploy.init import init_deployment
from experiments.deploy.superlink import greet_guard


def address_of_this_machine() -> str | None:
    """Return an address by which others reach this machine; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])


@contextmanager
def answering(deployment: Deployment, host: str, statuses: dict[str, int]) -> Iterator[int]:
    """Answer with the status of an interface, with the deployment's certificate; yield the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(statuses[self.path.split("/")[2]])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Be silent."""

    with ThreadingHTTPServer((host, 0), Handler) as server:
        context, files = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), deployment.path / "certificates"
        context.load_cert_chain(files / "server.crt", files / "server.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


GUARD, WALL, OPEN = {"control": 403, "fleet": 401}, {"control": 403, "fleet": 403}, {"control": 200, "fleet": 401}


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    if (host := address_of_this_machine()) is None:
        pytest.skip("this machine has no network")
    return init_deployment(tmp_path / "fleet", f"{host}:8000", 1)


@pytest.mark.parametrize(
    ("statuses", "wrong"),
    [(GUARD, None), (WALL, "lets no SuperNode through either"), (OPEN, "lets strangers at Flower's control interface")],
)
def test_who_is_let_through(deployment: Deployment, statuses: dict[str, int], wrong: str | None) -> None:
    with answering(deployment, deployment.host, statuses) as port, answering(deployment, "127.0.0.1", OPEN) as behind:
        found = greet_guard(replace(deployment, port=port, control_port=behind))
    assert found is None if wrong is None else found is not None and found.startswith(wrong)


def test_a_superlink_that_listens_beside_its_guard_is_told(deployment: Deployment) -> None:
    with answering(deployment, deployment.host, GUARD) as port, answering(deployment, "0.0.0.0", OPEN) as behind:
        found = greet_guard(replace(deployment, port=port, control_port=behind))
    told = f"strangers reach the SuperLink at {deployment.host}:{behind}; start it with --host 127.0.0.1"
    assert found == f"is passed by: {told}"
