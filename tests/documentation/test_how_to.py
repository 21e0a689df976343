"""How-tos, executed as they stand in a user's own folder, which has snnfl as a wheel."""

from __future__ import annotations

from pathlib import Path

import pytest
from followed import DOCS, IN_PYTHON, check
from installed import Installed

HOW_TO = sorted({*(DOCS / "how-to").glob("*.md")} - {*IN_PYTHON})


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's own folder, which has folders of the names that ours have."""
    for name in ("experiments", "strategies", "clients"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong one')\n")
    return tmp_path


ALONE = "own-tracker"
"""Whose commands start as a user's do, and import everything themselves."""


@pytest.mark.slow
@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_what_a_page_tells_to_type_works_in_a_folder_of_ones_own(
    page: Path, project: Path, installed: Installed, forked_installed: Path
) -> None:
    environment = installed.environment
    forked = {**environment, "PATH": f"{forked_installed}:{environment['PATH']}"}
    check(page, project, environment if page.stem == ALONE else forked)
