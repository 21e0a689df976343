"""Sessions of pytest in which a worker dies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from workers import PLAYED_AGAIN, FileScheduling

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parent
FILES = {
    "test_a_long.py": "import pytest\n@pytest.mark.parametrize('n', range(9))\ndef test_of_many(n): pass\n",
    "test_b.py": "def test_one(): pass\n",
    "test_c.py": "def test_before(): pass\ndef test_dies(): DIES\ndef test_after(): pass\n",
    "test_d.py": "def test_one(): pass\n",
    "test_e.py": "import time\ndef test_last(): time.sleep(1)\n",
}
ONCE = "\n    import os, pathlib\n    if not os.path.exists('died'): pathlib.Path('died').touch(); os._exit(1)\n"
ALWAYS = "\n    import os; os._exit(1)\n"
FAILS = "\n    assert False\n"


def session(folder: Path, what: str) -> subprocess.CompletedProcess[str]:
    for name, code in FILES.items():
        (folder / name).write_text(code.replace("DIES", what))
    options = ["-n2", "--dist=loadfile", "--no-loadscope-reorder", "-p", "workers", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, "."]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("last", [False, True])
def test_a_worker_that_dies_costs_its_test_a_second_try(tmp_path: Path, last: bool) -> None:
    """Also where it is the last file that anybody works on."""
    if last:
        (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --deselect test_d.py --deselect test_e.py\n")
    done = session(tmp_path, ONCE)
    assert done.returncode == 0, done.stdout
    assert f"{13 if last else 15} passed, 1 skipped" in done.stdout
    assert f"test_c.py::test_dies: {PLAYED_AGAIN}" in done.stdout


def test_one_that_dies_twice_is_a_failure_and_is_named(tmp_path: Path) -> None:
    done = session(tmp_path, ALWAYS)
    assert done.returncode == 1, done.stdout
    assert "crashed while running 'test_c.py::test_dies'" in done.stdout
    assert done.stdout.count("replacing crashed worker") == 2
    assert "1 failed, 14 passed, 1 skipped" in done.stdout


def test_an_assertion_that_fails_has_no_second_try(tmp_path: Path) -> None:
    done = session(tmp_path, FAILS)
    assert done.returncode == 1
    assert "1 failed, 14 passed" in done.stdout
    assert PLAYED_AGAIN not in done.stdout


class Worker:
    """What the scheduler knows of a worker."""

    def __init__(self, name: str) -> None:
        self.gateway = SimpleNamespace(id=name)
        self.told: list[int] = []
        self.died = self.shutting_down = False

    def send_runtest_some(self, indices: list[int]) -> None:
        assert not self.shutting_down, "a worker that was told to end runs nothing any more"
        if self.died:
            raise OSError("cannot send (already closed?)")
        self.told += indices

    def shutdown(self) -> None:
        self.shutting_down = True


@pytest.fixture
def scheduling(monkeypatch: pytest.MonkeyPatch) -> FileScheduling:
    """Of two workers."""
    monkeypatch.setattr("workers._died", set())
    values = {"tx": ["2*popen"], "loadscopereorder": False}
    return FileScheduling(SimpleNamespace(getvalue=values.get, option=SimpleNamespace(**values)))


def test_who_dies_while_another_collects_leaves_it_what_it_can_hear_of(scheduling: FileScheduling) -> None:
    """Pytest-xdist 3.8 counted it among what the other one had been told, whose end was then an internal error."""
    collected = [f"test_{file}.py::test_{number}" for file in "abcd" for number in range(3)]
    first, second, third = map(Worker, ("first", "second", "third"))
    for worker in (first, second):
        scheduling.add_node(worker)
        scheduling.add_node_collection(worker, collected)
    scheduling.schedule()
    assert scheduling.remove_node(first) == "test_a.py::test_0"
    scheduling.add_node(third)
    assert scheduling.remove_node(second) == "test_b.py::test_0"
    assert not third.told
    assert not third.shutting_down
    scheduling.add_node_collection(third, collected)
    scheduling.schedule()
    for index in range(100):
        if index < len(third.told):
            scheduling.mark_test_complete(third, third.told[index])
    assert sorted(third.told) == list(range(len(collected)))
    assert third.shutting_down
    assert scheduling.remove_node(third) is None


def test_who_cannot_be_told_any_more_has_died_and_another_does_it(scheduling: FileScheduling) -> None:
    """The session learns what a worker has done before it learns of its death."""
    collected = [f"test_{file}.py::test_one" for file in "abcdef"]
    first, second = Worker("first"), Worker("second")
    for worker in (first, second):
        scheduling.add_node(worker)
        scheduling.add_node_collection(worker, collected)
    scheduling.schedule()
    first.died = True
    scheduling.mark_test_complete(first, first.told[0])
    assert scheduling.remove_node(first) == collected[first.told[1]]
    for index in range(100):
        if index < len(second.told):
            scheduling.mark_test_complete(second, second.told[index])
    assert sorted([*first.told[:1], *second.told]) == list(range(len(collected)))


def test_who_started_when_all_seemed_done_is_no_error(scheduling: FileScheduling) -> None:
    scheduling.add_node_collection(Worker("late"), ["test_a.py::test_one"])
    assert not scheduling.registered_collections
