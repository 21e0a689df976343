"""What a deployment keeps to itself: the folder of keys, the SuperLink's database, whatever a container writes."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from fleet import wait
from flwr_local import BINARIES, free_port

from experiments.deploy.init import init_deployment
from experiments.deploy.run import flower_home

ROOT = Path(__file__).parents[3]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_deployments_folders_are_private_from_the_first_on(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made = init_deployment(tmp_path / "deep" / "fleet", "localhost", 1)
        flower_home(made)
    finally:
        os.umask(before)
    folders = {path.name: mode(path) for path in tmp_path.rglob("*") if path.is_dir()}
    assert folders == dict.fromkeys(("deep", "fleet", "certificates", "keys", "flwr"), 0o700) | {"identities": 0o755}
    assert {mode(path) for path in (made.path / "identities").iterdir()} == {0o644}  # for containers to read


@pytest.mark.slow
def test_the_database_of_the_documented_superlink_is_its_owners_alone(tmp_path: Path) -> None:
    """The commands of docs/deployment.md, but for the port."""
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    (block,) = [
        code for code in re.findall(r"^   ```sh\n(.*?)^   ```", page, re.S | re.M) if "flower-superlink" in code
    ]
    port = free_port()
    commands = textwrap.dedent(block).replace("--host 0.0.0.0", f"--host 127.0.0.1 --port {port}")
    init_deployment(tmp_path / "fleet", f"localhost:{port}", 1)
    environment = {**os.environ, "PATH": f"{BINARIES}:{os.environ['PATH']}", "FLWR_HOME": str(tmp_path / "home")}
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["bash", "-c", commands],
            cwd=tmp_path,
            env={**environment, "FLWR_DISABLE_UPDATE_CHECK": "1"},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        wait(lambda: "Uvicorn running" in log.read_text() or process.poll() is not None, "the SuperLink answers")
        assert process.poll() is None, log.read_text()
        written = {path.name: mode(path) for path in tmp_path.glob("superlink.db*")}
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert written
    assert set(written.values()) == {0o600}, written


def test_whatever_a_container_writes_is_its_users_alone(tmp_path: Path) -> None:
    """The image's entry point, with another command."""
    lines = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith("ENTRYPOINT ")]
    write = "import os, sys; os.makedirs('a/b'); open('a/b/' + sys.argv[1], 'w')"
    command = [*json.loads(line.removeprefix("ENTRYPOINT ")), sys.executable, "-c", write, "a name"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert {str(p.relative_to(tmp_path)): mode(p) for p in tmp_path.rglob("*")} == {
        "a": 0o700,
        "a/b": 0o700,
        "a/b/a name": 0o600,
    }
