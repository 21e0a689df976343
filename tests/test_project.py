"""The repository as a whole: a Flower app, pinned dependencies, and a Makefile that installs once."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import shutil
import subprocess
import tomllib
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.cli.config_utils import load_and_validate
from flwr.common.config import flatten_dict
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from snnfl.config import Config, FlatValue, flatten
from snnfl.launch import NAMES

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def as_toml(options: Mapping[str, FlatValue]) -> str:
    sections: dict[str, list[str]] = {}
    for key, value in options.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, []).append(f"{name} = {json.dumps(value)}\n")
    return "\n".join(f"[tool.flwr.app.config.{name}]\n" + "".join(lines) for name, lines in sections.items())


def test_every_option_is_declared_with_its_default() -> None:
    declared, defaults = flatten_dict(PYPROJECT["tool"]["flwr"]["app"]["config"]), flatten(Config())
    if as_toml(declared) != as_toml(defaults):  # as text, since 1 == 1.0 == True
        pytest.fail(f"replace [tool.flwr.app.config.*] in pyproject.toml by\n\n{as_toml(defaults)}", pytrace=False)


def test_flower_accepts_the_app() -> None:
    _, warnings = load_and_validate(ROOT / "pyproject.toml")
    assert not warnings


def test_bundle_holds_the_packages_and_nothing_else() -> None:
    bundle = build_fab_from_disk(ROOT)  # raises above Flower's limit of 10 MB
    packages = {"snnfl", *NAMES}
    sources = {path.relative_to(ROOT).as_posix() for name in packages for path in (ROOT / name).rglob("*.py")}
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        assert set(archive.namelist()) == sources | {"pyproject.toml", "README.md", "LICENSE", ".info/CONTENT"}


def closure(requirement: Requirement, seen: set[str]) -> set[str]:
    """Add the names of everything that a requirement brings into this environment."""
    for extra in (*requirement.extras, ""):
        key = f"{canonicalize_name(requirement.name)}[{extra}]"
        if key not in seen:
            seen.add(key)
            for text in metadata.requires(requirement.name) or []:
                needed = Requirement(text)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    closure(needed, seen)
    return seen


def test_every_dependency_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)] == []  # without +cpu
    needed = {name.partition("[")[0] for name in closure(Requirement("snnfl[dev]"), set())}
    assert needed - {canonicalize_name(pin.partition("==")[0]) for pin in pins} == {"snnfl"}


FAKE_PYTHON = """\
#!/bin/sh
echo "$*" >> calls
case "$*" in
  "-c import sys"*) exit $FAKE_OLD ;;
  -V) echo "Python 3.9.1" ;;
  "-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python && cp "$0" .venv/bin/pip ;;
  "-m pip install"*) exit $FAKE_PIP ;;
esac
"""


class Checkout:
    """A folder with our Makefile and a Python that only writes down what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, folder)
        (folder / "python").write_text(FAKE_PYTHON)
        (folder / "python").chmod(0o755)

    def make(
        self, target: str, *, python: str = "./python", old: int = 0, pip: int = 0
    ) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "PIP_"))}
        environment |= {"PYTHON": python, "FAKE_OLD": str(old), "FAKE_PIP": str(pip)}
        return subprocess.run(
            ["make", target], cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )

    @property
    def installations(self) -> int:
        return (self.folder / "calls").read_text().count("-m pip install")


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_make_installs_once(checkout: Checkout) -> None:
    assert checkout.make("install").returncode == 0
    assert "Nothing to be done" in checkout.make("install").stdout
    assert checkout.installations == 1
    os.utime(checkout.folder / ".venv/.installed", (0, 0))  # older than pyproject.toml and constraints.txt
    assert checkout.make("install").returncode == 0
    assert checkout.installations == 2


def test_make_tries_a_failed_installation_again(checkout: Checkout) -> None:
    assert checkout.make("install", pip=1).returncode != 0
    assert checkout.make("install").returncode == 0
    assert checkout.installations == 2


@pytest.mark.parametrize(
    ("python", "message"),
    [("./python", "./python is Python 3.9.1, snnfl needs 3.11 or newer"), ("absent", "no absent here")],
)
def test_make_names_a_python_that_will_not_do(checkout: Checkout, python: str, message: str) -> None:
    result = checkout.make("install", python=python, old=1)
    assert result.returncode != 0
    assert message in result.stderr
    assert not (checkout.folder / ".venv").exists()


def test_make_lists_its_commands() -> None:
    listed = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, check=True).stdout
    commands = re.findall(r"^make ([\w-]+) ", listed, re.MULTILINE)
    others = ["bench", "clean", "demo", "docs", "help", "install", "lint", "notebooks"]
    assert sorted(commands) == [*others, "test", "test-deployment"]


def test_ci_runs_the_commands_for_tests_that_the_readme_names() -> None:
    called = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1]
    (targets,) = re.findall(r"^exec make ([\w -]+) </dev/null$", called)
    named = re.findall(r"^make (test[\w-]*) ", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert targets.split() == named == ["test", "test-deployment"]


def test_every_test_is_run_by_one_of_the_two_commands() -> None:
    """Together the two choices of markers leave out none and choose none twice."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (processes,) = re.findall(r"^PROCESSES := (.+)$", text, re.MULTILINE)
    chosen = [choice.replace("$(PROCESSES)", processes) for choice in re.findall(r"\$\(PYTEST\) .+ -m '(.+?)'", text)]
    markers = sorted({"engine", *processes.split(" or ")})
    for present in itertools.product([True, False], repeat=len(markers)):
        names = dict(zip(markers, present, strict=True))
        assert sum(eval(choice, {}, names) for choice in chosen) == 1, names


def test_only_files_that_the_command_looks_into_have_tests_of_processes() -> None:
    """``make test-deployment`` collects none but those in which a marker of processes is written."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (processes,) = re.findall(r"^PROCESSES := (.+)$", text, re.MULTILINE)
    (pattern,) = re.findall(r"^FILES_OF_PROCESSES = .+ --include='test_\*\.py' '(.+)' tests\)$", text, re.MULTILINE)
    assert [bool(re.search(pattern, f"@pytest.mark.{name}\n")) for name in processes.split(" or ")] == [True] * 3
    looked_into = {*(ROOT / "tests").rglob("test_*.py")}
    folders = (ROOT / name for name in ("tests", "snnfl", "clients", "strategies", "experiments"))
    others = {path for folder in folders for path in folder.rglob("*.py")} - looked_into
    assert [path for path in others if re.search(pattern, path.read_text(encoding="utf-8"))] == []


def test_the_files_that_begin_are_there() -> None:
    from conftest import LONGEST

    assert {path.name for path in (ROOT / "tests").rglob("test_*.py")} >= set(LONGEST)
