"""What every test may use."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hypothesis
import pytest
import torch
import typer.main
import typer.testing
from flwr_local import BINARIES
from forking_flower import INTERPRETER
from installed import Installed, install
from shared import Shared
from typed import typed
from workers import pytest_handlecrashitem, pytest_terminal_summary, pytest_xdist_make_scheduler  # noqa: F401

from snnfl.files import write_bytes


def pytest_configure() -> None:
    # Whoever starts tests in the background may have them deaf to Ctrl-C, and what they start with them.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # One thread: results do not depend on the machine, and two OpenMP threads on a busy machine are far slower.
    torch.set_num_threads(1)
    # No deadline, since the first example pays for imports; in CI the same examples every time.
    hypothesis.settings.register_profile(
        "snnfl", deadline=None, max_examples=30, derandomize=bool(os.environ.get("CI"))
    )
    hypothesis.settings.load_profile("snnfl")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect no garbage meanwhile: what imports and collection make stays, and looking through it takes 2 s."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl
def pytest_sessionfinish() -> None:
    gc.freeze()  # pytest and the interpreter would look through all of it several times before they end


LONGEST = (
    "test_outages.py", "test_pages.py", "test_installed.py", "test_how_to.py", "test_engines_agree.py",
    "test_benchmarks.py", "test_secure.py", "test_endings.py", "test_site.py", "test_termination.py", "test_compare.py",
    "test_processes.py", "test_hostile_nodes.py", "test_backdoors.py", "test_algorithms.py", "test_spike_trains.py",
    "test_detecting.py",
)  # fmt: skip
"""Files whose few tests take minutes: a worker that is given one last keeps all others waiting."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest; after those that are known with those of most tests."""
    tests = Counter(item.path for item in items)
    known = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (known.get(item.path.name, len(known)), -tests[item.path]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for shared in list(Shared.alive):
            shared.spoil()
    return report


@pytest.fixture(scope="session", autouse=True)
def _figures_are_rendered_once() -> Iterator[None]:
    """Runs of this process make their figures of their own rows, but after the first all have that one's pixels.

    They take two fifths of a short run, and are Matplotlib's. Runs in other processes render theirs. Where rows have
    and lack the same numbers as an earlier run's, not even that is done: what plots them doesn't tell them apart.
    """
    from strategies import server_app

    draw, rendered, made = server_app.plot_accuracy, dict[str, bytes](), set[object]()

    def drawn(runs: Mapping[str, Sequence[Mapping[str, Any]]], paths: Sequence[Path]) -> None:
        if not rendered:
            draw(runs, paths)
            rendered.update({path.suffix: path.read_bytes() for path in paths})
            return
        told = tuple(tuple(frozenset((k, v is None) for k, v in row.items()) for row in rows) for rows in runs.values())
        if told not in made:
            draw(runs, [])
            made.add(told)
        for path in paths:
            write_bytes(path, rendered[path.suffix])

    with patch.object(server_app, "plot_accuracy", drawn):
        yield


@pytest.fixture(scope="session", autouse=True)
def _command_lines_are_declared_once() -> Iterator[None]:
    """Typer reads the declaration of all commands anew for each that is typed in this process."""
    made = cache(typer.main.get_command)
    with patch.object(typer.main, "get_command", made), patch.object(typer.testing, "_get_command", made):
        yield


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real, downloaded data sets; skips where there is none."""
    root = Path(os.environ.get("SNNFL_DATA", "/tmp/snnfl-data"))
    if root.is_dir():
        return root
    if "SNNFL_DATA" in os.environ:
        pytest.fail(f"SNNFL_DATA={root}: no such folder")
    pytest.skip(
        "no downloaded data sets here; type: export SNNFL_DATA=~/snnfl-data; .venv/bin/snnfl data fetch fashion_mnist"
    )


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """snnfl as a wheel in a virtual environment."""
    return install(tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of commands of this environment, which are forked; its interpreter is that of other forks, too."""
    with (
        typed(tmp_path_factory.mktemp("typed") / "bin", BINARIES) as commands,
        patch.dict(os.environ, {INTERPRETER: str(commands / "python")}),
    ):
        yield commands


@pytest.fixture
def python_is_forked(forked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process starts as ``sys.executable`` is forked."""
    monkeypatch.setattr(sys, "executable", str(forked / "python"))


@pytest.fixture(scope="session")
def forked_installed(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same of the environment with the wheel."""
    with typed(tmp_path_factory.mktemp("typed") / "bin", installed.folder / "bin", installed.environment) as commands:
        yield commands


@pytest.fixture
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder is empty, but for a configuration that says nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.yaml").write_text("{}\n")


@pytest.fixture
def own_registries() -> Iterator[None]:
    """What a test registers is forgotten after it."""
    from snnfl.attacks.registry import ATTACKS
    from snnfl.data.sources import SOURCES
    from snnfl.detection.registry import DETECTORS
    from snnfl.models.registry import MODELS
    from snnfl.plugins import _loaded, _named, _owned
    from snnfl.poisoning import POISONINGS
    from snnfl.training.objectives import OBJECTIVES
    from strategies.bases import STRATEGIES
    from strategies.tracking import TRACKERS

    with ExitStack() as stack:
        for registry in (ATTACKS, DETECTORS, MODELS, OBJECTIVES, POISONINGS, SOURCES, STRATEGIES, TRACKERS):
            stack.enter_context(patch.dict(registry.items))
            stack.enter_context(patch.dict(registry.homes))
        stack.enter_context(patch.dict(_loaded))
        stack.enter_context(patch.dict(_owned))
        named = set(_named)
        stack.callback(lambda: (_named.clear(), _named.update(named)))
        yield
