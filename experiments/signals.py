"""A command that is told to terminate ends in as good order as one that is interrupted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM has come. Whatever cleans up after Ctrl-C cleans up after it, too."""


def exit_status(interrupt: KeyboardInterrupt) -> int:
    """Return the status of a process that ends for it: 128 and the number of the signal, as shells have it."""
    return 128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT)


@contextmanager
def interrupting(
    tell: Callable[[KeyboardInterrupt], None] = lambda interrupt: None,
    again: Callable[[KeyboardInterrupt], None] = lambda interrupt: None,
) -> Iterator[None]:
    """Raise inside the block what Ctrl-C and SIGTERM ask for, once: ``KeyboardInterrupt`` or :class:`Terminated`.

    While the block cleans up, another SIGTERM changes nothing. Python handles signals in the main thread; nothing
    happens in another.

    Args:
        tell: Is told the interrupt before it is raised.
        again: Is told a second Ctrl-C.
    """
    told = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal told
        raised = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
        if told and number == signal.SIGINT:
            again(raised)
        if not told:
            told = True
            tell(raised)
            raise raised

    handled = [signal.SIGINT, signal.SIGTERM] if _is_main() else []
    # Nohup, and a shell that starts a command in the background, let it be deaf to Ctrl-C.
    before = {n: signal.getsignal(n) for n in handled if signal.getsignal(n) != signal.SIG_IGN}
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


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()
