"""What tests share: made once, made anew after a failure, and started again when it doesn't come up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from shared import ATTEMPTS, Shared

pytest_plugins = ["pytester"]


class Workshop:
    """Counts what it makes; the first ones may not come up."""

    def __init__(self, failures: int = 0) -> None:
        self.failures, self.made, self.closed, self.healthy = failures, 0, 0, True

    @contextmanager
    def make(self) -> Iterator[int]:
        self.made += 1
        try:
            if self.made <= self.failures:
                raise TimeoutError("waited")
            yield self.made
        finally:
            self.closed += 1

    def shared(self) -> Shared[int]:
        return Shared(self.make, lambda made: self.healthy)


def test_it_is_made_once_and_closed_at_the_end() -> None:
    workshop = Workshop()
    with workshop.shared() as shared:
        assert workshop.made == 0
        assert [shared.get(), shared.get()] == [1, 1]
        assert workshop.closed == 0
    assert workshop.closed == 1


def test_it_is_made_anew_when_it_is_spoiled_or_ill() -> None:
    workshop = Workshop()
    with workshop.shared() as shared:
        assert shared.get() == 1
        shared.spoil()
        assert workshop.closed == 1
        assert shared.get() == 2
        workshop.healthy = False
        assert shared.get() == 3
    assert workshop.closed == 3


def test_one_that_does_not_come_up_is_started_again_but_not_for_ever() -> None:
    workshop = Workshop(failures=ATTEMPTS - 1)
    with workshop.shared() as shared:
        assert shared.get() == ATTEMPTS
    workshop = Workshop(failures=ATTEMPTS)
    with workshop.shared() as shared, pytest.raises(TimeoutError):
        shared.get()
    assert workshop.closed == ATTEMPTS


def test_a_mistake_is_not_tried_again() -> None:
    @contextmanager
    def make() -> Iterator[int]:
        raise AssertionError("a test's verdict")
        yield 1

    with Shared(make, bool) as shared, pytest.raises(AssertionError, match="a test's verdict"):
        shared.get()


def test_a_failing_test_spoils_it_for_the_next(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("from conftest_of_the_suite import pytest_runtest_makereport  # noqa: F401")
    pytester.makepyfile(
        conftest_of_the_suite=(Path(__file__).parent / "conftest.py").read_text(),
        test_it="""
        from contextlib import contextmanager
        import pytest
        from shared import Shared

        made = []

        @contextmanager
        def make():
            made.append(len(made))
            yield made[-1]

        @pytest.fixture(scope="module")
        def workshop():
            with Shared(make, lambda one: True) as shared:
                yield shared

        def test_first(workshop):
            assert workshop.get() == 0

        def test_fails(workshop):
            assert workshop.get() == 1

        def test_gets_a_new_one(workshop):
            assert workshop.get() == 1
        """,
    )
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=2, failed=1)
