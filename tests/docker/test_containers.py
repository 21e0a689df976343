"""``docker/compose.yaml`` as it is, in real containers: the same weights as in one process.

Where there is no Docker, podman builds the image from a Debian of its own and podman-compose starts the file.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from container_host import REPOSITORY, build_image, command, running, set_options, why_not
from flwr_local import BINARIES, free_port
from safetensors.torch import load_file

from clients.client_app import app as client_app
from experiments.deploy.init import init_deployment
from experiments.engines.in_process import run_in_process
from snnfl.config import compose, flatten
from strategies.run_directory import ANN_FILE, SNN_FILE, read_metrics
from strategies.server_app import app as server_app

NODES = ("node-0", "node-1", "node-2")
OPTIONS = ["run.rounds=3", "training.epochs=1", "conversion.steps=8", "data.source=digits", "data.clients=3"]
UID = 10001
START_SECONDS, RUN_SECONDS = 240, 900
"""For each step of the start, and for the run; all of it took 8.5 minutes under a load of 10 to 25 on two cores."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.flwr,
    pytest.mark.timeout(2700),  # the image's build included; nothing here waits without a limit of its own
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image."""
    return build_image(tmp_path_factory.mktemp("image"))


def test_the_image_is_small_and_has_neither_root_nor_compiler(image: str) -> None:
    found = command("podman", "image", "inspect", "--format", "{{.Config.User}} {{.Size}}", image).split()
    assert found[0] == f"{UID}:0"
    assert int(found[1]) < 2.2e9
    mounted = Path(command("podman", "image", "mount", image).strip())
    try:
        programs = {
            path.name
            for folder in ("usr/bin", "usr/local/bin", "opt/snnfl/bin")
            for path in mounted.glob(f"{folder}/*")
        }
        packages = {path.name for path in mounted.glob("opt/snnfl/lib/python3*/site-packages/*")}
        # A key or a source of ours would be at the top, where the build puts its two files.
        assert not (mounted / "build").exists()
    finally:
        command("podman", "image", "unmount", image)
    assert {"flower-superlink", "flower-supernode"} <= programs
    assert not programs & {"gcc", "cc", "g++", "make", "pip", "pip3"}
    assert {"torch", "flwr"} <= packages
    assert not packages & {"ray", "pip", "pytest", "snnfl"}


def test_three_nodes_give_the_weights_of_one_process(image: str, tmp_path: Path) -> None:
    fleet = tmp_path / "fleet"
    port = free_port()
    init_deployment(fleet, f"localhost:{port}", len(NODES))
    (fleet / "data").mkdir()
    for key in (fleet / "certificates" / "server.key", *(fleet / "keys" / name for name in NODES)):
        shutil.chown(key, UID)
    set_options(fleet / ".env", SNNFL_IMAGE=image)
    shutil.copy(REPOSITORY / "docker" / "compose.yaml", fleet)
    (tmp_path / "config.yaml").write_text("{}")
    deploy = [BINARIES / "snnfl", "deploy"]
    with running(fleet, ("superlink", *NODES)) as project:
        project.wait_until_healthy("superlink", START_SECONDS)
        command(*deploy, "register", fleet, seconds=START_SECONDS)
        for node in NODES:
            project.wait_until_connected(node, START_SECONDS)
            project.wait_until_healthy(node, START_SECONDS)
        command(*deploy, "check", fleet, seconds=START_SECONDS)
        said = command(*deploy, "run", fleet, tmp_path / "config.yaml", *OPTIONS, cwd=tmp_path, seconds=RUN_SECONDS)
        project.podman("cp", f"{project.container('superlink')}:/snnfl/runs/run", tmp_path / "deployed")
        kept = {
            node: project.podman(
                "exec", project.container(node), "find", "/snnfl/state/clients", "-name", "*.safetensors"
            )
            for node in NODES
        }
        refused = subprocess.run(
            ["podman", "exec", project.container("node-0"), "touch", "/snnfl/data/x", "/opt/snnfl/x"],
            capture_output=True,
        )
        started = project.left()
    assert "round 3: server SNN" in said
    assert_close(tmp_path / "deployed", in_process(tmp_path))
    for index, node in enumerate(NODES):
        # Its own private state and nobody else's: the folder of a run, and in it that of the partition.
        assert {path.split("/")[-2] for path in kept[node].split()} == {str(index)}
    assert refused.returncode != 0
    assert [len(started[kind]) for kind in ("container", "network", "volume")] == [4, 1, 5]
    assert not any(project.left().values())


def in_process(folder: Path) -> Path:
    """Run the same in this process."""
    config = compose(None, [*OPTIONS, f"run.directory={folder}"])
    run_in_process(server_app, client_app, run_config=flatten(config), clients=len(NODES))
    return folder / "run"


def assert_close(found: Path, expected: Path) -> None:
    """Both final networks agree within 1e-6 relative, and so does what was measured of them."""
    for name in (ANN_FILE, SNN_FILE):
        ours, theirs = load_file(found / name), load_file(expected / name)
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-6, atol=0)
        print(name, "bit for bit" if all(torch.equal(ours[key], theirs[key]) for key in ours) else "within 1e-6")
    measured = ("round", "server_snn_accuracy", "client_ann_accuracy_mean", "replies", "bytes_up")
    rows, wanted = ([{key: row[key] for key in measured} for row in read_metrics(run)] for run in (found, expected))
    assert rows == wanted
    assert [row["replies"] for row in rows] == [3, 3, 3]
