"""snnfl as a user has it: a wheel in a virtual environment of its own, which borrows the libraries of this one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "SNNFL_DATA", "CI")
"""Of this environment; a user's has no ``PYTHONPATH`` into our repository."""


@dataclass(frozen=True)
class Installed:
    """A virtual environment with the wheel.

    Attributes:
        wheel: The file.
        folder: Of the environment.
    """

    wheel: Path
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of a user who has activated it, and who asks nobody outside."""
        return {
            **{name: os.environ[name] for name in KEPT if name in os.environ},
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "RAY_ADDRESS": "local",
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def run(self, folder: Path, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment in a folder, with more variables."""
        program = str(self.folder / "bin" / command[0])
        return subprocess.run(
            [program, *command[1:]],
            cwd=folder,
            env={**self.environment, **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )


def install(folder: Path) -> Installed:
    """Build the wheel of this repository, without an index, and install it."""
    source = folder / "source"
    files = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True)
    for name in filter(None, files.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/", "benchmarks/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--quiet", "--no-index", "--no-build-isolation", "--no-deps", "--wheel-dir", str(folder)]
    subprocess.run([*build, str(source)], check=True)
    (wheel,) = folder.glob("*.whl")
    home = folder / "venv"
    venv.create(home, symlinks=True)
    paths = sysconfig.get_paths("venv", {"base": str(home), "platbase": str(home)})
    borrowed = [sysconfig.get_path(name) for name in ("purelib", "platlib")]
    # A path in a .pth file is searched, but the .pth files that lie there, such as that of our checkout, are not read.
    Path(paths["purelib"], "borrowed.pth").write_text("".join(f"{path}\n" for path in dict.fromkeys(borrowed)))
    for script in Path(sys.executable).parent.iterdir():
        if script.name.startswith(("flwr", "flower-")) and script.name != "flower-simulation":
            lines = script.read_text(encoding="utf-8").splitlines(keepends=True)
            copy = Path(paths["scripts"], script.name)
            copy.write_text("".join([f"#!{home / 'bin' / 'python'}\n", *lines[1:]]), encoding="utf-8")
            copy.chmod(0o755)
    python = ["--python", str(home / "bin" / "python")]
    subprocess.run([*pip, *python, "install", "--quiet", "--no-index", "--no-deps", str(wheel)], check=True)
    for kernel in ROOT.glob("snnfl/**/__pycache__/*.nb[ci]"):  # numba looks whether they are of the same source
        shutil.copy(kernel, Path(paths["purelib"], kernel.relative_to(ROOT)))
    return Installed(wheel, home)
