"""Pages of the documentation for whoever has the repository, executed as they stand."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from followed import DOCS, IN_PYTHON, blocks, check, follow

ROOT = DOCS.parent
IN_CHECKOUT = [DOCS / "quickstart.md", DOCS / "spiking-clients.md", DOCS / "spiking-networks.md"]
LESS = [
    ("demo.yaml", "epochs: 5", "epochs: 1"),
    ("spiking_clients.yaml", "epochs: 5", "epochs: 1"),
    ("audit_digits.yaml", "fraction_train: 0.01", "fraction_train: 0.003"),
]


@pytest.fixture
def checkout(tmp_path: Path, forked: Path) -> Path:
    """A copy of the code, and of what is compiled of it, with this environment's commands in its ``.venv``.

    What its configurations train is less: an epoch instead of five, and two clients that are audited instead of seven.
    """
    for name in ("snnfl", "clients", "strategies", "experiments"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name, more, less in LESS:
        path = tmp_path / "experiments" / "conf" / name
        text = path.read_text()
        assert text.count(more) == 1, f"{name}: {more}"
        path.write_text(text.replace(more, less))
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(forked)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", IN_CHECKOUT, ids=lambda page: page.stem)
def test_what_a_page_tells_to_type_works(page: Path, checkout: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    check(page, checkout, environment)


@pytest.mark.slow
@pytest.mark.parametrize("page", IN_PYTHON, ids=lambda page: page.stem)
def test_the_examples_of_a_page_run_in_one_session(page: Path, tmp_path: Path, forked: Path) -> None:
    """That of conversion starts alone."""
    found = list(blocks(page))
    assert {language for language, _, _ in found} == {"python"}
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    session = "".join(code for _, _, code in found)
    python = forked / "python" if page.stem == "python" else sys.executable
    command = [python, "-W", "error::UserWarning:__main__", "-c", session]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= session.count("\nprint(")


def test_a_command_that_fails_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("1. Type\n\n    ```sh\n    false\n    true\n    ```\n")
    with pytest.raises(AssertionError, match=r"page\.md: false"):
        follow(page, tmp_path, os.environ)
