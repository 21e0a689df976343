"""The interruption of calls that take too long."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable

import pytest

from experiments.engines.deadline import DeadlinePassed, interrupted_after


def loop() -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            time.sleep(0.001)
        except Exception:  # as clients do
            continue


class Stubborn:
    """Swallows the first interruption, as Python does in a destructor."""

    def __del__(self) -> None:
        time.sleep(1.0)


def in_a_destructor() -> None:
    Stubborn()
    time.sleep(20)


@pytest.mark.parametrize("call", [lambda: time.sleep(20), loop])
def test_a_call_that_takes_too_long_is_interrupted(call: Callable[[], None]) -> None:
    start = time.monotonic()
    with pytest.raises(DeadlinePassed), interrupted_after(0.1):
        call()
    assert 0.1 <= time.monotonic() - start < 15


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interruption_that_gets_lost_is_followed_by_another() -> None:
    start = time.monotonic()
    with pytest.raises(DeadlinePassed), interrupted_after(0.1):
        in_a_destructor()
    assert time.monotonic() - start < 15


@pytest.mark.parametrize("seconds", [5.0, math.inf])
def test_a_call_in_time_is_left_alone(seconds: float) -> None:
    with interrupted_after(seconds):
        value = sum(range(1000))
    assert value == 499500


def test_whoever_used_the_timer_gets_it_back() -> None:
    rung = threading.Event()
    before = signal.signal(signal.SIGALRM, lambda number, frame: rung.set())
    theirs = signal.setitimer(signal.ITIMER_REAL, 100.0)  # of whoever runs the tests
    try:
        with pytest.raises(DeadlinePassed), interrupted_after(0.1):
            time.sleep(20)
        assert not rung.is_set()
        assert signal.getitimer(signal.ITIMER_REAL)[0] <= 100.0 - 0.1
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with interrupted_after(50.0):
            pass
        assert rung.wait(20)
        with interrupted_after(0.1):
            pass
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, *theirs)
        signal.signal(signal.SIGALRM, before)


def test_outside_the_main_thread_nothing_is_interrupted() -> None:
    ended: list[bool] = []

    def work() -> None:
        with interrupted_after(0.05):
            time.sleep(0.2)
        ended.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended == [True]
