"""What is used of a library beyond its interface is checked, against the version that is installed by default."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from flwr.app import ArrayRecord, Message
from flwr.simulation.ray_transport.ray_actor import BasicActorPool
from flwr.supercore.task_identity import TaskIdentity

from snnfl.compatibility import TESTED, IncompatibleLibraryError, require

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("library", TESTED)
def test_what_is_installed_by_default_is_what_was_tested(library: str) -> None:
    pinned = re.search(rf"^{library}==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert pinned[1] == TESTED[library]


@pytest.mark.parametrize(
    ("module", "owner", "name"),
    [
        ("strategies.flower_internals", Message, "metadata"),
        ("experiments.engines.flower_internals", TaskIdentity, "_task_id"),
        ("experiments.engines.ray_internals", BasicActorPool, "submit"),
    ],
)
def test_a_renamed_internal_is_an_error_when_it_is_imported(
    monkeypatch: pytest.MonkeyPatch, module: str, owner: type, name: str
) -> None:
    """Not a silent return of what it mended: a method that overrides nothing is never called."""
    holder = next(each for each in owner.__mro__ if name in vars(each))
    monkeypatch.delattr(holder, name)
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(IncompatibleLibraryError, match=rf"\w+ has no {name}; install flwr=="):
        importlib.import_module(module)


@pytest.mark.parametrize("module", ["clients.flower_internals", "strategies.flower_internals"])
def test_a_record_that_keeps_its_arrays_elsewhere_is_noticed(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setattr(ArrayRecord, "__init__", lambda self: None)
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(IncompatibleLibraryError, match="ArrayRecord has no _data"):
        importlib.import_module(module)


def test_what_is_there_passes() -> None:
    require("flwr", "here", "text", "upper", "lower")


def test_a_command_says_it_in_one_line(tmp_path: Path) -> None:
    code = (
        "import sys; from flwr.supercore.task_identity import TaskIdentity; delattr(TaskIdentity, '_task_id'); "
        "from snnfl.commands import main; main()"
    )
    command = [sys.executable, "-c", code, "run", str(ROOT / "experiments/conf/demo.yaml")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "has no _task_id; install flwr==1.41.0" in done.stderr
