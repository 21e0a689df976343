"""How a command ends: its exit status, and the line on the standard error that says why.

======  ================================================================================================
status  means
======  ================================================================================================
0       finished as configured
1       failed: an engine, a disk, a run in which no client sent anything valid
2       a mistake in what was asked, found before training: an option, a file, a folder that is in use
3       finished, but not as configured: the last round kept old weights, a client gave no valid reply, or a
        detector or tracker failed in every round
130     interrupted by Ctrl-C
141     nobody reads the output any more, as with ``| head`` (SIGPIPE)
143     told to terminate (SIGTERM)
======  ================================================================================================
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar

from experiments.signals import OUTPUT, OutputClosed, Terminated, exit_status, interrupting
from snnfl.compatibility import IncompatibleLibraryError
from snnfl.launch import names_in_use

FAILED, MISTAKE, NOT_AS_CONFIGURED = 1, 2, 3

UNREAD = "nobody reads the output any more"

SHOWN = 5
"""Lines that say in what a run isn't as configured; of more, their number."""


class RunFailedError(RuntimeError):
    """A command whose runs ended without training anything; its arguments are lines that say which and why."""


class BrokenOffError(RuntimeError):
    """A command that the system doesn't let go on: names the file, why, and what is kept."""


class NotAsConfiguredError(RuntimeError):
    """A command that has finished, but whose result isn't what was configured.

    Attributes:
        lines: Who and why.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines


def explained(error: BaseException) -> tuple[list[str], int] | None:
    """Return the lines that explain an error to a user, and the exit status; ``None`` for one that is ours."""
    if isinstance(error, IncompatibleLibraryError):  # first, for what follows imports what raises it
        return [str(error)], MISTAKE
    from experiments.deploy import DeployError
    from experiments.engines import EngineError, RefusedRunError
    from snnfl.auditing.recording import RecordingError
    from snnfl.config import ConfigError
    from snnfl.conversion import ConversionError
    from snnfl.spiking.export import ExportError
    from snnfl.spiking.storage import NetworkFileError
    from snnfl.threat import ThreatModelError

    mistakes, failures = _of_strategies()
    of_files = (ExportError, NetworkFileError, RecordingError, ThreatModelError)
    if isinstance(error, (ConfigError, ConversionError, DeployError, RefusedRunError, *mistakes, *of_files)):
        return [str(error)], MISTAKE
    if isinstance(error, RunFailedError):
        return list(error.args), FAILED
    if isinstance(error, (BrokenOffError, EngineError, *failures)):
        return [str(error)], FAILED
    if isinstance(error, NotAsConfiguredError):
        more = len(error.lines) - SHOWN
        rest = [f"and {more} more; all are in metrics.jsonl"] if more > 0 else []
        return [f"finished, but not as configured: {line}" for line in [*error.lines[:SHOWN], *rest]], NOT_AS_CONFIGURED
    return None


def _of_strategies() -> tuple[tuple[type[Exception], ...], tuple[type[Exception], ...]]:
    """Return which errors of our strategies are mistakes, and which failures.

    There are none where nobody has loaded them: in flower-simulation of another's app, whose own package may have their
    name, and which a wheel's ``strategies`` isn't there for.
    """
    if "strategies" not in names_in_use():
        return (), ()
    from strategies.lock import FolderInUseError
    from strategies.population import PopulationError
    from strategies.resume import RunBrokenOffError
    from strategies.run_directory import RunFileError

    return (PopulationError, FolderInUseError, RunFileError), (RunBrokenOffError,)


@contextmanager
def ending(program: str, *, files: bool = True) -> Iterator[None]:
    """End the process with the status and the lines of whatever a user can do something about; the rest is a traceback.

    Args:
        program: By which a line begins.
        files: Whether an ``OSError`` is a line, too.

    Raises:
        SystemExit: With the status.
    """
    with interruptible(lambda: "", program):
        try:
            yield
        except Exception as error:
            told = explained(error)
            if told is None and files and isinstance(error, OSError):
                told = [_reason(error)], FAILED
            if told is None:
                raise
            lines, status = told
            for line in lines:
                sys.stderr.write(f"{program}: {line}\n")
            sys.exit(status)
        finally:
            with suppress(OSError):  # of a closed output SIGPIPE tells
                sys.stdout.flush()


@contextmanager
def keeping(
    kept: Callable[[], str], program: str = "snnfl", *, terminated: Callable[[], str] | None = None
) -> Iterator[None]:
    """Say what is kept, and how to go on, when a command is interrupted or the system doesn't let it write.

    Args:
        kept: Returns what is to be said.
        program: By which a line begins.
        terminated: Returns what is to be said on SIGTERM, if that is something else.

    Raises:
        BrokenOffError: In the place of an ``OSError``.
    """
    with interruptible(kept, program, terminated=terminated):
        try:
            yield
        except OSError as error:
            raise BrokenOffError(_joined(_reason(error), kept)) from None


_FOR_A_CALLER: ContextVar[bool] = ContextVar("for_a_caller", default=False)


@contextmanager
def caller() -> Iterator[None]:
    """Leave interrupts to whoever calls us from Python: a notebook lives on after one."""
    token = _FOR_A_CALLER.set(True)
    try:
        yield
    finally:
        _FOR_A_CALLER.reset(token)


@contextmanager
def interruptible(
    kept: Callable[[], str], program: str = "snnfl", *, terminated: Callable[[], str] | None = None
) -> Iterator[None]:
    """Say at once, on Ctrl-C or SIGTERM, what is kept and how to go on; then end in good order what must, such as Ray.

    The same where nobody reads the output any more; a command that keeps nothing then ends without a word. A second
    Ctrl-C ends the process at once. Arguments as for :func:`keeping`. For a :func:`caller` nothing happens.
    """
    if _FOR_A_CALLER.get():
        yield
        return

    def tell(interrupt: KeyboardInterrupt) -> None:
        if isinstance(interrupt, OutputClosed):
            os.dup2(os.open(os.devnull, os.O_WRONLY), OUTPUT)  # what ends may still print
            line = _joined(UNREAD, kept)
            if line == UNREAD:
                _leave(interrupt)
        elif isinstance(interrupt, Terminated):
            line = _joined("told to terminate", terminated or kept)
        else:
            line = _joined("interrupted", kept)
        with suppress(OSError):  # it may go where the output went
            sys.stderr.write(f"{program}: {line}\n")
            sys.stderr.flush()
        logging.disable()  # what is broken off on the way out is no news, and Flower tells it with tracebacks

    try:
        with interrupting(tell, again=_leave):
            yield
    except KeyboardInterrupt as interrupt:
        _leave(interrupt)


def _joined(what: str, kept: Callable[[], str]) -> str:
    try:
        return "; ".join(filter(None, (what, kept())))
    except (OSError, ValueError):  # of what is to be told of, a file may be damaged
        return what


def _reason(error: OSError) -> str:
    text = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {text}" if error.filename is not None else text


def _leave(interrupt: KeyboardInterrupt) -> None:
    """End the process at once: in good order it would wait for Flower's threads, which wait for their Ray clients."""
    with suppress(OSError):  # nobody may be reading
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(exit_status(interrupt))
