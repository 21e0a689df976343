"""What the compose files promise, and that they fit what ``snnfl deploy init`` writes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from flwr_local import BINARIES

from experiments.deploy.guard import CONFIG, IN_COMPOSE
from experiments.deploy.init import init_deployment
from snnfl.masking.identity import read_public

DOCKER = Path(__file__).parents[2] / "docker"
FILES = ("compose.yaml", "compose.server.yaml", "compose.client.yaml")
DATA, IDENTITIES = "${DATA:-./data}:/snnfl/data:ro", "./identities:/snnfl/identities:ro"
VARIABLE = re.compile(r"\$\{(\w+)(?::[?-]([^}]*))?\}")


def services(name: str) -> dict[str, dict[str, Any]]:
    return yaml.safe_load((DOCKER / name).read_text())["services"]


def every_service() -> list[Any]:
    return [pytest.param(service, id=f"{file}:{name}") for file in FILES for name, service in services(file).items()]


def test_the_services_are_those_that_are_told() -> None:
    assert list(services("compose.yaml")) == ["superlink", "node-0", "node-1", "node-2"]
    assert list(services("compose.server.yaml")) == ["superlink", "guard"]
    assert list(services("compose.client.yaml")) == ["supernode"]


@pytest.mark.parametrize("service", every_service())
def test_a_service_may_do_little(service: dict[str, Any]) -> None:
    assert re.fullmatch(r"\$\{CONTAINER_UID:-[1-9]\d*\}:0", service["user"])
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["tmpfs"] == ["/tmp"]
    assert not service.keys() & {
        "privileged",
        "cap_add",
        "network_mode",
        "pid",
        "ipc",
        "devices",
        "environment",
        "env_file",
    }


@pytest.mark.parametrize("service", every_service())
def test_a_service_comes_back_and_tells_its_health(service: dict[str, Any]) -> None:
    assert (service["init"], service["restart"]) == (True, "unless-stopped")
    check = service["healthcheck"]
    assert check["test"][0] == "CMD"
    if check["test"][1] == "python":
        compile(check["test"][-1], "healthcheck", "exec")
    assert {"interval", "timeout", "retries", "start_period"} <= check.keys()


@pytest.mark.parametrize("file", FILES)
def test_others_reach_the_guard_alone(file: str) -> None:
    ports = [port for service in services(file).values() for port in service.get("ports", [])]
    wanted = {
        "compose.yaml": ["127.0.0.1:${SUPERLINK_PORT:-8000}:8000"],  # nodes share its network; an operator sits here
        "compose.server.yaml": ["127.0.0.1:${CONTROL_PORT:-8001}:8000", "${SUPERLINK_PORT:-8000}:8000"],
        "compose.client.yaml": [],
    }
    assert ports == wanted[file]


@pytest.mark.parametrize("file", FILES)
def test_whatever_is_written_lies_in_a_volume(file: str) -> None:
    declared = yaml.safe_load((DOCKER / file).read_text())["volumes"]
    used = []
    for service in services(file).values():
        named = [volume for volume in service["volumes"] if volume.partition(":")[0] in declared]
        read = {"./compose.guard.conf:/etc/nginx/nginx.conf:ro"} if "entrypoint" in service else {DATA}
        if service["command"][0] == "flower-supernode":
            read.add(IDENTITIES)
        assert set(service["volumes"]) - set(named) == read
        used += [volume.partition(":")[0] for volume in named]
    assert sorted(used) == sorted(declared)  # no two services share one


@pytest.mark.parametrize("file", FILES)
def test_encryption_and_authentication_are_on(file: str) -> None:
    for service in services(file).values():
        command = service["command"]
        assert not any("insecure" in part for part in command)
        if "entrypoint" in service:  # test_guard.py looks what it lets through
            continue
        if command[0] == "flower-superlink":
            assert "--enable-supernode-auth" in command
        else:
            assert "--auth-supernode-private-key=/run/secrets/node.key" in command
        mounted = {secret if isinstance(secret, str) else secret["target"] for secret in service["secrets"]}
        named = {part.rpartition("/")[2] for part in command if "=/run/secrets/" in part}
        assert named == mounted


def test_the_guard_is_the_one_of_a_deployment() -> None:
    assert (DOCKER / "compose.guard.conf").read_text() == CONFIG.format(**IN_COMPOSE)
    mounted = services("compose.server.yaml")["guard"]["secrets"]
    assert sorted(mounted) == ["ca.crt", "server.crt", "server.key"]


@pytest.mark.parametrize("file", FILES)
def test_files_and_variables_are_those_of_a_deployment(file: str, tmp_path: Path) -> None:
    init_deployment(tmp_path, "localhost", 3)
    lines = (tmp_path / ".env").read_text().splitlines()
    environment = dict(line.split("=", 1) for line in lines if line[:1].isalpha())
    text = (DOCKER / file).read_text()
    assert {name for name, _ in VARIABLE.findall(text)} <= environment.keys()
    filled = yaml.safe_load(VARIABLE.sub(lambda match: environment[match[1]], text))
    for secret in filled["secrets"].values():
        assert (tmp_path / secret["file"]).is_file()
    for service in filled["services"].values():
        if service["command"][0] == "flower-supernode":  # whose keys sign, and who knows them
            (options,) = [part for part in service["command"] if part.startswith("--node-config=")]
            assert 'identity-key="/run/secrets/node.key" identities="/snnfl/identities"' in options
            assert len(read_public(tmp_path / IDENTITIES.partition(":")[0])) == 3
    assert not any(secret["file"].endswith("ca.key") for secret in filled["secrets"].values())


@pytest.mark.flwr
@pytest.mark.parametrize("name", ["flower-superlink", "flower-supernode"])
def test_flower_knows_the_options(name: str) -> None:
    done = subprocess.run([BINARIES / name, "--help"], capture_output=True, text=True, timeout=120, check=True)
    commands = [service["command"] for file in FILES for service in services(file).values()]
    options = {part.partition("=")[0] for command in commands if command[0] == name for part in command[1:]}
    assert options
    assert options <= set(re.findall(r"--[\w-]+", done.stdout))


def test_a_build_receives_no_key() -> None:
    lines = [line for line in (DOCKER.parent / ".dockerignore").read_text().splitlines() if line[:1] not in ("", "#")]
    assert lines == ["*", "!pyproject.toml", "!constraints.txt"]
