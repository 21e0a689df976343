"""Interrupt a call in this process that takes too long."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN_SECONDS = 1.0
"""Where an interruption gets lost (Python ignores exceptions in destructors and callbacks), the next follows."""


class DeadlinePassed(BaseException):
    """The call took too long. Like Ctrl-C, no ``except Exception`` of a client stops it."""


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Raise :class:`DeadlinePassed` inside the block once the time is over.

    A signal does it, so it works in the main thread of a system that has interval timers (not on Windows), and nothing
    happens elsewhere or with infinite ``seconds``. Python sees signals between two of its own instructions: a sleep or
    an endless loop ends at once, a single long operation of PyTorch when it returns. Whoever used the timer before gets
    it back with the time that it has left.
    """
    usable = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if not usable or seconds == math.inf:
        yield
        return
    inside = True

    def interrupt(number: int, frame: FrameType | None) -> None:
        if inside:  # else the signal came while the block was being left
            raise DeadlinePassed

    start = time.monotonic()
    handler = signal.signal(signal.SIGALRM, interrupt)
    remaining, interval = signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6), AGAIN_SECONDS)
    try:
        yield
    finally:
        inside = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if remaining:
            signal.setitimer(signal.ITIMER_REAL, max(remaining - (time.monotonic() - start), 1e-6), interval)
