"""Build the image and run compose projects with podman, offline, and leave nothing behind but the image."""

from __future__ import annotations

import ast
import configparser
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

REPOSITORY = Path(__file__).parents[1]
TOOLS = ("podman", "buildah", "runc", "debootstrap")
PACKAGES = "python3,python3-venv,ca-certificates"
BASE = "localhost/snnfl-test-base:bookworm"
SECONDS = 120
"""That a command may take. Those that build have limits of their own."""

BASE_SECONDS, IMAGE_SECONDS = 400, 1500
"""For the base and the image, which took 38 and 129 seconds of CPU here; under a load of 25 that was 15 minutes."""

# crun refuses hosts with a mixture of cgroups v1 and v2, and the usual limits are above what a sandboxed root may give.
CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
"""


def why_not() -> str | None:
    """Say why containers cannot be tested here; ``None`` if they can."""
    if os.geteuid() != 0:
        return "containers are tested as root"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"no {' '.join(missing)} here; type: apt-get update && apt-get install -y {' '.join(missing)}"
    return None


def command(
    *arguments: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None, seconds: float = SECONDS
) -> str:
    """Run a command without input; return what it prints.

    Raises:
        RuntimeError: If it fails, with the end of what it printed.
        subprocess.TimeoutExpired: If it takes longer.
    """
    done = subprocess.run(
        [str(argument) for argument in arguments],
        env={**os.environ, **(env or {})},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds,
    )
    if done.returncode != 0:
        said = (done.stdout + done.stderr)[-4000:]
        raise RuntimeError(f"{' '.join(map(str, arguments))} exits with {done.returncode}:\n{said}")
    return done.stdout


def has_image(name: str) -> bool:
    """Tell whether podman holds an image."""
    return subprocess.run(["podman", "image", "exists", name], timeout=SECONDS).returncode == 0


def build_image(folder: Path) -> str:
    """Return an image of ``docker/Dockerfile``, built at most once for what it is made of.

    ``podman rmi $(podman images -q localhost/snnfl-test)`` removes those that earlier versions left.

    Args:
        folder: For files that the build needs meanwhile.
    """
    dockerfile, constraints = REPOSITORY / "docker" / "Dockerfile", REPOSITORY / "constraints.txt"
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    # Of pyproject.toml the Dockerfile reads the dependencies alone.
    made_of = [dockerfile.read_text(), constraints.read_text(), json.dumps(project["dependencies"]), PACKAGES]
    image = f"localhost/snnfl-test:{hashlib.sha256(chr(0).join(made_of).encode()).hexdigest()[:16]}"
    with (Path("/run") / "snnfl-test-image.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two runs at a time one builds; the timeouts below end the other's wait
        if not has_image(BASE):
            _build_base(folder)
        if not has_image(image):
            options = ["--isolation", "chroot", "--network", "host", "--format", "docker", "--file", dockerfile]
            options += ["--build-arg", f"BASE={BASE}", "--build-arg", "TORCH_INDEX="]
            command(
                "buildah", "bud", *options, *_pip_of_the_host(folder), "--tag", image, REPOSITORY, seconds=IMAGE_SECONDS
            )
    return image


def _build_base(folder: Path) -> None:
    """Make a Debian with Python, as no registry is asked for one."""
    uris = command(
        "apt-get", "indextargets", "--format", "$(REPO_URI)", "Codename: bookworm", "Created-By: Packages"
    ).split()
    root = folder / "root"
    bootstrap = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root), *uris[:1]]
    command(*bootstrap, seconds=BASE_SECONDS)
    archive = folder / "base.tar"
    command("tar", "-C", root, "-cf", archive, ".", seconds=BASE_SECONDS)
    command("podman", "import", archive, BASE, seconds=BASE_SECONDS)
    shutil.rmtree(root)
    archive.unlink()


def _pip_of_the_host(folder: Path) -> list[str]:
    """Return the mounts by which pip in a build finds packages where pip finds them here."""
    sections: dict[str, dict[str, str]] = {}
    mounts = []
    for line in command(sys.executable, "-m", "pip", "config", "list").splitlines():
        name, _, quoted = line.partition("=")
        section, _, key = name.rpartition(".")
        value = str(ast.literal_eval(quoted))
        options = sections.setdefault("global" if section == ":env:" else section, {})
        options[key] = value if section == ":env:" else options.get(key, value)  # the environment goes first
        for word in value.split():
            # An index's pages link to files that lie beside its folder.
            place = Path(word.removeprefix("file://")).parent if word.startswith("file://") else Path(word)
            if place.is_absolute() and place.exists() and place != Path("/"):
                mounts.append(f"{place}:{place}:ro")
    configuration = folder / "pip.conf"
    parser = configparser.RawConfigParser()
    parser.read_dict(sections)
    with configuration.open("w") as file:
        parser.write(file)
    mounts.append(f"{configuration}:/etc/pip.conf:ro")
    return [part for mount in dict.fromkeys(mounts) for part in ("--volume", mount)]


class Project:
    """A compose project of podman's under a name that no other run has.

    Attributes:
        name: Of the project.
        folder: Holds ``compose.yaml`` and its ``.env``.
    """

    def __init__(self, folder: Path) -> None:
        self.name = f"snnfl-test-{uuid4().hex[:8]}"
        self.folder = folder
        self._conf = folder / "containers.conf"
        self._conf.write_text(CONTAINERS_CONF)

    def podman(self, *arguments: str | Path, seconds: float = SECONDS) -> str:
        """Run podman."""
        return command("podman", *arguments, env={"CONTAINERS_CONF": str(self._conf)}, seconds=seconds)

    def compose(self, *arguments: str) -> str:
        """Run podman-compose on ``compose.yaml``."""
        environment = {"CONTAINERS_CONF": str(self._conf)}
        return command(
            sys.executable, "-m", "podman_compose", "-p", self.name, *arguments, env=environment, cwd=self.folder
        )

    def container(self, service: str) -> str:
        """Return the name of a service's container."""
        return f"{self.name}_{service}_1"

    def wait_until_healthy(self, service: str, seconds: float) -> None:
        """Ask a service's own health check until it passes; podman asks by itself only where systemd runs."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.podman("healthcheck", "run", self.container(service))
                return
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def wait_until_connected(self, service: str, seconds: float) -> None:
        """Wait until the SuperLink has let a node in, which asks again and again, with longer and longer pauses."""
        deadline = time.monotonic() + seconds
        while "SuperNode ID" not in self.logs(service):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{service} is not connected after {seconds:g} s")
            time.sleep(1)

    def logs(self, service: str) -> str:
        """Return what a service has printed, both streams in one."""
        done = subprocess.run(
            ["podman", "logs", self.container(service)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=SECONDS,
        )
        return done.stdout

    def left(self) -> dict[str, list[str]]:
        """Return the containers, networks and volumes of this project that exist."""
        label = f"label=io.podman.compose.project={self.name}"
        return {
            "container": self.podman("ps", "-aq", "--filter", label).split(),
            "network": self.podman("network", "ls", "-q", "--filter", label).split(),
            "volume": self.podman("volume", "ls", "-q", "--filter", label).split(),
        }

    def remove(self) -> None:
        """Remove all of them, whatever state they are in."""
        for kind, names in self.left().items():
            if names:
                self.podman(kind, "rm", "--force", *names)


@contextmanager
def running(folder: Path, services: Sequence[str]) -> Iterator[Project]:
    """Start ``folder/compose.yaml``; at the end remove all of it, and show the logs of a test that failed."""
    project = Project(folder)
    try:
        project.compose("up", "-d")
        yield project
    except BaseException:
        for service in services:
            print(f"--- {service}\n{project.logs(service)[-3000:]}")
        raise
    finally:
        project.remove()


def set_options(environment: Path, **options: str) -> None:
    """Change lines of a ``.env``."""
    text = environment.read_text()
    for key, value in options.items():
        text, count = re.subn(rf"(?m)^{key}=.*$", f"{key}={value}", text)
        assert count == 1, key
    environment.write_text(text)
