"""Certificates that TLS accepts, keys that Flower reads, and a second ``init`` that replaces nothing."""

from __future__ import annotations

import json
import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from flwr.cli.supernode.register import try_load_public_key
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode, _try_setup_client_authentication
from typer.testing import CliRunner

from experiments.cli import app
from experiments.deploy import DeployError
from experiments.deploy.certificates import fingerprint, read_certificate
from experiments.deploy.folder import parse_server, read_deployment
from experiments.deploy.init import init_deployment
from snnfl.masking import ProtocolError, PublicKeys
from snnfl.masking.identity import read_private, read_public, sign, verify

SESSION = bytes(32)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deployment") / "fleet"
    init_deployment(folder, "fl.example.org:8123", 2)
    return folder


def handshake(server: Path, trusted: Path, name: str) -> None:
    """Speak TLS over a socket pair: the server with one folder's certificate, the client trusting another's."""
    ours, theirs = socket.socketpair()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server / "certificates/server.crt", server / "certificates/server.key")

    def serve() -> None:
        try:
            context.wrap_socket(theirs, server_side=True).close()
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    client = ssl.create_default_context(cafile=str(trusted / "certificates/ca.crt"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # Python 3.13's default
    try:
        with client.wrap_socket(ours, server_hostname=name):
            pass
    finally:
        ours.close()
        thread.join()


@pytest.mark.parametrize("name", ["fl.example.org", "localhost", "127.0.0.1", "superlink"])
def test_the_servers_certificate_holds_for_its_names(made: Path, name: str) -> None:
    handshake(made, made, name)


def test_no_other_name_and_no_other_authority_is_accepted(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(made, made, "other.example.org")
    init_deployment(tmp_path, "fl.example.org", 1)
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
        handshake(made, tmp_path, "fl.example.org")


def test_flower_reads_the_keys_of_a_node(made: Path) -> None:
    arguments = ["--insecure", "--auth-supernode-private-key", str(made / "keys/node-0")]
    keys = _try_setup_client_authentication(_parse_args_run_supernode().parse_args(arguments))
    assert keys is not None
    assert keys[1].curve.name == "secp384r1"
    assert try_load_public_key(made / "keys/node-0.pub").startswith(b"-----BEGIN PUBLIC KEY")


def test_private_files_are_their_owners_alone(made: Path) -> None:
    private = [
        made / "certificates/ca.key",
        made / "certificates/server.key",
        made / "keys/node-0",
        made / "keys/node-1",
    ]
    for file in made.rglob("*"):
        mode = stat.S_IMODE(file.stat().st_mode)
        assert (mode == 0o600) == (file in private), file
    assert (made / ".gitignore").read_text().endswith("\n*\n")


def test_nodes_know_each_other_by_a_folder_without_secrets(made: Path, tmp_path: Path) -> None:
    """What one node's key signs, another takes for a node's by the folder, and what a stranger's signs it doesn't."""
    known, public = read_public(made / "identities"), PublicKeys(mask=bytes(32), channel=bytes(32))
    for index in range(2):
        signature = sign(read_private(made / f"keys/node-{index}"), SESSION, index, public)
        verify(known, SESSION, index, public, signature)
        with pytest.raises(ProtocolError, match="aren't signed by the node that is known as it"):
            verify(
                known,
                SESSION,
                1 - index,
                public,
                sign(read_private(made / f"keys/node-{index}"), SESSION, 1 - index, public),
            )
    init_deployment(tmp_path, "localhost", 1)
    with pytest.raises(ProtocolError, match="aren't signed by the node that is known as it"):
        verify(known, SESSION, 0, public, sign(read_private(tmp_path / "keys/node-0"), SESSION, 0, public))
    init_deployment(tmp_path, "localhost", 3, renew=True)
    assert len(read_public(tmp_path / "identities")) == 3
    assert not [file for file in (tmp_path / "identities").iterdir() if b"PRIVATE" in file.read_bytes()]
    init_deployment(tmp_path, "localhost", 2, renew=True)
    assert len(read_public(tmp_path / "identities")) == 2


def test_the_folder_is_read_back(made: Path) -> None:
    found = read_deployment(made)
    assert (found.address, [node.partition for node in found.nodes]) == ("fl.example.org:8123", [0, 1])
    assert [fingerprint(found.public_key(node)) for node in found.nodes] == [n.fingerprint for n in found.nodes]
    assert len({node.fingerprint for node in found.nodes}) == 2
    environment = dict(line.split("=") for line in (made / ".env").read_text().splitlines() if line[:1].isalpha())
    wanted = {"SUPERLINK_HOST": "fl.example.org", "SUPERLINK_PORT": "8123", "NODES": "2"}
    assert wanted.items() <= environment.items()
    others = {"SNNFL_IMAGE", "CONTAINER_UID", "CONTROL_PORT", "GUARD_IMAGE", "PARTITION", "DATA", "DATA_PATH"}
    assert environment.keys() == wanted.keys() | others


def test_only_a_guard_stands_where_others_reach_a_superlink(made: Path, tmp_path: Path) -> None:
    found = read_deployment(made)
    assert (found.guarded, found.control) == (True, "127.0.0.1:8124")
    text = (made / "guard.conf").read_text()
    assert "listen 8123 ssl;" in text
    assert "server 127.0.0.1:8124;" in text
    alone = init_deployment(tmp_path, "localhost:8123", 1)
    assert (alone.guarded, alone.control) == (False, "localhost:8123")
    assert not (tmp_path / "guard.conf").exists()


def test_a_deployment_of_before_is_as_it_was_until_it_is_renewed(tmp_path: Path) -> None:
    init_deployment(tmp_path, "fl.example.org", 1)
    (tmp_path / "guard.conf").unlink()
    listed = json.loads((tmp_path / "nodes.json").read_text())
    del listed["control"]
    (tmp_path / "nodes.json").write_text(json.dumps(listed))
    found = read_deployment(tmp_path)
    assert (found.guarded, found.control) == (False, "fl.example.org:8000")
    assert init_deployment(tmp_path, "fl.example.org", 1, renew=True) == read_deployment(tmp_path)
    assert read_deployment(tmp_path).control == "127.0.0.1:8001"
    assert (tmp_path / "guard.conf").exists()


def test_a_second_init_replaces_nothing(made: Path) -> None:
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    done = CliRunner().invoke(app, ["deploy", "init", str(made), "--server", "elsewhere", "--nodes", "3"])
    assert isinstance(done.exception, DeployError)
    assert f"{made}/certificates/ca.crt exists" in str(done.exception)
    assert "--renew" in str(done.exception)
    assert {path: path.read_bytes() for path in made.rglob("*") if path.is_file()} == before


def test_renewal_keeps_the_authority_and_the_keys(tmp_path: Path) -> None:
    init_deployment(tmp_path, "old.example.org", 2)
    (tmp_path / "keys/node-1").unlink()  # it has been moved to its machine
    (tmp_path / ".env").write_text("edited")
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "server" not in path.name}
    serial = read_certificate(tmp_path / "certificates/server.crt").serial_number
    init_deployment(tmp_path, "new.example.org", 3, renew=True)
    assert [node.name for node in read_deployment(tmp_path).nodes] == ["node-0", "node-1", "node-2"]
    assert all(path.read_bytes() == content for path, content in kept.items() if path.name != "nodes.json")
    assert not (tmp_path / "keys/node-1").exists()
    assert read_certificate(tmp_path / "certificates/server.crt").serial_number != serial
    handshake(tmp_path, tmp_path, "new.example.org")


def test_renewal_needs_the_authority(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match=r"ca\.key is missing"):
        init_deployment(tmp_path, "fl.example.org", 1, renew=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "server", ["", "a b", "https://fl.org", "fl.org/x", "fl.org:port", "fl.org:0", "me@fl.org", "::1"]
)
def test_a_server_that_is_none_is_refused(server: str, tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="expected HOST or HOST:PORT"):
        init_deployment(tmp_path, server, 1)
    assert not list(tmp_path.iterdir())


def test_a_server_may_be_an_address(tmp_path: Path) -> None:
    assert parse_server("10.0.0.1") == ("10.0.0.1", 8000)
    assert init_deployment(tmp_path, "[fd00::1]:9", 1).address == "[fd00::1]:9"
    handshake(tmp_path, tmp_path, "fd00::1")


@pytest.mark.parametrize("text", [None, "{", "[]", '{"nodes": []}', '{"host": "a", "port": "b", "nodes": []}'])
def test_a_folder_that_is_none_is_refused_in_one_line(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "nodes.json").write_text(text)
    with pytest.raises(DeployError, match=r"nodes\.json") as error:
        read_deployment(tmp_path)
    assert len(str(error.value).splitlines()) == 1
