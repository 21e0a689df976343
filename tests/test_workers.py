"""Sessions of pytest in which a worker dies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from workers import PLAYED_AGAIN

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


def test_an_assertion_that_fails_has_no_second_try(tmp_path: Path) -> None:
    done = session(tmp_path, FAILS)
    assert done.returncode == 1
    assert "1 failed, 14 passed" in done.stdout
    assert PLAYED_AGAIN not in done.stdout
