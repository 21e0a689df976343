"""How-tos, executed as they stand in a user's own folder, which has snnfl as a wheel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from followed import DOCS, IN_PYTHON, check
from installed import Installed
from typed import typed

HOW_TO = sorted({*(DOCS / "how-to").glob("*.md")} - {*IN_PYTHON})


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's own folder, which has folders of the names that ours have."""
    for name in ("experiments", "strategies", "clients"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong one')\n")
    return tmp_path


ALONE = "own-attack"
"""Whose commands start as a user's do, and import everything themselves."""


@pytest.fixture(scope="module")
def forked(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """The environment of a user, whose commands are forked."""
    folder = tmp_path_factory.mktemp("typed") / "bin"
    with typed(folder, installed.folder / "bin", installed.environment) as commands:
        yield {**installed.environment, "PATH": f"{commands}:{installed.environment['PATH']}"}


@pytest.mark.slow
@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_what_a_page_tells_to_type_works_in_a_folder_of_ones_own(
    page: Path, project: Path, installed: Installed, forked: Mapping[str, str]
) -> None:
    check(page, project, installed.environment if page.stem == ALONE else forked)
