"""snnfl in a user's project: installed as a wheel, beside an ``experiments/`` and a ``strategies/`` of the project."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from installed import Installed

ROOT = Path(__file__).parents[1]

SMALL = """\
data: {clients: 2}
training: {epochs: 1}
conversion: {steps: 4}
evaluation: {images: 20}
run: {rounds: 1, name: small}
"""

STUDY = """\
name: both
base: small.yaml
matrix: {strategy.spiking: [true, false]}
tables: [{title: Accuracy, rows: strategy.spiking, value: server_ann_accuracy}]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's folder."""
    for name in ("experiments", "strategies", "clients"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong one')\n")
    (tmp_path / "small.yaml").write_text(SMALL)
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("python_path", ["", "."])
def test_the_commands_work_beside_folders_of_their_names(project: Path, installed: Installed, python_path: str) -> None:
    path = {"PYTHONPATH": python_path} if python_path else {}
    done = installed.run(project, "snnfl", "run", "small.yaml", **path)
    assert done.returncode == 0, done.stderr
    assert (project / "runs/small/final_snn.safetensors").exists()
    assert "--num-supernodes" in installed.run(project, "flower-simulation", "-h", **path).stdout


@pytest.mark.slow
def test_processes_of_a_study_and_workers_of_ray_find_the_right_modules(project: Path, installed: Installed) -> None:
    done = installed.run(project, "snnfl", "compare", "study.yaml", PYTHONPATH=".")
    assert done.returncode == 0, done.stderr
    assert (project / "runs/both/report.html").exists()
    done = installed.run(project, "snnfl", "run", "small.yaml", "engine.name=ray", PYTHONPATH=".")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_app_of_a_wheel_is_that_of_the_repository(installed: Installed, tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; from snnfl.launch import use_app; use_app()\n"
        "from experiments.engines.app_folder import flower_app; from flwr.cli.build import build_fab_from_disk\n"
        "with flower_app() as app: pathlib.Path(sys.argv[1]).write_bytes(build_fab_from_disk(app))\n"
    )
    done = installed.run(tmp_path, "python", "-c", code, "app.fab")
    assert done.returncode == 0, done.stderr
    bundles = [
        zipfile.ZipFile(io.BytesIO(data)) for data in ((tmp_path / "app.fab").read_bytes(), build_fab_from_disk(ROOT))
    ]
    ours, theirs = ({name: bundle.read(name) for name in bundle.namelist()} for bundle in bundles)
    assert ours == theirs


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)


def test_what_hides_our_packages_is_named(project: Path) -> None:
    (project / "experiments/__init__.py").write_text("")
    done = python("import experiments, snnfl.launch as launch; launch.use_app()", project)
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        f"snnfl.launch.HiddenError: {project / 'experiments/__init__.py'}: imported as 'experiments'"
    )


def test_what_our_packages_hide_is_told(project: Path) -> None:
    (project / "strategies/mine.py").write_text("")
    done = python("import snnfl.launch as launch; launch.use_app(); import strategies.mine", project)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: No module named 'strategies.mine' in ")
    assert "give yours another name" in last


def test_nothing_of_the_process_changes_but_the_three_packages(project: Path) -> None:
    code = (
        "import os, sys, snnfl.launch as launch; before = (list(sys.path), dict(os.environ), set(sys.modules))\n"
        "launch.use_app(); launch.use_app()\n"
        "assert before[:2] == (sys.path, dict(os.environ)); print(*sorted(set(sys.modules) - before[2]))"
    )
    done = python(code, project)
    assert done.stdout.split() == ["clients", "experiments", "strategies"], done.stderr
