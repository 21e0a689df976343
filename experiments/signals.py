"""A command that is told to terminate, or that nobody reads, ends in as good order as one that is interrupted."""

from __future__ import annotations

import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGPIPE: int | None = getattr(signal, "SIGPIPE", None)
"""Windows has none."""

OUTPUT = 1
"""File descriptor of the standard output."""


class Terminated(KeyboardInterrupt):
    """SIGTERM has come. Whatever cleans up after Ctrl-C cleans up after it, too."""


class OutputClosed(KeyboardInterrupt):
    """The pipe that the standard output goes to has lost its reader, as with ``| head``."""


_ASKED: dict[int | None, type[KeyboardInterrupt]] = {
    signal.SIGINT: KeyboardInterrupt,
    signal.SIGTERM: Terminated,
    SIGPIPE: OutputClosed,
}
"""What each signal asks for."""


def exit_status(interrupt: KeyboardInterrupt) -> int:
    """Return the status of a process that ends for it: 128 and the number of the signal, as shells have it."""
    return 128 + next(number for number, kind in _ASKED.items() if kind is type(interrupt) and number is not None)


@contextmanager
def interrupting(
    tell: Callable[[KeyboardInterrupt], None] = lambda interrupt: None,
    again: Callable[[KeyboardInterrupt], None] = lambda interrupt: None,
) -> Iterator[None]:
    """Raise inside the block what Ctrl-C, SIGTERM and a closed output ask for, once: ``KeyboardInterrupt`` or its kin.

    While the block cleans up, another SIGTERM changes nothing. Python handles signals in the main thread; nothing
    happens in another.

    Args:
        tell: Is told the interrupt before it is raised.
        again: Is told a second Ctrl-C.
    """
    told = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if number == SIGPIPE and not _output_is_closed():
            return  # of a socket, or another pipe: who writes there has an error
        raised = _ASKED[number]()
        if told and number == signal.SIGINT:
            again(raised)
        if not told:
            told = True
            tell(raised)
            raise raised

    handled = [number for number in _ASKED if number is not None] if _is_main() else []
    # Nohup, and a shell that starts a command in the background, let it be deaf to Ctrl-C; to SIGPIPE Python is.
    before = {n: signal.getsignal(n) for n in handled if signal.getsignal(n) != signal.SIG_IGN or n == SIGPIPE}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def same_handler() -> Iterator[None]:
    """At the end of the block let SIGTERM be handled as it was before: libraries, Ray among them, take it over."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if _is_main():
            signal.signal(signal.SIGTERM, before)


def _output_is_closed() -> bool:
    poll = select.poll()
    poll.register(OUTPUT, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()
