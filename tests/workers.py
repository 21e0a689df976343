"""Pytest's workers: one that dies costs its test a second try, and the session neither its end nor its other tests.

What ends a worker once, as a machine that has no memory left, is no verdict on what is tested; nor is it forgotten: its
test is named at the end. A test whose worker dies twice has failed, and so has every test whose assertion fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

PLAYED_AGAIN = "its worker died; another one runs it again"

_died: set[str] = set()


class FileScheduling(LoadFileScheduling):  # type: ignore[misc]
    """As ``--dist loadfile``, for the death of a worker, too.

    After it pytest-xdist 3.8 hands all files of the dead worker out again, also those that are done: whoever is given
    one of these has nothing to do, never asks for more, and the session waits for ever. It hands them to workers that
    still collect, too, whom it cannot tell: they end with what they never heard of. And it tries a test that kills
    every worker until there are no more to be had, for the other tests neither.
    """

    def add_node_collection(self, node: WorkerController, collection: Sequence[str]) -> None:
        """Hear only those who were added: who started when all seemed done was sent away."""
        if node in self.assigned_work:
            super().add_node_collection(node, collection)

    def remove_node(self, node: WorkerController) -> str | None:
        """Forget the files that are done, and what dies for the second time; then what the library does."""
        work = self.assigned_work[node]
        dies = next((test for tests in work.values() for test, done in tests.items() if not done), None)
        for path, tests in list(work.items()):
            if dies in _died and dies in tests:
                tests[dies] = True
            if all(tests.values()):
                del work[path]
        super().remove_node(node)
        return dies

    def _reschedule(self, node: WorkerController) -> None:
        """Leave a worker alone until it has collected: it gets its part then.

        Whom one can't tell any more has died, of which the session hears next, and hands out what it was to be told.
        """
        if node in self.registered_collections:
            with suppress(OSError):
                super()._reschedule(node)

    def schedule(self) -> None:
        """Give a worker that comes later two files, as the others: it begins one when it knows of the next."""
        super().schedule()
        for node in self.nodes:
            self._reschedule(node)


@pytest.hookimpl
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FileScheduling | None:
    """Take the place of ``--dist loadfile``."""
    return FileScheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl
def pytest_handlecrashitem(crashitem: str, report: pytest.TestReport) -> None:
    """Let a test whose worker has died for the first time be skipped now: the scheduler has handed it out again."""
    if crashitem not in _died:
        _died.add(crashitem)
        report.outcome, report.longrepr = "skipped", (crashitem.split("::")[0], 0, PLAYED_AGAIN)


@pytest.hookimpl
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name these tests at the end."""
    for test in sorted(_died):
        terminalreporter.write_line(f"{test}: {PLAYED_AGAIN}", yellow=True)
