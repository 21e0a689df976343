"""What ``snnfl deploy check`` says of a SuperLink that isn't as it should be; of a real one: test_outages.py."""

from __future__ import annotations

import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import flwr
import pytest
from flwr.proto.control_pb2 import ListNodesResponse, RegisterNodeRequest, RegisterNodeResponse
from flwr.proto.node_pb2 import NodeInfo

from experiments.deploy import DeployError, certificates
from experiments.deploy.check import check_deployment, register_nodes
from experiments.deploy.folder import Deployment
from experiments.deploy.init import init_deployment
from experiments.deploy.superlink import public_key_pem


class SuperLink(ThreadingHTTPServer):
    """Answers as a SuperLink does: its version, its clock, and the nodes that are registered."""

    def __init__(self) -> None:
        super().__init__(("0.0.0.0", 0), Answer)  # on 127.0.0.2 too
        self.version, self.ahead, self.nodes, self.refusal = flwr.__version__, timedelta(), list[NodeInfo](), ""

    def enroll(self, request: RegisterNodeRequest, status: str = "registered") -> int:
        since = datetime.now(UTC).isoformat()
        times = {"registered_at": since, "last_activated_at": since, "last_deactivated_at": since}
        node = NodeInfo(node_id=7 + len(self.nodes), public_key=request.public_key, status=status, **times)
        self.nodes.append(node)
        return int(node.node_id)


class Answer(BaseHTTPRequestHandler):
    server: SuperLink

    def do_GET(self) -> None:
        self.answer(json.dumps({"info": {"version": self.server.version}}).encode())

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        if self.server.refusal:
            self.answer(json.dumps({"code": 1, "detail": self.server.refusal}).encode(), 412)
        elif self.path.endswith("list-nodes"):
            now = (datetime.now(UTC) + self.server.ahead).isoformat()
            self.answer(ListNodesResponse(nodes_info=self.server.nodes, now=now).SerializeToString())
        else:
            request = RegisterNodeRequest.FromString(content)
            self.answer(RegisterNodeResponse(node_id=self.server.enroll(request)).SerializeToString())

    def answer(self, content: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def serving(folder: Path, *, encrypted: bool = True) -> Iterator[tuple[SuperLink, Deployment]]:
    """Serve a new deployment of two nodes on this machine."""
    with SuperLink() as server:
        deployment = init_deployment(folder, f"127.0.0.1:{server.server_address[1]}", 2)
        if encrypted:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(folder / "certificates/server.crt", folder / "certificates/server.key")
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server, deployment
        finally:
            server.shutdown()
            thread.join()


Change = Callable[[SuperLink], None]


def said(deployment: Deployment) -> tuple[dict[str, str], str | None]:
    """Return what the check says of each thing, and its error."""
    lines: list[str] = []
    try:
        check_deployment(deployment, lines.append)
    except DeployError as found:
        error = str(found)
    else:
        error = None
    return {line.split()[0]: line for line in lines}, error


def test_nodes_are_told_by_their_keys_and_registered_once(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, deployment):
        lines, error = said(deployment)
        assert f"not registered: snnfl deploy register {tmp_path}" in lines["node-0"]
        assert error == "2 of the lines above must be put right before a run"
        register_nodes(deployment, lambda line: None)
        register_nodes(deployment, lambda line: None)
        assert [node.public_key for node in server.nodes] == [public_key_pem(deployment, n) for n in deployment.nodes]
        server.nodes[0].status, server.nodes[1].status = "online", "offline"
        lines, error = said(deployment)
        assert "partition 0, online since" in lines["node-0"]
        assert "partition 1, offline since" in lines["node-1"]
        assert error == "1 of the lines above must be put right before a run"
        server.nodes[1].status = "online"
        assert said(deployment)[1] is None


@pytest.mark.parametrize(
    ("change", "what", "line"),
    [
        (lambda s: setattr(s, "version", "1.20.3"), "flower", f"1.20.3 there, {flwr.__version__} here  <-- put this"),
        (
            lambda s: setattr(s, "ahead", timedelta(seconds=-20)),
            "clock",
            r"SuperLink's is \d+.\d s behind  <-- put this",
        ),
        (lambda s: setattr(s, "ahead", timedelta(seconds=20)), "clock", r"SuperLink's is \d+.\d s ahead  <-- put this"),
        (
            lambda s: s.enroll(RegisterNodeRequest(public_key=b"?"), "online"),
            "node",
            "its key is not of this deployment",
        ),
    ],
)
def test_what_a_run_would_stumble_over_is_marked(change: Change, what: str, line: str, tmp_path: Path) -> None:
    with serving(tmp_path) as (server, deployment):
        for node in deployment.nodes:
            server.enroll(RegisterNodeRequest(public_key=public_key_pem(deployment, node)), "online")
        assert said(deployment)[1] is None
        change(server)
        lines, error = said(deployment)
        assert re.search(line, lines[what])
        assert error == "1 of the lines above must be put right before a run"


def test_what_the_superlink_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, deployment):
        server.refusal = "Flower runtime versions are incompatible."
        assert said(deployment)[1] == f"{deployment.address}: Flower runtime versions are incompatible."


def test_a_server_without_tls_or_under_another_name_is_not_trusted(tmp_path: Path) -> None:
    with serving(tmp_path / "plain", encrypted=False) as (_, deployment):
        assert "it doesn't speak TLS" in (said(deployment)[1] or "")
    with serving(tmp_path / "named") as (_, deployment):
        assert said(replace(deployment, host="127.0.0.2"))[1] == (
            f"127.0.0.2:{deployment.port}: its certificate is not for 127.0.0.2; issue one: snnfl deploy init "
            f"{deployment.path} --server 127.0.0.2:{deployment.port} --renew"
        )


def test_a_certificate_that_has_expired_or_soon_will_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "SERVER_DAYS", 20)
    with serving(tmp_path / "soon") as (_, deployment):
        assert "<-- put this right" in said(deployment)[0]["certificate"]
    monkeypatch.setattr(certificates, "BACKDATED", timedelta(days=21))
    with serving(tmp_path / "gone") as (_, deployment):
        assert "its certificate has expired; issue another: snnfl deploy init" in (said(deployment)[1] or "")
