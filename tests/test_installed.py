"""snnfl in a user's project: installed as a wheel, beside an ``experiments/`` and a ``strategies/`` of the project."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from fleet import fleet_of
from flwr.cli.build import build_fab_from_disk
from flwr_local import flower_env, kill_processes, needs_proc
from installed import Installed
from user_project import PLUGIN, write_project

ROOT = Path(__file__).parents[1]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's folder."""
    return write_project(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("python_path", ["", "."])
def test_the_commands_work_beside_folders_of_their_names(project: Path, installed: Installed, python_path: str) -> None:
    path = {"PYTHONPATH": python_path} if python_path else {}
    done = installed.run(project, "snnfl", "run", "small.yaml", **path)
    assert done.returncode == 0, done.stderr
    assert (project / "runs/small/final_snn.safetensors").exists()
    assert "--num-supernodes" in installed.run(project, "flower-simulation", "-h", **path).stdout


@pytest.mark.slow
def test_processes_of_a_study_and_workers_of_ray_find_the_right_modules(
    project: Path, installed: Installed, forked_installed: Path
) -> None:
    done = installed.run(project, str(forked_installed / "snnfl"), "compare", "study.yaml", PYTHONPATH=".")
    assert done.returncode == 0, done.stderr
    assert (project / "runs/both/report.html").exists()
    done = installed.run(
        project, str(forked_installed / "snnfl"), "run", "small.yaml", "engine.name=ray", PYTHONPATH="."
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_project_with_everything_of_its_own(project: Path, installed: Installed, forked_installed: Path) -> None:
    """Data set, model, strategy, detector, tracker and attack: in process, on Ray, in a study, in an audit."""

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return installed.run(project, str(forked_installed / "snnfl"), *command, PYTHONPATH=".")

    done = run("run", "own.yaml")
    assert done.returncode == 0, done.stderr
    assert (project / "runs/own/lines.txt").read_text() == "1\n"
    (plugin,) = json.loads((project / "runs/own/environment.json").read_text())["plugins"]
    assert plugin == {"name": "mine.py", "version": hashlib.sha256(PLUGIN.encode()).hexdigest()}

    done = run("export", "runs/own")
    assert "it was started with the plug-in mine.py; say --plugin mine.py" in done.stderr
    assert "or --input-shape 1,28,28" in done.stderr
    done = run("audit", "runs/own", "--no-controls")
    assert done.stderr.startswith("snnfl: runs/own: it was started with the plug-in mine.py; say --plugin mine.py")
    done = run("audit", "runs/own", "--no-controls", "--attack", "grey", "--plugin", "strategies/mine.py")
    assert done.returncode == 0, done.stderr
    assert "grey" in (project / "runs/own/audit/scorecard.csv").read_text()

    done = run("run", "own.yaml", "engine.name=ray", "run.name=on_ray")
    assert done.returncode == 0, done.stderr
    weights = [(project / "runs" / name / "final_ann.safetensors").read_bytes() for name in ("own", "on_ray")]
    assert weights[0] == weights[1]

    config = 'data.source="parity" model.name="tiny" training.epochs=1 run.rounds=1 run.name="simulated"'
    options = ["--num-supernodes", "2", "--plugin", "strategies/mine.py", "--run-config", config]
    done = installed.run(project, str(forked_installed / "flower-simulation"), *options, PYTHONPATH=".")
    assert done.returncode == 0, done.stderr
    assert (project / "runs/simulated/final_snn.safetensors").exists()

    done = run("compare", "own_study.yaml", "--jobs", "2")
    assert done.returncode == 0, done.stderr
    assert (project / "runs/own_study/report.html").exists()

    (project / "strategies/mine.py").write_text(PLUGIN + "# another\n")
    done = run("run", "own.yaml", "--resume", "run.rounds=2")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "it was started with another version of the plug-in mine.py" in line


@pytest.mark.slow
def test_a_session_of_python_in_the_project(project: Path, installed: Installed, forked_installed: Path) -> None:
    """As a notebook or a REPL: the current folder stands first on ``sys.path``."""
    (project / "experiments/mine.py").write_text("")
    code = (
        "import snnfl\n"
        "run = snnfl.run('own.yaml', progress=False)\n"
        "assert snnfl.audit(run, attacks=['grey'], controls=False, progress=False).entries\n"
        "print(run, run.ann()[0].out_channels)\n"
        "import subprocess, sys\n"
        "fresh = 'import snnfl; snnfl.load_run(\"runs/own\"%s).ann()'\n"
        "told = subprocess.run([sys.executable, '-c', fresh % ''], capture_output=True, text=True).stderr\n"
        "assert \"in Python plugins=['mine.py']\" in told, told\n"
        "subprocess.run([sys.executable, '-c', fresh % ', plugins=[\"strategies/mine.py\"]'], check=True)\n"
        "import experiments.mine\n"
    )
    done = installed.run(project, str(forked_installed / "python"), "-c", code)
    assert done.stdout == "<Run runs/own: 1 of 1 rounds> 4\n".replace("runs/own", str(project / "runs/own")), (
        done.stderr
    )
    assert "snnfl's own package 'experiments' hides others of that name" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_an_installed_package_brings_its_own(project: Path, installed: Installed) -> None:
    packages = project / "packages"
    (packages / "theirs-1.0.dist-info").mkdir(parents=True)
    (packages / "theirs-1.0.dist-info/METADATA").write_text("Name: theirs\nVersion: 1.0\n")
    (packages / "theirs-1.0.dist-info/entry_points.txt").write_text("[snnfl]\nmine = theirs_federated\n")
    (packages / "theirs_federated.py").write_text(PLUGIN)
    done = installed.run(project, "snnfl", "run", "small.yaml", "data.source=parity", PYTHONPATH=str(packages))
    assert done.returncode == 0, done.stderr
    (plugin,) = json.loads((project / "runs/small/environment.json").read_text())["plugins"]
    assert plugin == {"name": "theirs_federated", "version": "theirs 1.0"}


@pytest.mark.slow
@pytest.mark.flwr
@needs_proc
def test_flowers_own_simulation_runs_what_is_a_projects_own(
    project: Path, installed: Installed, forked_installed: Path
) -> None:
    """On a SuperLink of this machine, whose Ray workers import from its current folder first."""
    home = flower_env(project / "home")
    variables = {name: home[name] for name in ("FLWR_HOME", "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT")}
    try:
        command = [str(forked_installed / "snnfl"), "run", "own.yaml", "engine.name=deployment"]
        done = installed.run(project, *command, PYTHONPATH=".", **variables)
    finally:
        kill_processes("FLWR_HOME", home["FLWR_HOME"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project / "runs/own/lines.txt").read_text() == "1\n"


@pytest.mark.slow
@pytest.mark.flwr
@needs_proc
def test_a_deployment_ships_what_is_a_projects_own(project: Path, installed: Installed, forked_installed: Path) -> None:
    """The first node's processes and the operator's start alone, as a user's do; those of the others are forked."""
    folder = project / "fleet"
    folder.mkdir()
    alone = installed.environment
    environment = {**alone, "PATH": f"{forked_installed}{os.pathsep}{alone['PATH']}"}
    with fleet_of(folder, 2, in_memory=True, environment=environment) as fleet:
        fleet.snnfl("register")
        fleet.start_node(0, path=str(installed.folder / "bin"))
        fleet.start_node(1)
        options = ["audit.record=false", "audit.ground_truth=false"]
        done = installed.run(project, "snnfl", "deploy", "run", str(fleet.deployment.path), "own.yaml", *options)
        assert done.returncode == 0, done.stdout + done.stderr
        (row,) = fleet.rows("own")
        assert row["replies"] == 2
        assert (folder / "runs/own/lines.txt").read_text() == "1\n"
        (plugin,) = json.loads((folder / "runs/own/environment.json").read_text())["plugins"]
        assert plugin["name"] == "mine.py"


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


def test_a_command_says_so_in_one_line(project: Path) -> None:
    (project / "strategies/__init__.py").write_text("")
    done = python("import strategies, snnfl.commands as commands; commands.main()", project)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"snnfl: {project / 'strategies/__init__.py'}: imported as 'strategies', which hides")
    assert done.returncode == 1


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
